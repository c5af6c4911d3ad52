"""What `dfd bench` times, in a process of its own for each side."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import psutil
import simplejpeg
import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks import course_loop
from dfd_utils.config import SPLITS, Profile
from dfd_utils.data.dataset import DeepFakeDataset, load_split
from dfd_utils.data.loader import data_loader
from dfd_utils.data.transforms import eval_transform
from dfd_utils.models.detector import fuse_batchnorm
from dfd_utils.models.scoring import predict_logits
from dfd_utils.training.checkpoint import TrainingState
from dfd_utils.training.components import TrainingComponents, build_components, train_transform
from dfd_utils.training.train import train_one_epoch

LOADED = 960  # images that the loaders are measured on


@cache
def _training(name: str, data: Path, profile: Profile) -> TrainingComponents:
    return build_components(name, data, profile, lambda line: None)


class _Enough(Exception):  # noqa: N818  (no error)
    pass


def _epoch(training: TrainingComponents, batches: int) -> float:
    state = TrainingState(training.accelerator)
    start = time.perf_counter()

    def after_step() -> None:
        if state.step == batches:
            raise _Enough

    with suppress(_Enough):
        train_one_epoch(training, state, after_step)
    state.loss_sum.item()  # waits for the device
    return state.images / (time.perf_counter() - start)


class _OnDevice:
    """Stands in for a loader: the first batch of one, on its device, again and again."""

    def __init__(self, loader: DataLoader, batches: int):
        self.batch, self.batches = next(iter(loader)), batches
        self.dataset = SimpleNamespace(seed=0)

    def set_epoch(self, epoch: int) -> None:
        pass

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator:
        return iter([self.batch] * self.batches)


def train(name: str, data: Path, profile: Profile, batches: int, on_device: bool) -> float:
    """Return the images/s of a training epoch of `batches` batches, or of such on the device."""
    training = _training(name, data, profile)
    if on_device:
        loader = _OnDevice(training.train_loader, batches)
        training = dataclasses.replace(training, train_loader=loader)
    return _epoch(training, batches)


def score(name: str, data: Path, profile: Profile, batches: int, on_device: bool) -> float:
    """Return the images/s of scoring `batches` batches, or as many that are on the device."""
    loader = _scoring_loader(name, data, profile, batches)
    if on_device:
        loader = _OnDevice(loader, len(loader))
    training = _training(name, data, profile)
    model = _scorer(name, data, profile)
    start = time.perf_counter()
    labels, _ = predict_logits(model, loader, training.accelerator)
    return len(labels) / (time.perf_counter() - start)


@cache
def _scorer(name: str, data: Path, profile: Profile) -> nn.Module:
    return fuse_batchnorm(_training(name, data, profile).averaged.module.eval())


@cache
def _scoring_loader(name: str, data: Path, profile: Profile, batches: int) -> DataLoader:
    """Make a loader of Train images, for Validation may be too small to measure on."""
    size = 2 * profile.batch_size
    dataset = load_split(data, SPLITS[0], eval_transform(profile.image_size)).every(batches * size)
    return _training(name, data, profile).accelerator.prepare(
        data_loader(dataset, size, persistent=True)
    )


@cache
def _files(data: Path, images: int) -> list[tuple[Path, int]]:
    """Return files of Train and their labels, as many as there are of both classes in turn."""
    dataset = load_split(data, SPLITS[0])
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    return [(dataset.path(i), int(dataset.labels[i])) for i in order[:images].tolist()]


def reference(phase: str, name: str, data: Path, image_size: int, batches: int) -> float:
    """Return the images/s of the course project's loop."""
    files = _files(data, batches * course_loop.BATCH_SIZE)
    run = course_loop.train if phase == "train" else course_loop.score
    return len(files) / run(name, files, image_size)


def load_reference(data: Path, image_size: int) -> float:
    """Return the images a CPU-second of the course project's loading."""
    files = _files(data, LOADED)
    return len(files) / course_loop.load(files, image_size)


@cache
def _loader(data: Path, profile: Profile | None, image_size: int) -> DataLoader:
    return data_loader(_dataset(data, profile, image_size), 32, num_workers=1, persistent=True)


def _dataset(data: Path, profile: Profile | None, image_size: int) -> DeepFakeDataset:
    transform = train_transform(profile) if profile else eval_transform(image_size)
    return load_split(data, SPLITS[0], transform, seed=0).every(LOADED)


def load_ours(data: Path, profile: Profile | None, image_size: int) -> float:
    """Return the images a CPU-second of our loader; with a profile, of its training images."""
    loader = _loader(data, profile, image_size)
    start = _cpu_seconds()
    images = sum(len(labels) for _, labels in loader)
    return images / (_cpu_seconds() - start)


def _cpu_seconds() -> float:
    """CPU time of this process and of its workers, which live on between two passes."""
    workers = psutil.Process().children(recursive=True)
    return time.process_time() + sum(sum(worker.cpu_times()[:2]) for worker in workers)


def decode(data: Path) -> float:
    """Return the images a CPU-second of libjpeg-turbo's bare decoding, with the fast DCT."""
    files = _files(data, LOADED)
    contents = [path.read_bytes() for path, _ in files]
    contents = [content for content in contents if simplejpeg.is_jpeg(content)]
    start = time.process_time()
    for content in contents:
        simplejpeg.decode_jpeg(content, fastdct=True, fastupsample=True)
    return len(contents) / (time.process_time() - start)
