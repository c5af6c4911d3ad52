"""Worker processes, started by a small server process. Knows no torch, so that they start small."""

import multiprocessing
import os
import threading
from multiprocessing import forkserver
from multiprocessing.context import BaseContext


def worker_context(*modules: str) -> BaseContext:
    """Return a context whose processes come from a server that has imported `modules` (forkserver).

    Forked from a process that trains, a worker would share its memory, and each page that the next
    steps write to would be copied first: at 224 px an epoch began with seconds of that. The server
    is one for the whole process, and imports the modules of the first call. Where there is none
    (Windows), processes are spawned.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    try:
        forkserver.ensure_running()  # it imports while this process goes on
    except ChildProcessError:  # forked from a process that has a server (notebook_launcher)
        return multiprocessing.get_context("spawn")
    return context


def end_with_parent() -> None:
    """Have this worker end when the process that uses it does, however that ends.

    The server lives as long as its workers, and they would wait for work for ever.
    """
    parent = multiprocessing.parent_process()
    threading.Thread(target=_end_after, args=[parent], daemon=True).start()


def _end_after(process: multiprocessing.Process) -> None:
    process.join()
    os._exit(1)
