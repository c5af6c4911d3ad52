"""What `dfd bench` times: the phases of this project and of the reference (see speed.py).

    dfd bench

Each function is called in a worker process, which keeps data, models and loaders between the calls.
"""

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
from dfd_utils.data.folder import DataFolder
from dfd_utils.data.loader import data_loader
from dfd_utils.data.transforms import eval_transform
from dfd_utils.models.scoring import predict_logits
from dfd_utils.training.checkpoint import TrainingState
from dfd_utils.training.components import TrainingComponents, build_components, train_transform
from dfd_utils.training.train import train_one_epoch

LOADED = 960  # images that the loaders are measured with

_data = cache(DataFolder)


def train(name: str, data: Path, profile: Profile, batches: int, on_device: bool) -> float:
    """Return images/s of a training epoch of `batches` batches, loaded or already on the device."""
    training = _training(name, data, profile)
    if on_device:
        loader = _OnDevice(training.train_loader, batches)
        training = dataclasses.replace(training, train_loader=loader)
    return _epoch(training, batches)


def score(name: str, data: Path, profile: Profile, batches: int, on_device: bool) -> float:
    """Return images/s of scoring `batches` batches, loaded or already on the device."""
    loader = _scoring_loader(name, data, profile, batches)
    if on_device:
        loader = _OnDevice(loader, len(loader))
    training = _training(name, data, profile)
    model = _scorer(name, data, profile)
    start = time.perf_counter()
    labels, _ = predict_logits(model, loader, training.accelerator)
    return len(labels) / (time.perf_counter() - start)


def reference(phase: str, name: str, data: Path, image_size: int, batches: int) -> float:
    """Return images/s of the course project's loop."""
    files = _files(data, batches * course_loop.BATCH_SIZE)
    run = course_loop.train if phase == "train" else course_loop.score
    return len(files) / run(name, files, image_size)


def load_reference(data: Path, image_size: int) -> float:
    """Return images per CPU-second of the course project's loading."""
    files = _files(data, LOADED)
    return len(files) / course_loop.load(files, image_size)


def load_ours(data: Path, profile: Profile | None, image_size: int) -> float:
    """Return images per CPU-second of our loader; with a profile, of its training images."""
    loader = _loader(data, profile, image_size)
    start = _cpu_seconds()
    images = sum(len(labels) for _, labels in loader)
    return images / (_cpu_seconds() - start)


def decode(data: Path) -> float:
    """Return images per CPU-second of libjpeg-turbo's bare decoding, with the fast DCT."""
    contents = [path.read_bytes() for path, _ in _files(data, LOADED)]
    contents = [content for content in contents if simplejpeg.is_jpeg(content)]
    start = time.process_time()
    for content in contents:
        simplejpeg.decode_jpeg(content, fastdct=True, fastupsample=True)
    return len(contents) / (time.process_time() - start)


class _StopMeasuring(Exception):  # noqa: N818  (no error)
    pass


def _epoch(training: TrainingComponents, batches: int) -> float:
    state = TrainingState(training.accelerator)
    start = time.perf_counter()

    def after_step() -> None:
        if state.step == batches:
            raise _StopMeasuring

    with suppress(_StopMeasuring):
        train_one_epoch(training, state, after_step)
    state.loss_sum.item()  # waits for the device
    return state.images / (time.perf_counter() - start)


class _OnDevice:
    """Replaces a loader: yields its first batch, on its device, again and again."""

    def __init__(self, loader: DataLoader, batches: int):
        self.batch, self.batches = next(iter(loader)), batches
        self.dataset = SimpleNamespace(seed=0)

    def set_epoch(self, epoch: int) -> None:
        pass

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator:
        return iter([self.batch] * self.batches)


@cache
def _training(name: str, data: Path, profile: Profile) -> TrainingComponents:
    return build_components(name, _data(data), profile)


@cache
def _scorer(name: str, data: Path, profile: Profile) -> nn.Module:
    return _training(name, data, profile).ema_model.module.eval().fuse_batchnorm()


@cache
def _scoring_loader(name: str, data: Path, profile: Profile, batches: int) -> DataLoader:
    """Return a loader of Train images, because Validation may be too small to measure with."""
    size = 2 * profile.batch_size
    dataset = _data(data).split(SPLITS[0], eval_transform(profile.image_size))
    loader = data_loader(dataset.subsample(batches * size), size, persistent=True)
    return _training(name, data, profile).accelerator.prepare(loader)


@cache
def _loader(data: Path, profile: Profile | None, image_size: int) -> DataLoader:
    transform = train_transform(profile) if profile else eval_transform(image_size)
    dataset = _data(data).split(SPLITS[0], transform, seed=0).subsample(LOADED)
    return data_loader(dataset, 32, num_workers=1, persistent=True)


@cache
def _files(data: Path, images: int) -> list[tuple[Path, int]]:
    """Return Train images and their labels in random order, at most `images`."""
    dataset = _data(data).split(SPLITS[0])
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    return [(dataset.path(i), int(dataset.labels[i])) for i in order[:images].tolist()]


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of its workers, which live on between two passes."""
    workers = psutil.Process().children(recursive=True)
    return time.process_time() + sum(sum(worker.cpu_times()[:2]) for worker in workers)
