"""Several processes, one per device, as `torchrun` starts them."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather
from torch.distributed import TCPStore

from dfd_utils.config import UserError

T = TypeVar("T")
SYNC_EVERY_STEPS = 10  # each synchronisation waits for the slowest process


def process_state() -> PartialState:
    """Join the processes of this run; a single process if no launcher has set `LOCAL_RANK`."""
    # Without a GPU accelerate uses gloo only if the CPU is requested.
    cpu = "LOCAL_RANK" in os.environ and not torch.cuda.is_available()
    return PartialState(cpu=cpu)


def run_on_main(function: Callable[..., T], *args: object) -> T:
    """Call the function in the main process only and return its result in all processes.

    Raises:
        UserError: the main process raised it; all processes raise it.
    """
    state, box = process_state(), [None]
    if state.is_main_process:
        try:
            box = [function(*args)]
        except UserError as error:
            box = [error]
    if state.num_processes > 1:
        broadcast_object_list(box)
    if isinstance(box[0], UserError):
        raise box[0]
    return box[0]


def max_across_processes(value: int, step: int) -> int:
    """Return the maximum over all processes every SYNC_EVERY_STEPS steps, and 0 in between."""
    state = process_state()
    if state.num_processes == 1:
        return value
    if step % SYNC_EVERY_STEPS:
        return 0
    return int(gather(torch.tensor([value], device=state.device)).max())


def should_report_error() -> bool:
    """Return whether this process is the first of the run to fail, and so reports its error.

    The other processes fail only because the first has ended.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return True
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5))
        return store.add("dfd-failed", 1) == 1
    except (KeyError, ValueError, RuntimeError):  # the launcher has ended
        return os.environ.get("RANK", "0") == "0"
