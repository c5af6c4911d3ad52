"""The progress of a training: a bar on a screen, or a line every few minutes in a log."""

import os
import sys
import time
from collections.abc import Callable

from tqdm.auto import tqdm  # a widget in JupyterLab

from dfd_utils.runtime.files import format_duration
from dfd_utils.training.checkpoint import TrainingState

REFRESH_SECONDS = 2.0  # between two readings of the loss, each of which waits for the device
LINE_MINUTES = 5.0  # between two lines within an epoch where there is no bar


def is_watched() -> bool:
    """Return whether the output goes to a terminal or to a notebook that is open in JupyterLab.

    Not under papermill, where a bar would fill the executed notebook.
    """
    return sys.stderr.isatty() or in_jupyterlab()


def in_jupyterlab() -> bool:
    """Return whether this notebook is open in JupyterLab."""
    return "JPY_SESSION_NAME" in os.environ  # set for a kernel that the Jupyter server started


class Progress:
    """Reports the step, the loss, images per second and the time to the end of the training.

    Args:
        name: of the model.
        epochs: of the whole training.
        steps: per epoch.
        batch_size: images per step, over all processes.
        deadline: in seconds since 1970; a line warns once if the training will not end by then.
        log: called with each line; None reports nothing (in all processes but the main one).
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
        """Begin to report the epoch that the state is in."""
        self.title = f"{self.name} epoch {state.epoch}/{self.epochs}"
        self.start = None
        if self.log:
            self.bar = tqdm(
                total=self.steps, initial=state.step, desc=self.title, unit="step",
                leave=False, disable=not is_watched(),
            )  # fmt: skip

    def step(self, state: TrainingState) -> None:
        """Report a step that is done."""
        if self.log is None:
            return
        self.bar.update()
        now = time.monotonic()
        if self.start is None:  # the first step is not timed: it waits for the workers to start
            self.first = state.step
            self.start = self.refreshed = self.last_line = now
        if now - self.refreshed < REFRESH_SECONDS:
            return
        self.refreshed = now
        rate = (state.step - self.first) / (now - self.start)
        left = self._seconds_left(state, rate)
        loss = float(state.loss_sum) / state.images
        message = (
            f"loss {loss:.3f}, {rate * self.batch_size:.0f} images/s, {format_duration(left)} left"
        )
        self.bar.set_postfix_str(message, refresh=False)
        if not is_watched() and now - self.last_line >= LINE_MINUTES * 60:
            self.last_line = now
            self.log(f"{self.title}, step {state.step}/{self.steps}: {message}")
        if now - self.start > 60 and time.time() + left > self.deadline and not self.warned:
            self.warned = True
            hours = max(0.0, self.deadline - time.time()) / 3600
            self.log(
                f"{self.name}: {self.epochs} epochs take about {format_duration(left)} from here, "
                f"and {hours:.1f} h are left; the same command trains the missing epochs later"
            )

    def end(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()

    def _seconds_left(self, state: TrainingState, rate: float) -> float:
        epochs_after = self.epochs - state.epoch
        images = self.steps * self.batch_size
        # Validation and checkpoints, per epoch so far.
        other = [row["seconds"] - images / row["images_per_second"] for row in state.rows]
        other_seconds = sum(other) / len(other) * (epochs_after + 1) if other else 0.0
        return (self.steps - state.step + epochs_after * self.steps) / rate + other_seconds
