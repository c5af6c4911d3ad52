"""Memory: what the process keeps, and what shared memory can hold."""

import contextlib
import ctypes

PREFETCHED = 4  # batches that wait for the model, a worker
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Let the process keep freed memory for the next step; no effect without glibc.

    By default glibc gives every large block back to the kernel, which hands it out again page by
    page, filled with zeros: on a CPU that takes a third to a half of a training step. See
    https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def fit_shared_memory(num_workers: int, batch_bytes: int, free: int) -> tuple[int, int]:
    """Return how many workers, and how many batches waiting for each, `free` bytes can hold.

    (0, 0) where not even one can wait: then the process decodes by itself, without shared memory.
    """
    room = free // batch_bytes
    workers = min(num_workers, room)
    return workers, min(PREFETCHED, room // workers) if workers else 0
