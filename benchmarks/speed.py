"""How fast training, scoring and loading are on this machine: `dfd bench`.

Ours is measured beside the course project's loop (the reference) and beside the same steps on
data that lie on the device already (the limit). Reference and ours live in processes of their own,
for memory settings hold for a whole process, and take turns.
"""

import dataclasses
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

import pandas as pd

from benchmarks import speed_phases
from dfd_utils.config import Profile
from dfd_utils.data.folder import check_layout
from dfd_utils.models.registry import get_architecture
from dfd_utils.training.autotune import tune

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
    with the fast DCT; "no model, augmented" is the loader with the training's degradations
    always on, beside the same reference.

    Raises:
        UserError: unknown model, bad data or settings.
    """
    for name in models:
        get_architecture(name)
    check_layout(data)
    rows = []
    sides = _Sides(rounds)
    for name in models:
        chosen = tune(name, profile, log=log)
        for phase in ("train", "score"):
            ours = getattr(speed_phases, phase), name, data, chosen, batches
            reference = speed_phases.reference, phase, name, data, profile.image_size, batches
            rates = sides.rates((*ours, False), reference, (*ours, True))
            rows.append(_row(name, phase, rates, "images/s"))
            log(_told(rows[-1]))
    augmented = dataclasses.replace(profile, degradation_probability=1.0)
    for name, chosen in (("no model", None), ("no model, augmented", augmented)):
        size = profile.image_size
        ours = speed_phases.load_ours, data, chosen, size
        reference = speed_phases.load_reference, data, size
        rates = sides.rates(ours, reference, (speed_phases.decode, data))
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
