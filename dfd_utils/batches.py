"""Batches, and the shared memory in which worker processes hand them over.

torch takes new shared memory for every batch, and both processes meet each of its pages for the
first time: a third of all the CPU time of loading. Here the same memory serves again and again.
"""

import itertools
import os
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.utils.data import default_collate, default_convert, get_worker_info

_counter = itertools.count()
_senders: WeakValueDictionary = WeakValueDictionary()  # those of this process's loaders


def collate(items: list[tuple]) -> list:
    """Batch images and what follows them as torch does, in the images' memory order."""
    images, *rest = default_collate([(image.movedim(-3, -1), *rest) for image, *rest in items])
    return [images.movedim(-1, -3), *rest]


class SharedCollate:
    """`collate` for worker processes: the images of a batch travel in memory that is used again.

    Each worker has as many places for a batch as it may be ahead; the process that receives a
    batch copies it out before it asks for the next one. One pass over the loader at a time.

    Args:
        image: a tensor `[..., 3, H, W]`, of the shape and type of every image.
        batch_size: images a batch, at most.
        workers: number of worker processes.
        waiting: batches that a worker is ahead at most, the loader's `prefetch_factor`.
    """

    def __init__(self, image: Tensor, batch_size: int, workers: int, waiting: int):
        shape = workers, waiting, batch_size, *image.movedim(-3, -1).shape
        self.places = torch.empty(shape, dtype=image.dtype).share_memory_()
        self.writers = torch.zeros(workers, waiting, 2, dtype=torch.int64).share_memory_()
        self.written = 0  # batches of this worker
        self.name = next(_counter)
        _senders[self.name] = self

    def __call__(self, items: list[tuple]) -> "_SharedBatch":
        worker = get_worker_info().id
        place = worker, self.written % self.places.shape[1]
        self.written += 1
        writer = os.getpid(), self.written
        self.writers[place] = torch.tensor(writer)
        images = [image.movedim(-3, -1) for image, *_ in items]
        torch.stack(images, out=self.places[place][: len(items)])
        rest = default_collate([rest for _, *rest in items])
        # By value, as arrays are sent: sharing a few numbers takes longer.
        rest = [part.numpy() if isinstance(part, Tensor) else part for part in rest]
        return _SharedBatch(self.name, place, writer, len(items), rest)

    def receive(self, place: tuple, writer: tuple, images: int, rest: list) -> list:
        """Return a copy of the batch that `writer` left at `place`."""
        # numpy copies with one thread; torch's would stay awake after it, for ten times the CPU.
        batch = torch.from_numpy(self.places[place][:images].numpy().copy()).movedim(-1, -3)
        if tuple(self.writers[place].tolist()) != writer:
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
