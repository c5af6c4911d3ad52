"""How long a study takes on this machine: a few real steps of each model, scaled up."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torch.utils.data import DataLoader

from dfd_utils.checkpoint import TrainingState, save_checkpoint
from dfd_utils.config import BUILD_DIR, SPLITS, Profile
from dfd_utils.dataset import check_layout, load_split
from dfd_utils.interrupt import RESERVE
from dfd_utils.models import architecture
from dfd_utils.precision import resolve_precision
from dfd_utils.progress import duration
from dfd_utils.recipe import prepare
from dfd_utils.train import evaluate_epoch, train_one_epoch

WARM_UP = 3  # steps: the first are slow, or fed from what the loader read ahead
SECONDS = 15  # of measuring, for training and for scoring each


@dataclass(frozen=True)
class Pace:
    """What one model costs on this machine, in seconds."""

    start: float  # until the first batch is there
    step: float  # of training, a batch
    batch: float  # of scoring, two training batches large
    checkpoint: float
    steps: int  # of an epoch
    validation_batches: int
    test_batches: float

    @property
    def epoch(self) -> float:
        """One epoch: training, judging on Validation, saving."""
        validation = self.start + self.validation_batches * self.batch
        return self.start + self.steps * self.step + validation + self.checkpoint

    @property
    def evaluation(self) -> float:
        """Scoring Test."""
        return self.start + self.test_batches * self.batch


class _Enough(Exception):  # noqa: N818  (no error)
    pass


class _Clock:
    """Time stamps of steps, for `SECONDS` after the warm-up."""

    def __init__(self):
        self.begun, self.stamps = time.perf_counter(), []

    def tick(self) -> bool:
        self.stamps.append(time.perf_counter())
        measured = self.stamps[-1] - self.stamps[min(WARM_UP, len(self.stamps)) - 1]
        return measured > SECONDS

    @property
    def step(self) -> float:
        """Mean seconds a step after the warm-up, or of all steps where they are few."""
        first = min(WARM_UP, len(self.stamps) - 1)
        if first < 1:
            return self.stamps[-1] - self.begun
        return (self.stamps[-1] - self.stamps[first - 1]) / (len(self.stamps) - first)

    @property
    def start(self) -> float:
        return max(0.0, self.stamps[0] - self.begun - self.step)


def measure(
    model_name: str, data: Path, profile: Profile, log: Callable[[str], None] = print
) -> Pace:
    """Train and score a few batches of the real data; return what everything costs.

    Raises:
        UserError: unknown model, bad data or settings.
    """
    architecture(model_name)
    check_layout(data)
    profile = resolve_precision(model_name, profile, log)
    training = prepare(model_name, data, profile, lambda line: None)
    state = TrainingState(training.accelerator)
    training.accelerator.register_for_checkpointing(training.averaged, state)
    clock = _Clock()

    def after_step() -> None:
        if clock.tick():
            raise _Enough

    with suppress(_Enough):
        train_one_epoch(training, state, after_step)
    scoring = _Clock()
    batches = _first(training.validation_loader, scoring)
    evaluate_epoch(training.averaged.module, batches, training.accelerator)
    BUILD_DIR.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD_DIR) as folder:
        save_checkpoint(training.accelerator, state, Path(folder), log)
    test_images = len(load_split(data, SPLITS[2]))
    return Pace(
        start=clock.start,
        step=clock.step,
        batch=scoring.step,
        checkpoint=state.checkpoint_seconds,
        steps=len(training.train_loader),
        validation_batches=len(training.validation_loader),
        test_batches=test_images / (2 * profile.batch_size),
    )


def _first(loader: DataLoader, clock: _Clock) -> Iterator:
    for batch in loader:
        yield batch
        if clock.tick():
            return


def plan(
    models: list[str],
    data: Path,
    profile: Profile,
    run: Path | None = None,
    log: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Predict the time of a study and how many epochs of all models fit; return a row a model.

    The study is the training of every model and the scoring of Test; importing, audit, figures
    and the report come on top (a few minutes). Epochs that the folder `run` already holds are
    taken off. Columns: `train_images_per_second`, `score_images_per_second`, `epoch_seconds`,
    `epochs` (still to do), `seconds` (of them and of the evaluation).
    """
    rows = []
    for name in models:
        pace = measure(name, data, profile, log)
        history = run / name / "history.csv" if run else None
        done = len(pd.read_csv(history)) if history and history.is_file() else 0
        epochs = max(0, profile.epochs - done)
        rows.append({
            "model": name,
            "train_images_per_second": profile.batch_size / pace.step,
            "score_images_per_second": 2 * profile.batch_size / pace.batch,
            "epoch_seconds": pace.epoch,
            "epochs": epochs,
            "seconds": epochs * pace.epoch + pace.evaluation,
            "evaluation_seconds": pace.evaluation,
        })  # fmt: skip
    table = pd.DataFrame(rows).set_index("model")
    for row in table.itertuples():
        log(
            f"{row.Index}: training {row.train_images_per_second:.0f} images/s, scoring "
            f"{row.score_images_per_second:.0f} images/s; {duration(row.epoch_seconds)} an epoch, "
            f"{duration(row.seconds)} for {row.epochs} epochs and the evaluation"
        )
    log(f"the study: {duration(table['seconds'].sum())}, and some minutes for the report")
    if profile.max_hours is not None:
        log(_verdict(table, profile.max_hours))
    return table


def _verdict(table: pd.DataFrame, hours: float) -> str:
    left = hours * 3600 * (1 - RESERVE) - table["evaluation_seconds"].sum()
    fitting = max(0, int(left // table["epoch_seconds"].sum()))
    wanted = int(table["epochs"].max())
    which = " of all models" if len(table) > 1 else ""
    told = f"{hours:g} h hold {fitting} epochs{which} with evaluation"
    if table["seconds"].sum() <= hours * 3600 * (1 - RESERVE):
        return f"{told}: the {wanted} to do fit"
    return (
        f"warning: {told}, not the {wanted} to do: the run will stop in good order, "
        "and the same command goes on"
    )
