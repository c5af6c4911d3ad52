"""How fast training, scoring and loading are on this machine: `dfd bench`.

Ours is measured beside the course project's loop (the reference) and beside the same steps on
data that lie on the device already (the limit). Reference and ours live in processes of their own,
for memory settings hold for a whole process, and take turns.
"""

import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import pandas as pd
import psutil
import simplejpeg
import torch
from torch import nn
from torch.utils.data import DataLoader

from dfd_utils import course_loop
from dfd_utils.checkpoint import TrainingState
from dfd_utils.config import SPLITS, Profile
from dfd_utils.dataset import check_layout, data_loader, load_split
from dfd_utils.models import architecture, fused
from dfd_utils.recipe import Training, prepare, train_transform
from dfd_utils.train import evaluate_epoch, train_one_epoch
from dfd_utils.transforms import eval_transform
from dfd_utils.tuning import tune

LOADED = 960  # images that the loaders are measured on
COLUMNS = ["model", "phase", "ours", "reference", "limit", "unit", "ratio", "share_of_limit"]


def bench(
    models: list[str],
    data: Path,
    profile: Profile,
    batches: int = 8,
    rounds: int = 3,
    log: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Measure every phase of every model; return a row each, medians over the rounds.

    Columns: `model`; `phase` (train, score or load); `ours`, `reference` and `limit` in `unit`;
    `ratio` (ours to reference); `share_of_limit`. Training and scoring are whole small epochs of
    `batches` batches, from the start of the loaders on, in images/s. The loaders are counted in
    images a second of CPU time, workers included, and their limit is libjpeg-turbo's bare decoding
    with the fast DCT; "no model, augmented" is the loader with the training's degradations always
    on, beside the same reference.

    Raises:
        UserError: unknown model, bad data or settings.
    """
    for name in models:
        architecture(name)
    check_layout(data)
    rows = []
    sides = _Sides(rounds)
    for name in models:
        chosen = tune(name, profile, log=log)
        for phase, function in (("train", _train), ("score", _score)):
            ours = function, name, data, chosen, batches
            reference = _reference, phase, name, data, profile.image_size, batches
            rates = sides.rates((*ours, False), reference, (*ours, True))
            rows.append(_row(name, phase, rates, "images/s"))
            log(_told(rows[-1]))
    augmented = dataclasses.replace(profile, degradation_probability=1.0)
    for name, chosen in (("no model", None), ("no model, augmented", augmented)):
        size = profile.image_size
        ours, reference = (_load_ours, data, chosen, size), (_load_reference, data, size)
        rates = sides.rates(ours, reference, (_decode, data))
        rows.append(_row(name, "load", rates, "images/CPU-s"))
        log(_told(rows[-1]))
    return pd.DataFrame(rows, columns=COLUMNS)


class _Sides:
    """Two processes that take turns: the reference's and ours, which measures the limit, too."""

    def __init__(self, rounds: int):
        spawn = multiprocessing.get_context("spawn")
        self.reference, self.ours = (ProcessPoolExecutor(1, spawn) for _ in range(2))
        self.rounds = rounds

    def rates(self, ours: tuple, reference: tuple, limit: tuple) -> tuple[float, float, float]:
        """Call each side's function with its arguments, in turn; return the medians."""
        calls = (self.ours, ours), (self.reference, reference), (self.ours, limit)
        rounds = [
            [pool.submit(*call).result() for pool, call in calls] for _ in range(self.rounds + 1)
        ]
        # The first round makes models and fills caches.
        return tuple(median(column) for column in zip(*rounds[1:], strict=True))


def _row(model: str, phase: str, rates: tuple[float, float, float], unit: str) -> dict:
    ours, reference, limit = rates
    values = model, phase, ours, reference, limit, unit, ours / reference, ours / limit
    return dict(zip(COLUMNS, values, strict=True))


def markdown(table: pd.DataFrame) -> str:
    """Return the table as docs/benchmarks.md shows it."""
    shown = table.assign(
        ratio=table["ratio"].map("{:.2f}".format),
        share_of_limit=table["share_of_limit"].map("{:.0%}".format),
        **{side: table[side].map("{:.1f}".format) for side in ("ours", "reference", "limit")},
    )
    lines = [shown.columns.str.replace("_", " "), ["---"] * len(COLUMNS), *shown.to_numpy()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _told(row: dict) -> str:
    return (
        f"{row['model']}, {row['phase']}: {row['ours']:.1f} {row['unit']}, "
        f"{row['ratio']:.2f} times the reference's {row['reference']:.1f}, "
        f"{row['share_of_limit']:.0%} of the limit's {row['limit']:.1f}"
    )


# What follows runs in the sides' own processes.


@cache
def _training(name: str, data: Path, profile: Profile) -> Training:
    return prepare(name, data, profile, lambda line: None)


class _Enough(Exception):  # noqa: N818  (no error)
    pass


def _epoch(training: Training, batches: int) -> float:
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


def _train(name: str, data: Path, profile: Profile, batches: int, on_device: bool) -> float:
    training = _training(name, data, profile)
    if on_device:
        loader = _OnDevice(training.train_loader, batches)
        training = dataclasses.replace(training, train_loader=loader)
    return _epoch(training, batches)


def _score(name: str, data: Path, profile: Profile, batches: int, on_device: bool) -> float:
    loader = _scoring_loader(name, data, profile, batches)
    if on_device:
        loader = _OnDevice(loader, len(loader))
    training = _training(name, data, profile)
    model = _scorer(name, data, profile)
    start = time.perf_counter()
    labels, _ = evaluate_epoch(model, loader, training.accelerator)
    return len(labels) / (time.perf_counter() - start)


@cache
def _scorer(name: str, data: Path, profile: Profile) -> nn.Module:
    return fused(_training(name, data, profile).averaged.module.eval())


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


def _reference(phase: str, name: str, data: Path, image_size: int, batches: int) -> float:
    files = _files(data, batches * course_loop.BATCH_SIZE)
    run = course_loop.train if phase == "train" else course_loop.score
    return len(files) / run(name, files, image_size)


def _load_reference(data: Path, image_size: int) -> float:
    files = _files(data, LOADED)
    return len(files) / course_loop.load(files, image_size)


@cache
def _loader(data: Path, profile: Profile | None, image_size: int) -> DataLoader:
    transform = train_transform(profile) if profile else eval_transform(image_size)
    dataset = load_split(data, SPLITS[0], transform, seed=0).every(LOADED)
    return data_loader(dataset, 32, num_workers=1, persistent=True)


def _load_ours(data: Path, profile: Profile | None, image_size: int) -> float:
    loader = _loader(data, profile, image_size)
    start = _cpu_seconds()
    images = sum(len(labels) for _, labels in loader)
    return images / (_cpu_seconds() - start)


def _cpu_seconds() -> float:
    """CPU time of this process and of its workers, which live on between two passes."""
    workers = psutil.Process().children(recursive=True)
    return time.process_time() + sum(sum(worker.cpu_times()[:2]) for worker in workers)


def _decode(data: Path) -> float:
    files = _files(data, LOADED)
    contents = [path.read_bytes() for path, _ in files]
    contents = [content for content in contents if simplejpeg.is_jpeg(content)]
    start = time.process_time()
    for content in contents:
        simplejpeg.decode_jpeg(content, fastdct=True, fastupsample=True)
    return len(contents) / (time.process_time() - start)
