"""Torch's threads sleep while other programs need the cores, and spin again afterwards."""

import subprocess
import sys

import pytest

# A machine of two cores whose other programs use `busy` cores; the names are those of the module.
SCRIPT = """
import time
import psutil, torch
from dfd_utils.runtime import threads

busy = 0.0
threads.INTERVAL = 0.05
used, last = 0.0, time.monotonic()

def integral():
    global used, last
    now = time.monotonic()
    used, last = used + busy * (now - last), now
    return used

threads._cpu_seconds = lambda: (integral(), 0.0)
threads.psutil.cpu_count = lambda: 2
torch.set_num_threads(2)
torch.zeros(1_000_000).add_(1)

def threads_after(load):
    global busy
    busy = load
    time.sleep(1)
    return psutil.Process().num_threads()

threads.sleep_beside_other_work()
threads.sleep_beside_other_work()
print(*[threads_after(load) for load in (0.0, 1.0, 1.0, 0.1)])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is there on Linux alone")
def test_a_second_team_of_threads_exists_only_beside_other_work():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    quiet, busy, still_busy, quiet_again = map(int, done.stdout.split())
    assert busy > quiet  # more OpenMP threads than cores: libgomp stops spinning
    assert still_busy == busy and quiet_again == quiet
