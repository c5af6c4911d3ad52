"""Data loaders: worker processes decode images and return batches in reused shared memory."""

import itertools
import math
import os
import shutil
import sys
import warnings
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, default_convert, get_worker_info

from dfd_utils.runtime.workers import configure_malloc, exit_with_parent, worker_context

PREFETCH_FACTOR = 4  # batches that a worker loads ahead of the model
SHARED_MEMORY = Path("/dev/shm")  # where Linux keeps the batches of worker processes
_counter = itertools.count()
_senders: WeakValueDictionary = WeakValueDictionary()  # the collate functions of this process


def fit_shared_memory(num_workers: int, batch_bytes: int, free: int) -> tuple[int, int]:
    """Return how many workers, and how many prefetched batches per worker, fit into `free` bytes.

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
    """Return a loader whose single-threaded worker processes decode ahead of the model.

    Args:
        dataset: its items are `(image, …)`; all images have the same shape.
        batch_size: images per batch.
        shuffle: also drops the last batch if it is not full (batch normalisation cannot use a
            batch of one), unless it is the only one.
        num_workers: None: the number of cores minus one, at most 8. If shared memory is too small,
            fewer are used and a line on standard error says so.
        persistent: the processes continue with the next pass, until `shutdown_workers`.
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
                f"{SHARED_MEMORY} has {free / 1e6:.0f} MB free, too little for {num_workers} "
                f"processes with {PREFETCH_FACTOR} batches of {batch_bytes / 1e6:.0f} MB each: "
                f"using {workers} and {prefetch}; in Docker, --shm-size=2g gives full speed",
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


def inference_batch_size(device: torch.device, image_size: int, processes: int = 1) -> int:
    """Return the number of images per batch that scores fastest on a device.

    It is a multiple of the number of processes, which share each batch equally.
    """
    # On CPUs as many pixels as 32 images of 224 px: more need memory and are not faster, and with
    # fewer the threads wait for each other.
    pixels = max(image_size, 32) ** 2  # the baseline's image size is 0
    images = 128 if device.type == "cuda" else min(512, max(1, 32 * 224**2 // pixels))
    return math.ceil(images / processes) * processes


def shutdown_workers(loader: DataLoader) -> None:
    """End the processes of a persistent loader, prepared by accelerate or not.

    The garbage collector would end them after a timeout of five seconds each.
    """
    getattr(loader, "base_dataloader", loader)._iterator = None


def _initialize_worker(number: int) -> None:
    warnings.simplefilter("ignore")  # Pillow's name no file
    configure_malloc()
    exit_with_parent()


def collate(items: list[tuple]) -> list:
    """Collate items `(image, …)` as torch does, but keep the images channels last in memory."""
    images, *rest = default_collate([(image.movedim(-3, -1), *rest) for image, *rest in items])
    return [images.movedim(-1, -3), *rest]


class SharedCollate:
    """`collate` for worker processes, which reuses shared memory for its batches.

    torch allocates new shared memory for every batch; the page faults of both processes take a
    third of the CPU time of loading. Here each worker has one slot per prefetched batch, and the
    receiving process copies a batch before it requests the next one. Only one pass over the loader
    is possible at a time.

    Args:
        image: a tensor `[..., 3, H, W]` with the shape and type of every image.
        batch_size: maximum number of images per batch.
        workers: number of worker processes.
        prefetch: the loader's `prefetch_factor`.
    """

    def __init__(self, image: Tensor, batch_size: int, workers: int, prefetch: int):
        shape = workers, prefetch, batch_size, *image.movedim(-3, -1).shape
        self.slots = torch.empty(shape, dtype=image.dtype).share_memory_()
        self.writers = torch.zeros(workers, prefetch, 2, dtype=torch.int64).share_memory_()
        self.written = 0  # batches that this worker has written
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
        # As arrays, which are sent by value: sharing a few numbers takes longer.
        rest = [part.numpy() if isinstance(part, Tensor) else part for part in rest]
        return _SharedBatch(self.name, slot, writer, len(items), rest)

    def receive(self, slot: tuple, writer: tuple, images: int, rest: list) -> list:
        """Return a copy of the batch that `writer` wrote to `slot`."""
        # numpy copies in one thread; torch's threads would then spin, for ten times the CPU time.
        batch = torch.from_numpy(self.slots[slot][:images].numpy().copy()).movedim(-1, -3)
        if tuple(self.writers[slot].tolist()) != writer:
            raise RuntimeError("two passes over one loader at a time: use one loader per pass")
        return [batch, *default_convert(rest)]


class _SharedBatch:
    """Sent instead of a batch; unpickling it returns the batch."""

    def __init__(self, *parts: object):
        self.parts = parts

    def __reduce__(self) -> tuple:
        return _receive, self.parts


def _receive(name: int, *parts: object) -> list:
    return _senders[name].receive(*parts)
