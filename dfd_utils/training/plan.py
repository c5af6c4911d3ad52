"""How long a study takes on this machine: a few real steps of each model, extrapolated."""

import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torch.utils.data import DataLoader

from dfd_utils.config import BUILD_DIR, SPLITS, Profile
from dfd_utils.data.folder import DataFolder
from dfd_utils.models.registry import available_weights, get_architecture
from dfd_utils.models.scoring import predict_logits
from dfd_utils.runtime.files import format_duration
from dfd_utils.training.autotune import autotune
from dfd_utils.training.checkpoint import CheckpointWriter, TrainingState
from dfd_utils.training.components import build_components
from dfd_utils.training.interruption import RESERVE
from dfd_utils.training.train import train_one_epoch

WARM_UP = 3  # steps: the first are slow, or use batches that the loader has prefetched
SECONDS = 15  # of measuring, for each of training and scoring


@dataclass(frozen=True)
class CostEstimate:
    """The cost of one model on this machine, in seconds, and its rates in images per second."""

    training: float  # one pass over Train
    validation: float  # one pass over Validation
    evaluation: float  # one pass over Test
    checkpoint: float
    train_rate: float
    score_rate: float

    @property
    def epoch(self) -> float:
        """One epoch: training, validation, saving."""
        return self.training + self.validation + self.checkpoint


class _StopMeasuring(Exception):  # noqa: N818  (no error)
    pass


class Clock:
    """Time stamps of the first steps of a pass, in seconds; `now` is the clock that is read."""

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
        """Return the seconds of a pass of `steps` steps: those measured, then the mean."""
        return self.stamps[-1] - self.start + max(0.0, steps - len(self.stamps)) * self.step


def measure(
    model_name: str, data: DataFolder, profile: Profile, log: Callable[[str], None] = print
) -> CostEstimate:
    """Train and score a few batches of the real data; return the cost of everything.

    Raises:
        UserError: unknown model, bad data or settings.
    """
    get_architecture(model_name)
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
    test_images = len(data.split(SPLITS[2]))
    return CostEstimate(
        training=clock.extrapolate(len(training.train_loader)),
        validation=scoring.extrapolate(len(training.validation_loader)),
        evaluation=scoring.extrapolate(test_images / (2 * profile.batch_size)),
        checkpoint=state.checkpoint_seconds,
        train_rate=profile.batch_size / clock.step,
        score_rate=2 * profile.batch_size / scoring.step,
    )


def _first(loader: DataLoader, clock: Clock) -> Iterator:
    for batch in loader:
        yield batch
        if clock.tick():
            return


def _start_seconds() -> float:
    """Return the seconds that a process takes to start and to import the training."""
    start, root = time.perf_counter(), Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", "import dfd_utils.training.train"], cwd=root, check=True)
    return time.perf_counter() - start


def plan(
    models: list[str],
    data: DataFolder,
    profile: Profile,
    run: Path | None = None,
    log: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Predict the time of a study and how many epochs of all models fit; return a row per model.

    The study is the training of every model, each in a process of its own, and the scoring of
    Test in another; audit, figures and the report add a few minutes. Epochs that the folder `run`
    already contains are not counted. Columns: `train_images_per_second`,
    `score_images_per_second`, `epoch_seconds`, `epochs` (still to do), `seconds` (for them and the
    evaluation), `fixed_seconds` (independent of the epochs).

    Raises:
        UserError: unknown model, bad data or settings.
    """
    rows = []
    start = _start_seconds()
    for name in models:
        pace = measure(name, data, profile, log)
        history = run / name / "history.csv" if run else None
        done = len(pd.read_csv(history)) if history and history.is_file() else 0
        epochs = max(0, profile.epochs - done)
        rows.append({
            "model": name,
            "train_images_per_second": pace.train_rate,
            "score_images_per_second": pace.score_rate,
            "epoch_seconds": pace.epoch,
            "epochs": epochs,
            "seconds": epochs * pace.epoch + pace.evaluation + start,
            "fixed_seconds": pace.evaluation + start,
        })  # fmt: skip
    table = pd.DataFrame(rows).set_index("model")
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
    left = budget - (total - (table["epochs"] * table["epoch_seconds"]).sum())
    fitting = max(0, int(left // table["epoch_seconds"].sum()))
    missing = int(table["epochs"].max())
    of_all = " of all models" if len(table) > 1 else ""
    message = f"{fitting} epochs{of_all} with evaluation fit into {hours:g} h"
    if total <= budget:
        return f"{message}: the {missing} to do fit"
    return (
        f"warning: {message}, but {missing} are to do: the run will stop in good order, "
        "and the same command continues it"
    )
