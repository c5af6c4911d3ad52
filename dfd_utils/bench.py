"""How fast training, scoring and loading are on this machine: `dfd bench`.

Ours is measured beside the course project's loop (the reference) and beside the same steps on
data that lie on the device already (the limit). Reference and ours live in processes of their own,
for memory settings hold for a whole process, and take turns.
"""

import dataclasses
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import pandas as pd
import simplejpeg
import torch
from torch.utils.data import DataLoader

from dfd_utils import course_loop
from dfd_utils.checkpoint import TrainingState
from dfd_utils.config import SPLITS, Profile
from dfd_utils.dataset import check_layout, data_loader, load_split
from dfd_utils.models import architecture
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
    for name in models:
        chosen = tune(name, profile, log=log)
        for phase in ("train", "score"):
            rates = _in_turn(name, phase, data, chosen, batches, rounds)
            rows.append(_row(name, phase, rates, "images/s"))
            log(_told(rows[-1]))
    augmented = dataclasses.replace(profile, degradation_probability=1.0)
    for name, chosen in (("no model", None), ("no model, augmented", augmented)):
        sides = {
            "ours": (_load_ours, data, chosen, profile.image_size),
            "reference": (_load_reference, data, profile.image_size),
            "limit": (_decode, data),
        }
        rows.append(_row(name, "load", _rates(sides, rounds), "images/CPU-s"))
        log(_told(rows[-1]))
    return pd.DataFrame(rows, columns=COLUMNS)


def markdown(table: pd.DataFrame) -> str:
    """Return the table as docs/benchmarks.md shows it."""
    shown = table.assign(
        ratio=table["ratio"].map("{:.2f}".format),
        share_of_limit=table["share_of_limit"].map("{:.0%}".format),
        **{side: table[side].map("{:.1f}".format) for side in ("ours", "reference", "limit")},
    )
    lines = [shown.columns.str.replace("_", " "), ["---"] * len(COLUMNS), *shown.to_numpy()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _in_turn(
    name: str, phase: str, data: Path, profile: Profile, batches: int, rounds: int
) -> dict[str, list[float]]:
    ours = (name, data, profile, batches)
    sides = {
        "ours": (_train if phase == "train" else _score, *ours),
        "limit": (_train_limit if phase == "train" else _score_limit, *ours),
        "reference": (_reference, phase, name, data, profile.image_size, batches),
    }
    return _rates(sides, rounds)


def _rates(sides: dict[str, tuple], rounds: int) -> dict[str, list[float]]:
    """Call each side's function in turn; return the rates of all rounds, the first left out."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as other, ProcessPoolExecutor(1, spawn) as own:
        pools = {side: other if side == "reference" else own for side in sides}
        rates = {side: [] for side in sides}
        for number in range(rounds + 1):  # the first round makes models, and fills caches
            for side, (function, *arguments) in sides.items():
                rate = pools[side].submit(function, *arguments).result()
                if number:
                    rates[side].append(rate)
    return rates


def _row(model: str, phase: str, rates: dict[str, list[float]], unit: str) -> dict:
    ours, reference, limit = (median(rates[side]) for side in ("ours", "reference", "limit"))
    values = model, phase, ours, reference, limit, unit, ours / reference, ours / limit
    return dict(zip(COLUMNS, values, strict=True))


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
        self.dataset = SimpleNamespace()

    def set_epoch(self, epoch: int) -> None:
        pass

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator:
        return iter([self.batch] * self.batches)


def _train(name: str, data: Path, profile: Profile, batches: int) -> float:
    return _epoch(_training(name, data, profile), batches)


def _train_limit(name: str, data: Path, profile: Profile, batches: int) -> float:
    training = _training(name, data, profile)
    on_device = _OnDevice(training.train_loader, batches)
    return _epoch(dataclasses.replace(training, train_loader=on_device), batches)


def _score(name: str, data: Path, profile: Profile, batches: int) -> float:
    return _scored(_training(name, data, profile), _scoring_loader(name, data, profile, batches))


def _score_limit(name: str, data: Path, profile: Profile, batches: int) -> float:
    loader = _scoring_loader(name, data, profile, batches)
    return _scored(_training(name, data, profile), _OnDevice(loader, len(loader)))


def _scoring_loader(name: str, data: Path, profile: Profile, batches: int) -> DataLoader:
    """Make a loader of Train images, for Validation may be too small to measure on."""
    size = 2 * profile.batch_size
    dataset = load_split(data, SPLITS[0], eval_transform(profile.image_size)).every(batches * size)
    return _training(name, data, profile).accelerator.prepare(data_loader(dataset, size))


def _scored(training: Training, loader: DataLoader) -> float:
    start = time.perf_counter()
    labels, _ = evaluate_epoch(training.averaged.module, loader, training.accelerator)
    return len(labels) / (time.perf_counter() - start)


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


def _load_ours(data: Path, profile: Profile | None, image_size: int) -> float:
    transform = train_transform(profile) if profile else eval_transform(image_size)
    dataset = load_split(data, SPLITS[0], transform, seed=0).every(LOADED)
    start = _cpu_seconds()
    images = sum(len(labels) for _, labels in data_loader(dataset, 32, num_workers=1))
    return images / (_cpu_seconds() - start)


def _cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    both = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return sum(sum(resource.getrusage(who)[:2]) for who in both)


def _decode(data: Path) -> float:
    files = _files(data, LOADED)
    contents = [path.read_bytes() for path, _ in files]
    contents = [content for content in contents if simplejpeg.is_jpeg(content)]
    start = time.process_time()
    for content in contents:
        simplejpeg.decode_jpeg(content, fastdct=True, fastupsample=True)
    return len(contents) / (time.process_time() - start)
