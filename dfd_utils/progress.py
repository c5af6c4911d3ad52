"""What a person sees of a training: a bar on a screen, a line now and then in a log."""

import os
import sys
import time
from collections.abc import Callable

from tqdm.auto import tqdm  # a widget in JupyterLab

from dfd_utils.checkpoint import TrainingState
from dfd_utils.config import duration

REFRESH_SECONDS = 2.0  # between two looks at the loss: each waits for the device once
LINE_MINUTES = 5.0  # between two lines inside an epoch, where nobody watches a bar


def watched() -> bool:
    """Say whether someone looks on: a terminal, or a notebook opened in JupyterLab.

    Under papermill a kernel has no such session, and a bar would fill the executed notebook.
    """
    return sys.stderr.isatty() or in_jupyterlab()


def in_jupyterlab() -> bool:
    """Return whether a person sits before this notebook, in JupyterLab."""
    return "JPY_SESSION_NAME" in os.environ  # set for a kernel that the Jupyter server started


class Progress:
    """Shows one epoch: step, loss, images a second, and the time left to the end of the training.

    Args:
        name: of the model.
        epochs: of the whole training.
        steps: of an epoch.
        batch_size: images a step, over all processes.
        deadline: in seconds since 1970; a line warns where the training will not end before.
        log: called with each line; None shows nothing at all (all processes but the main one).
    """

    def __init__(
        self,
        name: str,
        epochs: int,
        steps: int,
        batch_size: int,
        deadline: float,
        log: Callable[[str], None] | None,
    ):
        self.name, self.epochs, self.steps, self.batch_size = name, epochs, steps, batch_size
        self.deadline, self.log = deadline, log
        self.warned = False
        self.bar = None

    def begin(self, state: TrainingState) -> None:
        """Start to show the epoch that the state is in."""
        self.title = f"{self.name} epoch {state.epoch}/{self.epochs}"
        self.start = None
        if self.log:
            self.bar = tqdm(
                total=self.steps, initial=state.step, desc=self.title, unit="step",
                leave=False, disable=not watched(),
            )  # fmt: skip

    def step(self, state: TrainingState) -> None:
        """Count a step that was done."""
        if self.log is None:
            return
        self.bar.update()
        now = time.monotonic()
        if self.start is None:  # counted from here: the first step waits for the workers to start
            self.first = state.step
            self.start = self.refreshed = self.told = now
        if now - self.refreshed < REFRESH_SECONDS:
            return
        self.refreshed = now
        rate = (state.step - self.first) / (now - self.start)
        left = self._seconds_left(state, rate)
        loss = float(state.loss_sum) / state.images
        told = f"loss {loss:.3f}, {rate * self.batch_size:.0f} images/s, {duration(left)} left"
        self.bar.set_postfix_str(told, refresh=False)
        if not watched() and now - self.told >= LINE_MINUTES * 60:
            self.told = now
            self.log(f"{self.title}, step {state.step}/{self.steps}: {told}")
        if now - self.start > 60 and time.time() + left > self.deadline and not self.warned:
            self.warned = True
            hours = max(0.0, self.deadline - time.time()) / 3600
            self.log(
                f"{self.name}: {self.epochs} epochs take about {duration(left)} from here, and "
                f"{hours:.1f} h are left; what is missing then, the same command adds later"
            )

    def end(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()

    def _seconds_left(self, state: TrainingState, rate: float) -> float:
        epochs_after = self.epochs - state.epoch
        images = self.steps * self.batch_size
        beside = [row["seconds"] - images / row["images_per_second"] for row in state.rows]
        validation = sum(beside) / len(beside) * (epochs_after + 1) if beside else 0.0
        return (self.steps - state.step + epochs_after * self.steps) / rate + validation
