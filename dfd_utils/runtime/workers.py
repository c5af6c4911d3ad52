"""Worker processes and their memory; without torch, so that they start small."""

import contextlib
import ctypes
import multiprocessing
import os
import threading
from importlib.util import find_spec
from multiprocessing import forkserver
from multiprocessing.context import BaseContext

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def worker_context(*modules: str) -> BaseContext:
    """Return a forkserver context whose server has imported `modules`.

    Workers forked from a training process would share its memory, and the next steps would copy
    every page that they write to: seconds at the start of an epoch at 224 px. A process has one
    server, which imports the modules of the first call. Without a forkserver (Windows), or in a
    process forked from one that has a server, processes are spawned.

    Raises:
        ImportError: a module does not exist (the forkserver itself would ignore that).
    """
    for module in modules:
        if find_spec(module) is None:
            raise ImportError(f"no module {module} to preload")
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    try:
        forkserver.ensure_running()  # it imports while this process continues
    except ChildProcessError:  # forked from a process that has a server (notebook_launcher)
        return multiprocessing.get_context("spawn")
    return context


def exit_with_parent() -> None:
    """End this worker process when its parent ends, even if the parent is killed.

    Otherwise the workers would wait for work forever, and the forkserver for its workers.
    """
    parent = multiprocessing.parent_process()
    threading.Thread(target=_exit_after, args=[parent], daemon=True).start()


def _exit_after(process: multiprocessing.Process) -> None:
    process.join()
    os._exit(1)


def configure_malloc() -> None:
    """Make glibc's malloc keep freed memory for the next step; no effect elsewhere.

    By default glibc returns every large block to the kernel, which zeroes each page before it is
    used again: a third to half of the time of a training step on a CPU. See
    https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
