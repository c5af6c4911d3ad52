"""The course project's loop, written again: the reference of speed.py.

    dfd bench

fp32; Pillow decodes the images; they are resized, converted to tensors and normalised one after the
other in the main process; Adam; one `.item()` per step.
"""

import time
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from dfd_utils.config import CLASSES
from dfd_utils.data.transforms import MEAN, STD
from dfd_utils.models.registry import get_architecture

BATCH_SIZE = 32


class CourseDataset(Dataset):
    """Normalised float32 images `[3, S, S]` and their labels."""

    def __init__(self, files: list[tuple[Path, int]], image_size: int):
        self.files = files
        self.transform = transforms.Compose([
            transforms.Resize((image_size, image_size)),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self.files[index]
        return self.transform(Image.open(path).convert("RGB")), label


@cache
def _model(name: str, device: torch.device) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = get_architecture(name).builder(num_classes=len(CLASSES)).to(device)
    return model, torch.optim.Adam(model.parameters(), lr=1e-3)


def _batches(files: list[tuple[Path, int]], image_size: int) -> DataLoader:
    return DataLoader(CourseDataset(files, image_size), BATCH_SIZE)


def train(name: str, files: list[tuple[Path, int]], image_size: int) -> float:
    """Train on every file once; return the seconds."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, optimizer = _model(name, device)
    criterion = nn.CrossEntropyLoss()
    model.train()
    start, loss_sum = time.perf_counter(), 0.0
    for images, labels in _batches(files, image_size):
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item()
    return time.perf_counter() - start


@torch.no_grad()
def score(name: str, files: list[tuple[Path, int]], image_size: int) -> float:
    """Score every file once; return the seconds."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, _ = _model(name, device)
    model.eval()
    start, predicted = time.perf_counter(), []
    for images, _ in _batches(files, image_size):
        predicted += model(images.to(device)).argmax(1).tolist()
    return time.perf_counter() - start


def load(files: list[tuple[Path, int]], image_size: int) -> float:
    """Load every file once; return the seconds of CPU time."""
    start = time.process_time()
    for _ in _batches(files, image_size):
        pass
    return time.process_time() - start
