"""What may end a training early: SIGTERM, Ctrl-C, or the hours it was given; and when to save."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dfd_utils.config import STARTED, Profile, Stopped, TimeIsUp
from dfd_utils.processes import highest, processes

RESERVE = 0.01  # share of the hours kept back, for the last checkpoint and a good end
GO_ON, SAVE, STOP_IN_TIME, STOP_ON_TERM, STOP_ON_INT = range(5)


def deadline(profile: Profile) -> float:
    """Return when the run has to end, in seconds since 1970; infinity without `max_hours`."""
    if profile.max_hours is None:
        return float("inf")
    return float(os.environ.get(STARTED) or time.time()) + profile.max_hours * 3600


class Interrupted(BaseException):
    """A signal broke off work that may be broken off."""


class Watch:
    """Tells after each step whether to go on, to save, or to save and stop.

    As a context manager it keeps SIGTERM and Ctrl-C from breaking a step or a checkpoint in two:
    they are answered when the step is done. A second Ctrl-C interrupts at once.
    """

    def __init__(self, profile: Profile):
        self.deadline = deadline(profile)
        self._stop_at = self.deadline - RESERVE * 3600 * (profile.max_hours or 0)
        self._pause = profile.checkpoint_minutes * 60
        self._saved = time.monotonic()
        self._wish = GO_ON
        self._at_once = False

    def __enter__(self) -> "Watch":
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._wish != GO_ON and isinstance(error, RuntimeError):
            # The signal went to the whole process group, and ended the loader's workers too.
            self.end(None, "the same command goes on from the last checkpoint")

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._wish == STOP_ON_INT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._wish = STOP_ON_INT if number == signal.SIGINT else STOP_ON_TERM
        if self._at_once:
            raise Interrupted

    def verdict(self, step: int) -> int:
        """Return GO_ON, SAVE or one of the STOP_… after a step, the same in all processes."""
        wish = self._wish
        if wish == GO_ON and time.time() > self._stop_at:
            wish = STOP_IN_TIME
        if wish == GO_ON and time.monotonic() - self._saved >= self._pause:
            wish = SAVE
        return highest(wish, step)

    def saved(self) -> None:
        """Count the minutes to the next checkpoint from now on."""
        self._saved = time.monotonic()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal break off the work inside, which changes nothing that is to be kept."""
        if self._wish >= STOP_IN_TIME and processes().num_processes == 1:
            raise Interrupted
        self._at_once = processes().num_processes == 1
        try:
            yield
        finally:
            self._at_once = False

    def end(self, verdict: int | None, told: str) -> None:
        """Raise what ends the run: TimeIsUp, Stopped or KeyboardInterrupt."""
        verdict = verdict or self._wish
        if verdict == STOP_ON_INT:
            raise KeyboardInterrupt(told)
        if verdict == STOP_IN_TIME:
            raise TimeIsUp(f"the time of max_hours is up: {told}")
        raise Stopped(f"stopped by SIGTERM: {told}")
