"""How long a study takes on this machine: a few real steps of each model, scaled up."""

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

from dfd_utils.checkpoint import CheckpointWriter, TrainingState
from dfd_utils.config import BUILD_DIR, SPLITS, Profile, duration
from dfd_utils.dataset import check_layout, load_split
from dfd_utils.interrupt import RESERVE
from dfd_utils.models import architecture
from dfd_utils.recipe import prepare
from dfd_utils.train import evaluate_epoch, train_one_epoch
from dfd_utils.tuning import tune

WARM_UP = 3  # steps: the first are slow, or fed from what the loader read ahead
SECONDS = 15  # of measuring, for training and for scoring each


@dataclass(frozen=True)
class Pace:
    """What one model costs on this machine, in seconds, and its rates in images a second."""

    training: float  # one pass over Train
    validation: float  # one pass over Validation
    evaluation: float  # one pass over Test
    checkpoint: float
    train_rate: float
    score_rate: float

    @property
    def epoch(self) -> float:
        """One epoch: training, judging on Validation, saving."""
        return self.training + self.validation + self.checkpoint


class _Enough(Exception):  # noqa: N818  (no error)
    pass


class Clock:
    """Time stamps of the first steps of a pass, in seconds; `now` is the clock that is read."""

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self.now, self.begun, self.stamps = now, now(), []

    def tick(self) -> bool:
        """Note the end of a step; return whether enough of them were seen."""
        self.stamps.append(self.now())
        return self.stamps[-1] - self.stamps[min(WARM_UP, len(self.stamps)) - 1] > SECONDS

    @property
    def step(self) -> float:
        """Mean seconds a step, the first ones left out where there are enough."""
        first = min(WARM_UP, len(self.stamps) // 2)
        before = self.stamps[first - 1] if first else self.begun
        return (self.stamps[-1] - before) / (len(self.stamps) - first)

    def whole(self, steps: float) -> float:
        """Seconds of a pass of so many steps: those seen as they were, the others as the mean."""
        return self.stamps[-1] - self.begun + max(0.0, steps - len(self.stamps)) * self.step


def measure(
    model_name: str, data: Path, profile: Profile, log: Callable[[str], None] = print
) -> Pace:
    """Train and score a few batches of the real data; return what everything costs.

    Raises:
        UserError: unknown model, bad data or settings.
    """
    architecture(model_name)
    check_layout(data)
    profile = tune(model_name, profile, log=log)
    training = prepare(model_name, data, profile, lambda line: None)
    state = TrainingState(training.accelerator)
    clock = Clock()

    def after_step() -> None:
        if clock.tick():
            raise _Enough

    with suppress(_Enough):
        train_one_epoch(training, state, after_step)
    scoring = Clock()
    batches = _first(training.validation_loader, scoring)
    evaluate_epoch(training.averaged.module, batches, training.accelerator)
    BUILD_DIR.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=BUILD_DIR) as folder,
        CheckpointWriter(training, state, Path(folder), log) as writer,
    ):
        writer.save()
    training.end_workers()
    test_images = len(load_split(data, SPLITS[2]))
    return Pace(
        training=clock.whole(len(training.train_loader)),
        validation=scoring.whole(len(training.validation_loader)),
        evaluation=scoring.whole(test_images / (2 * profile.batch_size)),
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
    """Return what a process takes to start and to import what trains."""
    start, place = time.perf_counter(), Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", "import dfd_utils.train"], cwd=place, check=True)
    return time.perf_counter() - start


def plan(
    models: list[str],
    data: Path,
    profile: Profile,
    run: Path | None = None,
    log: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Predict the time of a study and how many epochs of all models fit; return a row a model.

    The study is the training of every model, each in a process of its own, and the scoring of
    Test in another; audit, figures and the report come on top (a few minutes). Epochs that the
    folder `run` already holds are taken off. Columns: `train_images_per_second`,
    `score_images_per_second`, `epoch_seconds`, `epochs` (still to do), `seconds` (of them and of
    the evaluation), `fixed_seconds` (whatever the epochs).

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
            f"{row.score_images_per_second:.0f} images/s; {duration(row.epoch_seconds)} an epoch, "
            f"{duration(row.seconds)} for {row.epochs} epochs and the evaluation"
        )
    log(f"the study: {duration(total)}, and some minutes for the report")
    if profile.max_hours is not None:
        log(_verdict(table, total, profile.max_hours))
    return table


def _verdict(table: pd.DataFrame, total: float, hours: float) -> str:
    budget = hours * 3600 * (1 - RESERVE)
    left = budget - (total - (table["epochs"] * table["epoch_seconds"]).sum())
    fitting = max(0, int(left // table["epoch_seconds"].sum()))
    wanted = int(table["epochs"].max())
    which = " of all models" if len(table) > 1 else ""
    told = f"{hours:g} h hold {fitting} epochs{which} with evaluation"
    if total <= budget:
        return f"{told}: the {wanted} to do fit"
    return (
        f"warning: {told}, not the {wanted} to do: the run will stop in good order, "
        "and the same command goes on"
    )
