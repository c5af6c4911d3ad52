"""`DeepFakeDataset`: images as uint8 tensors with their labels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dfd_utils.config import UserError
from dfd_utils.data.image_io import read_pixels


def read_image(path: str | Path) -> Tensor:
    """Decode an image file to uint8 RGB `[3, H, W]` (channels last in memory), as `read_pixels`."""
    return torch.from_numpy(read_pixels(path)).permute(2, 0, 1)


class DeepFakeDataset(Dataset):
    """Images of a data set with their labels; `DataFolder.split` opens one split.

    An item is `(image, label)`: uint8 RGB `[3, H, W]` after `transform`, and 0 = Real, 1 = Fake.

    Args:
        folder: the data set's folder.
        names: the images' paths relative to `folder`, such as "Train/Fake/a.jpg".
        labels: the images' labels.
        transform: is called with the uint8 image tensor.
        seed: random transforms depend only on (seed, epoch, index), and so neither on the number
            of workers nor on a resumed run; None: they use the global generator as it is.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        labels: Sequence[int],
        transform: Callable[[Tensor], Tensor] | None = None,
        seed: int | None = None,
    ):
        self.folder, self.transform, self.seed = folder, transform, seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # worker processes see it
        # Arrays, not lists: worker processes share their memory.
        self._names = np.array([name.encode() for name in names])
        self.labels = np.array(labels)

    @property
    def epoch(self) -> int:
        """The current epoch; set it between two passes."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def names(self) -> list[str]:
        """The images' paths relative to the data set's folder."""
        return [name.decode() for name in self._names]

    def path(self, index: int) -> Path:
        """Return the file of item `index`."""
        return self.folder / self._names[index].decode()

    def subsample(self, images: int) -> DeepFakeDataset:
        """Return a data set of `images` of these images, or of all if there are fewer.

        Each class keeps its share, but at least one image; within a class the images are evenly
        spaced. The choice is deterministic.
        """
        members = [np.flatnonzero(self.labels == label) for label in (0, 1)]
        images = min(images, len(self))
        fakes = round(images * len(members[1]) / len(self))
        if all(map(len, members)):
            fakes = min(max(fakes, 1), images - 1)
        chosen = [
            member[np.arange(count) * len(member) // count]
            for member, count in zip(members, (images - fakes, fakes), strict=True)
            if count
        ]
        index = np.sort(np.concatenate(chosen))
        subset = copy.copy(self)
        subset._names, subset.labels = self._names[index], self.labels[index]
        return subset

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            image = read_image(self.path(index))
        except UserError as error:  # the file has changed since the audit
            raise UserError(f"{error}; remove it, or run `dfd audit` again") from error
        if self.transform is not None:
            if self.seed is not None:
                seed_cpu_rng(self.seed, self.epoch, int(index))
            image = self.transform(image)
        return image, int(self.labels[index])


def seed_cpu_rng(*key: int) -> None:
    """Make this process's next random numbers on the CPU depend only on `key`."""
    # torch.manual_seed would seed the generators of all devices, which takes 40 times as long.
    torch.default_generator.manual_seed(hash(key) & 0x7FFFFFFFFFFFFFFF)
