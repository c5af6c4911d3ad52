"""How torch's threads wait for each other: spinning on a quiet machine, asleep beside other work.

Every operation of torch on a CPU ends with its threads waiting for the last of them. libgomp lets
them spin for milliseconds: the fastest way on a quiet machine. Beside another busy program they
spin away the time of the very thread that they wait for, and training at 64 px falls to a third.
libgomp stops spinning while there are more OpenMP threads in the process than cores (GOMP_SPINCOUNT
in https://gcc.gnu.org/onlinedocs/libgomp/), so a second, idle team of threads switches it.
The number of threads that compute stays the same, and so do the results.
"""

import sys
import threading
import time
from functools import cache

import psutil
import torch

INTERVAL = 1.0  # seconds between two looks at the load
OTHER_WORK = 0.3  # cores in use by other programs from which sleeping is faster


@cache
def sleep_beside_other_work() -> None:
    """From now on, let torch's threads sleep while they wait whenever other programs need cores.

    Does nothing in the later calls of a process, without libgomp (only Linux has it) or with one
    thread.
    """
    if sys.platform == "linux" and torch.get_num_threads() > 1:
        threading.Thread(target=_watch_load, name="watch-load", daemon=True).start()


def _watch_load() -> None:
    team = None
    clock = time.monotonic(), *_cpu_seconds()
    while True:
        time.sleep(INTERVAL)
        before, clock = clock, (time.monotonic(), *_cpu_seconds())
        elapsed, everything, own = (b - a for a, b in zip(before, clock, strict=True))
        used = (everything - own) / elapsed + torch.get_num_threads()
        crowded = used > psutil.cpu_count() + OTHER_WORK
        if crowded and team is None:
            team = _IdleTeam()
        elif not crowded and team is not None:
            team.end()
            team = None


def _cpu_seconds() -> tuple[float, float]:
    """Return the CPU time of all programs and that of this process."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system, time.process_time()


class _IdleTeam:
    """OpenMP threads that do nothing, held by a thread of their own until `end`."""

    def __init__(self):
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._hold, daemon=True)
        self._thread.start()

    def _hold(self) -> None:
        torch.zeros(1_000_000).add_(1)  # large enough for several threads
        self._ended.wait()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
