"""The time of a study on this machine, extrapolated from a few real steps of each model."""

import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
from torch.utils.data import DataLoader

from dfd_utils.config import BUILD_DIR, SPLITS, Profile
from dfd_utils.data.folder import DataFolder
from dfd_utils.models.registry import available_weights
from dfd_utils.models.scoring import predict_logits
from dfd_utils.runtime.files import format_duration
from dfd_utils.training.autotune import autotune
from dfd_utils.training.checkpoint import CheckpointWriter, TrainingState
from dfd_utils.training.components import build_components
from dfd_utils.training.interruption import RESERVE
from dfd_utils.training.train import train_one_epoch

WARM_UP = 3  # steps that are not representative: slow, or with prefetched batches
SECONDS = 15  # to measure training, and again to measure scoring


class _StopMeasuring(Exception):  # noqa: N818  (no error)
    pass


class Clock:
    """Time stamps of the first steps of a pass, in seconds; `now` returns the time."""

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self.now, self.start, self.stamps = now, now(), []

    def tick(self) -> bool:
        """Record the end of a step; return whether there are enough of them."""
        self.stamps.append(self.now())
        return self.stamps[-1] - self.stamps[min(WARM_UP, len(self.stamps)) - 1] > SECONDS

    @property
    def step(self) -> float:
        """Mean seconds per step, without the first ones if there are enough."""
        first = min(WARM_UP, len(self.stamps) // 2)
        before = self.stamps[first - 1] if first else self.start
        return (self.stamps[-1] - before) / (len(self.stamps) - first)

    def extrapolate(self, steps: float) -> float:
        """Return the seconds of a pass of `steps` steps: the measured ones, then the mean."""
        return self.stamps[-1] - self.start + max(0.0, steps - len(self.stamps)) * self.step


def measure(
    model_name: str, data: DataFolder, profile: Profile, log: Callable[[str], None] = print
) -> dict[str, float]:
    """Train and score a few batches of the real data, and extrapolate.

    Returns:
        `train_images_per_second`, `score_images_per_second`, `epoch_seconds` (training, validation
        and checkpoint) and `evaluation_seconds` (scoring Test).

    Raises:
        UserError: unknown model, bad data or settings.
    """
    data.check_layout()
    weights = available_weights(model_name, profile.weights, log)
    profile = autotune(model_name, dataclasses.replace(profile, weights=weights), log)
    training = build_components(model_name, data, profile)
    state = TrainingState(training.accelerator)
    clock = Clock()

    def after_step() -> None:
        if clock.tick():
            raise _StopMeasuring

    with suppress(_StopMeasuring):
        train_one_epoch(training, state, after_step)
    scoring = Clock()
    batches = _first(training.validation_loader, scoring)
    predict_logits(training.ema_model.module, batches, training.accelerator)
    BUILD_DIR.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=BUILD_DIR) as folder,
        CheckpointWriter(training, state, Path(folder), log) as writer,
    ):
        writer.save()
    training.shutdown_workers()
    train_seconds = clock.extrapolate(len(training.train_loader))
    validation_seconds = scoring.extrapolate(len(training.validation_loader))
    test_steps = len(data.split(SPLITS[2])) / (2 * profile.batch_size)
    return {
        "train_images_per_second": profile.batch_size / clock.step,
        "score_images_per_second": 2 * profile.batch_size / scoring.step,
        "epoch_seconds": train_seconds + validation_seconds + state.checkpoint_seconds,
        "evaluation_seconds": scoring.extrapolate(test_steps),
    }


def _first(loader: DataLoader, clock: Clock) -> Iterator:
    for batch in loader:
        yield batch
        if clock.tick():
            return


def plan(
    models: list[str],
    data: DataFolder,
    profile: Profile,
    run: Path | None = None,
    log: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Estimate the time of a study and how many epochs of all models fit; return a row per model.

    A study trains each model in a process of its own and scores Test in another one; audit, figures
    and the report add a few minutes. Epochs that the folder `run` already contains are not counted.

    Columns: those of `measure`, `epochs` (that remain), `seconds` (for them and the evaluation) and
    `fixed_seconds` (the part of `seconds` that does not depend on the epochs).

    Raises:
        UserError: unknown model, bad data or settings.
    """
    rows = []
    begin, root = time.perf_counter(), Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", "import dfd_utils.training.train"], cwd=root, check=True)
    start = time.perf_counter() - begin  # seconds that a process takes to start
    for name in models:
        history = run / name / "history.csv" if run else None
        done = len(pd.read_csv(history)) if history and history.is_file() else 0
        rows.append({"model": name, **measure(name, data, profile, log)})
        rows[-1]["epochs"] = max(0, profile.epochs - done)
    table = pd.DataFrame(rows).set_index("model")
    table["fixed_seconds"] = table["evaluation_seconds"] + start
    table["seconds"] = table["epochs"] * table["epoch_seconds"] + table["fixed_seconds"]
    total = table["seconds"].sum() + start
    for row in table.itertuples():
        log(
            f"{row.Index}: training {row.train_images_per_second:.0f} images/s, scoring "
            f"{row.score_images_per_second:.0f} images/s; {format_duration(row.epoch_seconds)} "
            f"per epoch, {format_duration(row.seconds)} for {row.epochs} epochs and the evaluation"
        )
    log(f"the study: {format_duration(total)}, plus a few minutes for the report")
    if profile.max_hours is not None:
        log(_fit_message(table, total, profile.max_hours))
    return table


def _fit_message(table: pd.DataFrame, total: float, hours: float) -> str:
    budget = hours * 3600 * (1 - RESERVE)
    epoch_budget = budget - (total - (table["epochs"] * table["epoch_seconds"]).sum())
    fitting = max(0, int(epoch_budget // table["epoch_seconds"].sum()))
    remaining = int(table["epochs"].max())
    of_all = " of all models" if len(table) > 1 else ""
    message = f"{fitting} epochs{of_all} with evaluation fit into {hours:g} h"
    if total <= budget:
        return f"{message}: the {remaining} that remain fit"
    return (
        f"warning: {message}, but {remaining} remain: the run will stop with a checkpoint, "
        "and the same command continues it"
    )
