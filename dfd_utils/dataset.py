"""`DeepFakeDataset` over Real/Fake folders, its loaders, and the data's fingerprint."""

import csv
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dfd_utils.batches import SharedCollate, collate
from dfd_utils.config import BUILD_DIR, CLASSES, SPLITS, UserError
from dfd_utils.images import IMAGE_KINDS, image_entries, read_pixels
from dfd_utils.memory import PREFETCHED, fit_shared_memory, keep_freed_memory
from dfd_utils.workers import end_with_parent, worker_context

SHARED_MEMORY = Path("/dev/shm")  # where worker processes hand their batches over, on Linux


def read_image(path: str | Path) -> Tensor:
    """Decode an image file to uint8 RGB `[3, H, W]`, channels last in memory; see `read_pixels`."""
    return torch.from_numpy(read_pixels(path)).permute(2, 0, 1)


class DeepFakeDataset(Dataset):
    """The images of one split: a folder that holds a `Real` and a `Fake` folder.

    An item is `(image, label)`: uint8 RGB `[3, H, W]` after `transform`, and 0 = Real, 1 = Fake.

    Args:
        folder: the split's folder.
        transform: called with the uint8 image tensor.
        exclude: paths relative to `folder` ("Fake/a.jpg") to leave out.
        seed: makes random transforms depend on (seed, epoch, index) alone, so that neither the
            number of workers nor a resumed run changes them; None leaves the global generator.

    Raises:
        UserError: a class folder is missing or holds no image.
    """

    def __init__(
        self,
        folder: str | Path,
        transform: Callable[[Tensor], Tensor] | None = None,
        exclude: Collection[str] = (),
        seed: int | None = None,
    ):
        self.folder = Path(folder)
        self.transform = transform
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # worker processes see it
        names, labels = [], []
        for label, class_name in enumerate(CLASSES):
            found = [f"{class_name}/{name}" for name in _image_names(self.folder / class_name)]
            kept = [name for name in found if name not in exclude]
            if not kept:
                raise UserError(f"{self.folder / class_name}: no image ({IMAGE_KINDS})")
            names += kept
            labels += [label] * len(kept)
        # Arrays, not lists: worker processes share their memory instead of copying it.
        self.names = np.array([name.encode() for name in names])
        self.labels = np.array(labels)

    @property
    def epoch(self) -> int:
        """The running epoch; set it between two passes."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """Return the file of item `index`."""
        return self.folder / self.names[index].decode()

    def every(self, images: int) -> "DeepFakeDataset":
        """Keep about `images` images, evenly spread over both classes; return the data set."""
        step = max(1, len(self) // images)
        self.names, self.labels = self.names[::step], self.labels[::step]
        return self

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = read_image(self.path(index))
        if self.transform is not None:
            if self.seed is not None:
                seed_draws(self.seed, self.epoch, int(index))
            image = self.transform(image)
        return image, int(self.labels[index])


def seed_draws(*key: int) -> None:
    """Have this process's next random numbers on the CPU depend on `key` alone."""
    # Not torch.manual_seed: it seeds every device's generator, in 40 times the time.
    torch.default_generator.manual_seed(hash(key) & 0x7FFFFFFFFFFFFFFF)


def _image_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; a data set is laid out as "
            f"{{{','.join(SPLITS)}}}/{{{','.join(CLASSES)}}}"
        )
    return [entry.name for entry in image_entries(folder)]


def audit_folder(data: Path) -> Path:
    """Return where the audit of the data set lies, and with it the exclusion list."""
    return BUILD_DIR / "audit" / data.name


def read_exclusions(data: Path) -> set[str]:
    """Return the paths (relative to `data`) that the audit excluded; empty without an audit."""
    listing = audit_folder(data) / "exclude.csv"
    if not listing.is_file():
        return set()
    with open(listing, newline="") as file:
        return {row["path"] for row in csv.DictReader(file)}


