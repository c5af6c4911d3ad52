"""When a training saves, and what ends it early: SIGTERM, Ctrl-C or its time limit."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType

from dfd_utils.config import START_TIME_ENV, Profile, RunInterrupted, TimeLimitReached
from dfd_utils.runtime.distributed import max_across_processes, process_state

RESERVE = 0.01  # share of the time limit that is kept for the last checkpoint


class Action(IntEnum):
    """What to do after a step; if processes differ, the highest counts."""

    CONTINUE = 0
    SAVE = 1
    STOP_TIME_LIMIT = 2
    STOP_SIGTERM = 3
    STOP_CTRL_C = 4


def deadline(profile: Profile) -> float:
    """Return the time at which the run must end, in seconds since 1970; without limit infinity."""
    if profile.max_hours is None:
        return float("inf")
    return float(os.environ.get(START_TIME_ENV) or time.time()) + profile.max_hours * 3600


class Interrupted(BaseException):
    """A signal arrived during work that may be interrupted."""


class StopMonitor:
    """Decides after each step whether to continue, to save, or to save and stop.

    As a context manager it defers SIGTERM and Ctrl-C to the end of the running step or checkpoint.
    A second Ctrl-C interrupts at once.
    """

    def __init__(self, profile: Profile):
        self.deadline = deadline(profile)
        self._stop_at = self.deadline - RESERVE * 3600 * (profile.max_hours or 0)
        self._pause = profile.checkpoint_minutes * 60
        self._last_save = time.monotonic()
        self._requested = Action.CONTINUE
        self._interrupt_now = False

    def __enter__(self) -> "StopMonitor":
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        # A signal to the whole process group ends the loader's workers, too; torch then raises a
        # RuntimeError with this text. No other error (out of memory, for example) is hidden.
        if (
            self._requested != Action.CONTINUE
            and isinstance(error, RuntimeError)
            and str(error).startswith("DataLoader worker")
        ):
            self.end(None, "the same command continues from the last checkpoint")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._requested == Action.STOP_CTRL_C and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._requested = Action.STOP_CTRL_C if number == signal.SIGINT else Action.STOP_SIGTERM
        if self._interrupt_now:
            raise Interrupted

    def next_action(self, step: int) -> Action:
        """Return what to do after a step, the same for all processes."""
        action = self._requested
        if action == Action.CONTINUE and time.time() > self._stop_at:
            action = Action.STOP_TIME_LIMIT
        if action == Action.CONTINUE and time.monotonic() - self._last_save >= self._pause:
            action = Action.SAVE
        return Action(max_across_processes(action, step))

    def saved(self) -> None:
        """Restart the time to the next checkpoint."""
        self._last_save = time.monotonic()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal interrupt the work inside, which must not change the training's state."""
        if self._requested >= Action.STOP_TIME_LIMIT and process_state().num_processes == 1:
            raise Interrupted
        self._interrupt_now = process_state().num_processes == 1
        try:
            yield
        finally:
            self._interrupt_now = False

    def end(self, action: Action | None, message: str) -> None:
        """Raise TimeLimitReached, RunInterrupted or KeyboardInterrupt, by the action."""
        action = action or self._requested
        if action == Action.STOP_CTRL_C:
            raise KeyboardInterrupt(message)
        if action == Action.STOP_TIME_LIMIT:
            raise TimeLimitReached(f"the time limit (max_hours) is reached: {message}")
        raise RunInterrupted(f"stopped by SIGTERM: {message}")
