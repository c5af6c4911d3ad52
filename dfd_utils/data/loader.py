"""Loaders: worker processes decode images and hand batches over in shared memory that is reused."""

import itertools
import os
import shutil
import sys
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, default_convert, get_worker_info

from dfd_utils.runtime.workers import configure_malloc, exit_with_parent, worker_context

PREFETCH_FACTOR = 4  # batches per worker that wait for the model
SHARED_MEMORY = Path("/dev/shm")  # where worker processes hand their batches over, on Linux
_counter = itertools.count()
_senders: WeakValueDictionary = WeakValueDictionary()  # the collate functions of this process


def fit_shared_memory(num_workers: int, batch_bytes: int, free: int) -> tuple[int, int]:
    """Return how many workers, and how many waiting batches per worker, fit into `free` bytes.

    (0, 0) if not even one batch fits: the process then decodes by itself, without shared memory.
    """
    room = free // batch_bytes
    workers = min(num_workers, room)
    return workers, min(PREFETCH_FACTOR, room // workers) if workers else 0


def data_loader(
    dataset: Dataset,
    batch_size: int,
    shuffle: bool = False,
    num_workers: int | None = None,
    persistent: bool = False,
) -> DataLoader:
    """Return a loader whose worker processes, with one thread each, decode ahead of the model.

    Args:
        dataset: its items are `(image, …)`, all images of one shape.
        batch_size: images per batch.
        shuffle: shuffled batches are all full (batch normalisation cannot use a batch of one),
            unless there is less than one batch of data.
        num_workers: None: one per core but one, at most 8. If shared memory is too small for them,
            fewer are used and a line on standard error says so.
        persistent: the processes serve further passes, until `shutdown_workers`.
    """
    if num_workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        num_workers = min(8, max(1, cores - 1))
    workers, prefetch, context, collate_fn = num_workers, PREFETCH_FACTOR, None, collate
    if num_workers:
        with torch.random.fork_rng(devices=[]):
            image = dataset[0][0]
    if num_workers and SHARED_MEMORY.is_dir():
        batch_bytes = batch_size * image.nbytes
        free = shutil.disk_usage(SHARED_MEMORY).free // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        workers, prefetch = fit_shared_memory(num_workers, batch_bytes, free)
        if (workers, prefetch) != (num_workers, PREFETCH_FACTOR):
            print(
                f"{SHARED_MEMORY} has {free / 1e6:.0f} MB free, too few for {num_workers} processes"
                f" with {PREFETCH_FACTOR} batches of {batch_bytes / 1e6:.0f} MB each: using "
                f"{workers} and {prefetch}; in Docker, --shm-size=2g gives full speed",
                file=sys.stderr,
            )
    if workers:
        context = worker_context("dfd_utils.data.dataset", "dfd_utils.data.transforms")
        collate_fn = SharedCollate(image, batch_size, workers, prefetch)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=shuffle and len(dataset) >= batch_size,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=prefetch if workers else None,
        persistent_workers=persistent and workers > 0,
        multiprocessing_context=context,
        collate_fn=collate_fn,
        worker_init_fn=_initialize_worker,
    )


def inference_batch_size(device: torch.device, image_size: int) -> int:
    """Return how many images per batch are scored at once."""
    if device.type == "cuda":
        return 128
    # As many pixels as 32 images of 224 px: more take memory and are no faster on CPUs, and fewer
    # leave its threads waiting for each other.
    return min(512, max(1, 32 * 224**2 // image_size**2))


def shutdown_workers(loader: DataLoader) -> None:
    """End the processes of a persistent loader now, whether or not accelerate has prepared it.

    The garbage collector would end them later, after a timeout of five seconds each.
    """
    getattr(loader, "base_dataloader", loader)._iterator = None


def _initialize_worker(number: int) -> None:
    configure_malloc()
    exit_with_parent()


def collate(items: list[tuple]) -> list:
    """Batch images and what follows them as torch does, in the images' memory order."""
    images, *rest = default_collate([(image.movedim(-3, -1), *rest) for image, *rest in items])
    return [images.movedim(-1, -3), *rest]


class SharedCollate:
    """`collate` for worker processes: batches travel in shared memory that is used again and again.

    torch allocates new shared memory for every batch, and both processes touch each of its pages
    for the first time: a third of all CPU time of loading. Here each worker has one slot per batch
    that it may be ahead; the receiving process copies a batch out before it asks for the next one.
    Only one pass over the loader is possible at a time.

    Args:
        image: a tensor `[..., 3, H, W]`, of the shape and type of every image.
        batch_size: images per batch, at most.
        workers: number of worker processes.
        prefetch: batches that a worker may be ahead, the loader's `prefetch_factor`.
    """

    def __init__(self, image: Tensor, batch_size: int, workers: int, prefetch: int):
        shape = workers, prefetch, batch_size, *image.movedim(-3, -1).shape
        self.slots = torch.empty(shape, dtype=image.dtype).share_memory_()
        self.writers = torch.zeros(workers, prefetch, 2, dtype=torch.int64).share_memory_()
        self.written = 0  # batches of this worker
        self.name = next(_counter)
        _senders[self.name] = self

    def __call__(self, items: list[tuple]) -> "_SharedBatch":
        worker = get_worker_info().id
        slot = worker, self.written % self.slots.shape[1]
        self.written += 1
        writer = os.getpid(), self.written
        self.writers[slot] = torch.tensor(writer)
        images = [image.movedim(-3, -1) for image, *_ in items]
        torch.stack(images, out=self.slots[slot][: len(items)])
        rest = default_collate([rest for _, *rest in items])
        # By value, as arrays are sent: sharing a few numbers takes longer.
        rest = [part.numpy() if isinstance(part, Tensor) else part for part in rest]
        return _SharedBatch(self.name, slot, writer, len(items), rest)

    def receive(self, slot: tuple, writer: tuple, images: int, rest: list) -> list:
        """Return a copy of the batch that `writer` left at `slot`."""
        # numpy copies with one thread; torch's would stay awake after it, for ten times the CPU.
        batch = torch.from_numpy(self.slots[slot][:images].numpy().copy()).movedim(-1, -3)
        if tuple(self.writers[slot].tolist()) != writer:
            raise RuntimeError("two passes over one loader at a time: make a loader for each")
        return [batch, *default_convert(rest)]


class _SharedBatch:
    """What is sent instead of a batch: unpickled, it is the batch."""

    def __init__(self, *parts: object):
        self.parts = parts

    def __reduce__(self) -> tuple:
        return _receive, self.parts


def _receive(name: int, *parts: object) -> list:
    return _senders[name].receive(*parts)