def load_split(
    data: Path,
    split: str,
    transform: Callable[[Tensor], Tensor] | None = None,
    seed: int | None = None,
) -> DeepFakeDataset:
    """Open one split of a data set in the Kaggle layout, without what its audit excluded.

    Raises:
        UserError: the split or one of its classes is missing or empty.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split '{split}': choose from {', '.join(SPLITS)}")
    prefix = f"{split}/"
    exclude = {p.removeprefix(prefix) for p in read_exclusions(data) if p.startswith(prefix)}
    return DeepFakeDataset(data / split, transform, exclude, seed)


def data_loader(
    dataset: Dataset,
    batch_size: int,
    shuffle: bool = False,
    num_workers: int | None = None,
    persistent: bool = False,
) -> DataLoader:
    """Make a loader whose worker processes, of one thread each, decode ahead of the model.

    Shuffled batches are all full (batch normalisation dislikes a batch of one), unless the data
    are fewer than one batch. `num_workers` None: the cores less one, 8 at the most. Where shared
    memory is too small for that, fewer batches wait, or the process decodes itself; stderr says so.
    `persistent` processes serve further passes, until `end_workers`.
    """
    if num_workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        num_workers = min(8, max(1, cores - 1))
    workers, waiting, context, collate_fn = num_workers, PREFETCHED, None, collate
    if num_workers:
        with torch.random.fork_rng(devices=[]):
            image = dataset[0][0]
    if num_workers and SHARED_MEMORY.is_dir():
        batch_bytes = batch_size * image.nbytes
        free = shutil.disk_usage(SHARED_MEMORY).free // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        workers, waiting = fit_shared_memory(num_workers, batch_bytes, free)
        if (workers, waiting) != (num_workers, PREFETCHED):
            print(
                f"{SHARED_MEMORY} has {free / 1e6:.0f} MB free, too few for {num_workers} processes"
                f" with {PREFETCHED} batches of {batch_bytes / 1e6:.0f} MB each: going on with "
                f"{workers} and {waiting}; in Docker, --shm-size=2g gives full speed",
                file=sys.stderr,
            )
    if workers:
        context = worker_context("dfd_utils.dataset", "dfd_utils.transforms")
        collate_fn = SharedCollate(image, batch_size, workers, waiting)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=shuffle and len(dataset) >= batch_size,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=waiting if workers else None,
        persistent_workers=persistent and workers > 0,
        multiprocessing_context=context,
        collate_fn=collate_fn,
        worker_init_fn=_begin_worker,
    )


def scoring_batch_size(device: torch.device, image_size: int) -> int:
    """Return how many images go through a model at once where nothing is trained."""
    if device.type == "cuda":
        return 128
    # As many pixels as 32 images of 224 px: more take memory and are no faster on CPUs, and fewer
    # leave its threads waiting for each other.
    return min(512, max(1, 32 * 224**2 // image_size**2))


def end_workers(loader: DataLoader) -> None:
    """End the processes of a persistent loader, bare or prepared by accelerate, now.

    Left to the garbage collector, they were waited for in vain, five seconds each.
    """
    getattr(loader, "base_dataloader", loader)._iterator = None


def _begin_worker(number: int) -> None:
    keep_freed_memory()
    end_with_parent()


def check_layout(data: Path) -> None:
    """Raise a UserError that names the first split or class folder that is missing or empty."""
    for split in SPLITS:
        for class_name in CLASSES:
            if not _image_names(data / split / class_name):
                raise UserError(f"{data / split / class_name}: no image ({IMAGE_KINDS})")


def data_fingerprint(data: Path, exclusions: bool = True) -> str:
    """Return a hash (16 hex digits) over the path and size of every image and the exclusions."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for class_name in CLASSES:
            folder = data / split / class_name
            for name in _image_names(folder):
                size = (folder / name).stat().st_size
                digest.update(f"{split}/{class_name}/{name}:{size}\n".encode())
    if exclusions:
        digest.update("\n".join(sorted(read_exclusions(data))).encode())
    return digest.hexdigest()[:16]
