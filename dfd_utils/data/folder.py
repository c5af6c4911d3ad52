"""`DataFolder`: a data set on disk, with its audit and its splits."""

from __future__ import annotations

import copy
import csv
import os
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from dfd_utils.config import BUILD_DIR, CLASSES, DATA_DIR, PROJECT_ROOT, SPLITS, UserError
from dfd_utils.data.audit import audit, find_summary
from dfd_utils.data.image_io import IMAGE_SUFFIXES
from dfd_utils.data.sample.generate import is_sample, make_sample
from dfd_utils.data.scan import list_images
from dfd_utils.runtime.files import content_hash

if TYPE_CHECKING:
    from dfd_utils.data.dataset import DeepFakeDataset


class DataFolder:
    """A data set laid out as `{Train,Validation,Test}/{Real,Fake}/*.jpg`, listed once.

    Args:
        path: its folder, relative to the project's root. None: the embedded sample.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(self, path: str | Path | None = None):
        self.path = Path(os.path.abspath(PROJECT_ROOT / path if path else DATA_DIR / "sample"))
        self.name = self.path.name
        if not self.path.is_dir():
            raise UserError(
                f"{self.path}: no such data folder; make the sample with `dfd sample {self.path}`"
            )

    @cached_property
    def _listing(self) -> tuple[pd.DataFrame, Counter]:
        return list_images(self.path)

    @property
    def images(self) -> pd.DataFrame:
        """A row per image file: path (relative), split, label, bytes, mtime and ctime (ns).

        The rows are ordered by split, class and path.
        """
        return self._listing[0]

    @property
    def skipped(self) -> Counter:
        """The number of files that are not images, by suffix."""
        return self._listing[1]

    def check_layout(self, splits: Iterable[str] = SPLITS) -> None:
        """Raise a UserError that names every class of these splits without an image."""
        present = set(zip(self.images["split"], self.images["label"], strict=True))
        missing = [
            f"{split}/{class_name}"
            for split in splits
            for label, class_name in enumerate(CLASSES)
            if (split, label) not in present
        ]
        if missing:
            raise UserError(
                f"{self.path}: no images ({', '.join(IMAGE_SUFFIXES)}) in {', '.join(missing)}; "
                f"a data set is laid out as {{{','.join(SPLITS)}}}/{{{','.join(CLASSES)}}}"
            )

    @cached_property
    def audit_folder(self) -> Path:
        """The folder of the audit's files, one per path (names such as `versions/1` repeat)."""
        return BUILD_DIR / "audit" / f"{self.name}-{content_hash(str(self.path.resolve()))[:8]}"

    @cached_property
    def _audit(self) -> tuple[dict, frozenset[str]]:
        summary = audit(self)  # first: it updates the exclusion list
        return summary, read_exclusions(self.audit_folder / "exclude.csv")

    @property
    def is_audited(self) -> bool:
        """Whether an audit of these files, unchanged, exists."""
        return "_audit" in vars(self) or find_summary(self, self.audit_folder) is not None

    @property
    def audit_summary(self) -> dict:
        """The summary of the audit, which runs now unless nothing has changed since the last."""
        return self._audit[0]

    @property
    def fingerprint(self) -> str:
        """A hash (16 hex digits) of the names and contents of all images."""
        return self.audit_summary["fingerprint"]

    @property
    def exclusions(self) -> frozenset[str]:
        """The relative paths of the images that the audit excludes."""
        return self._audit[1]

    def with_exclusions(self, paths: Iterable[str]) -> DataFolder:
        """Return the same data set with another exclusion list."""
        other = copy.copy(self)
        other._audit = self.audit_summary, frozenset(paths)
        return other

    def excluded(self, split: str) -> list[str]:
        """Return the sorted paths of the excluded images of a split."""
        paths = self.images["path"][self.images["split"] == split]
        return sorted(self.exclusions.intersection(paths))

    def split_fingerprint(self, split: str) -> str:
        """Return a hash of the images' contents and the split's exclusions."""
        return content_hash(self.fingerprint, split, *self.excluded(split))

    @property
    def is_sample(self) -> bool:
        """Whether this is an embedded sample."""
        return is_sample(self.path)

    def split(
        self, name: str, transform: Callable | None = None, seed: int | None = None
    ) -> DeepFakeDataset:
        """Open one split, without the images that the audit excludes.

        Args:
            name: Train, Validation or Test.
            transform: see `DeepFakeDataset`.
            seed: see `DeepFakeDataset`.

        Raises:
            UserError: the split or one of its classes is missing or empty.
        """
        from dfd_utils.data.dataset import DeepFakeDataset  # imports torch

        if name not in SPLITS:
            raise UserError(f"unknown split '{name}': choose from {', '.join(SPLITS)}")
        self.check_layout([name])
        rows = self.images[self.images["split"] == name]
        rows = rows[~rows["path"].isin(self.exclusions)]
        if rows["label"].nunique() < len(CLASSES):
            raise UserError(f"{self.path / name}: the audit excludes every image of a class")
        return DeepFakeDataset(self.path, rows["path"], rows["label"], transform, seed)


def read_exclusions(path: Path) -> frozenset[str]:
    """Return the paths in an exclusion list (`exclude.csv`).

    Raises:
        UserError: it is damaged.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return frozenset(row["path"] for row in csv.DictReader(file, strict=True))
    except (KeyError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: damaged; delete that folder") from error


def open_data(path: str | Path) -> DataFolder:
    """Return a data set; the embedded sample is drawn first where it is missing (a minute).

    Raises:
        UserError: as `DataFolder` and `make_sample`.
    """
    folder = Path(os.path.abspath(PROJECT_ROOT / path))
    if folder == DATA_DIR / "sample" and not folder.exists():
        make_sample(folder)
    return DataFolder(folder)
