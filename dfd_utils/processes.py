"""Several processes, one a device, as `torchrun` starts them: who speaks and who decides."""

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
SPEAKS_UP = 10  # steps between two agreements: each waits for the slowest process


def processes() -> PartialState:
    """Join the processes of this run; one process alone where no launcher set `LOCAL_RANK`."""
    # Without a GPU accelerate uses gloo only when it is told that the CPU is meant.
    cpu = "LOCAL_RANK" in os.environ and not torch.cuda.is_available()
    return PartialState(cpu=cpu)


def on_main(function: Callable[..., T], *args: object) -> T:
    """Call the function in the main process alone and return its result in all of them.

    Raises:
        UserError: the main process's, in all of them.
    """
    state, box = processes(), [None]
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


def highest(value: int, step: int) -> int:
    """Return the highest value of all processes, asked every few steps only (else 0)."""
    state = processes()
    if state.num_processes == 1:
        return value
    if step % SPEAKS_UP:
        return 0
    return int(gather(torch.tensor([value], device=state.device)).max())


def first_to_fail() -> bool:
    """Say whether this process is the first of the run to fail: it alone shows its error.

    When one process ends, the others fail for that reason alone, and add nothing to know.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return True
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5))
        return store.add("dfd-failed", 1) == 1
    except (KeyError, ValueError, RuntimeError):  # the launcher itself is gone
        return os.environ.get("RANK", "0") == "0"
