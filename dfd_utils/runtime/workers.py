"""Worker processes and their memory. Knows no torch, so that workers start small."""

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
    """Return a context whose processes come from a server that has imported `modules` (forkserver).

    A worker that is forked from a training process shares its memory, and each page that the next
    steps write to is copied first: at 224 px an epoch began with seconds of that. The process has
    one server, which imports the modules of the first call. Where there is no forkserver (Windows),
    processes are spawned.

    Raises:
        ImportError: there is no such module (the forkserver itself would ignore it).
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
    """Make this worker end when the process that uses it ends, for whatever reason.

    The server lives as long as its workers, which would otherwise wait for work for ever.
    """
    parent = multiprocessing.parent_process()
    threading.Thread(target=_exit_after, args=[parent], daemon=True).start()


def _exit_after(process: multiprocessing.Process) -> None:
    process.join()
    os._exit(1)


def configure_malloc() -> None:
    """Let the process keep freed memory for the next step; no effect without glibc.

    By default glibc returns every large block to the kernel, which hands it out again page by
    page, filled with zeros: on a CPU that takes a third to a half of a training step. See
    https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
