"""How fast training, scoring and loading are on this machine.

    dfd bench [--data DIR] [--models A,B] [--json FILE]

This project is measured beside the course project's loop (the reference) and beside the same steps
on data that is already on the device (the limit). The reference and this project run in turn, each
in a process of its own, because memory settings apply to a whole process.
"""

import dataclasses
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from statistics import median

import pandas as pd

from benchmarks import speed_phases
from dfd_utils.config import Profile
from dfd_utils.data.folder import DataFolder
from dfd_utils.models.registry import get_architecture
from dfd_utils.training.autotune import autotune

COLUMNS = ["model", "phase", "ours", "reference", "limit", "unit", "ratio", "share_of_limit"]


def bench(
    models: list[str],
    data: DataFolder,
    profile: Profile,
    batches: int = 8,
    rounds: int = 3,
    log: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Measure every phase of every model; return a row per phase, medians over the rounds.

    Columns: `model`; `phase` (train, score or load); `ours`, `reference` and `limit` in `unit`;
    `ratio` (ours / reference); `share_of_limit` (ours / limit). Training and scoring are whole
    small epochs of `batches` batches, including the start of the loaders, in images/s. Loading is
    counted in images per second of CPU time, workers included; its limit is the bare decoding of
    libjpeg-turbo with the fast DCT. "no model, augmented" is the loader with the training's
    degradations always on, beside the same reference.

    Raises:
        UserError: unknown model, bad data or settings.
    """
    for name in models:
        get_architecture(name)
    data.check_layout()
    path, size = data.path, profile.image_size
    augmented = dataclasses.replace(profile, degradation_probability=1.0)
    rows = []

    def add(model: str, phase: str, rates: tuple[float, float, float], unit: str) -> None:
        rows.append(_row(model, phase, rates, unit))
        log(_message(rows[-1]))

    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as own, ProcessPoolExecutor(1, spawn) as other:
        measure = partial(_measure, own, other, rounds)
        for name in models:
            tuned = autotune(name, profile, log)
            for phase in ("train", "score"):
                ours = getattr(speed_phases, phase), name, path, tuned, batches
                reference = speed_phases.reference, phase, name, path, size, batches
                add(name, phase, measure((*ours, False), reference, (*ours, True)), "images/s")
        for name, training in (("no model", None), ("no model, augmented", augmented)):
            ours = speed_phases.load_ours, path, training, size
            reference = speed_phases.load_reference, path, size
            add(name, "load", measure(ours, reference, (speed_phases.decode, path)), "images/CPU-s")
    return pd.DataFrame(rows, columns=COLUMNS)


def _measure(
    own_process: ProcessPoolExecutor,
    reference_process: ProcessPoolExecutor,
    rounds: int,
    ours: tuple,
    reference: tuple,
    limit: tuple,
) -> tuple[float, float, float]:
    """Call each function with its arguments, in turn, in its process; return the medians."""
    calls = (own_process, ours), (reference_process, reference), (own_process, limit)
    results = [[pool.submit(*call).result() for pool, call in calls] for _ in range(rounds + 1)]
    # The first round builds the models and fills caches.
    return tuple(median(column) for column in zip(*results[1:], strict=True))


def _row(model: str, phase: str, rates: tuple[float, float, float], unit: str) -> dict:
    ours, reference, limit = rates
    values = model, phase, ours, reference, limit, unit, ours / reference, ours / limit
    return dict(zip(COLUMNS, values, strict=True))


def _message(row: dict) -> str:
    return (
        f"{row['model']}, {row['phase']}: {row['ours']:.1f} {row['unit']}, "
        f"{row['ratio']:.2f} times the reference's {row['reference']:.1f}, "
        f"{row['share_of_limit']:.0%} of the limit's {row['limit']:.1f}"
    )


def markdown(table: pd.DataFrame) -> str:
    """Return the table in the format of docs/benchmarks.md."""
    formatted = table.assign(
        ratio=table["ratio"].map("{:.2f}".format),
        share_of_limit=table["share_of_limit"].map("{:.0%}".format),
        **{side: table[side].map("{:.1f}".format) for side in ("ours", "reference", "limit")},
    )
    header = formatted.columns.str.replace("_", " ")
    lines = [header, ["---"] * len(COLUMNS), *formatted.to_numpy()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
