"""The image files of a data set and their measurements, made on all cores and cached."""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from tqdm import tqdm

from dfd_utils.config import CLASSES, SPLITS, UserError
from dfd_utils.data.image_io import is_image_name, suffix_of
from dfd_utils.data.image_statistics import MEASUREMENT_DTYPE, VERSION, measure_files
from dfd_utils.runtime.workers import worker_context

CHUNK = 64  # images per task of a worker process
SPLIT_NAMES = {s.lower(): s for s in SPLITS} | {"valid": "Validation", "val": "Validation"}
CLASS_NAMES = {name.lower(): name for name in CLASSES}


@dataclass(frozen=True)
class Listing:
    """The files of a data set.

    images: path (relative), split, label, bytes, mtime and ctime (ns), a row per image file,
    ordered by split, class and path. skipped: number of other files by suffix.
    """

    images: pd.DataFrame
    skipped: Counter


def list_images(folder: Path) -> Listing:
    """List the image files of a data set; folder names may be in any letter case.

    Folders below a class's folder are searched, too. Files and folders whose name starts with a
    dot are ignored.

    Raises:
        UserError: two folders that differ in letter case alone, or a name that is not UTF-8.
    """
    rows, skipped = [], Counter()
    for split, split_folder in _folders(folder, SPLIT_NAMES, SPLITS):
        for class_name, class_folder in _folders(split_folder, CLASS_NAMES, CLASSES):
            label = CLASSES.index(class_name)
            for path, state in _image_files(class_folder, skipped):
                rows.append((os.path.relpath(path, folder), split, label, *state))
    columns = ["path", "split", "label", "bytes", "mtime", "ctime"]
    return Listing(pd.DataFrame(rows, columns=columns), skipped)


def _folders(parent: Path, names: dict[str, str], order: tuple) -> list[tuple[str, Path]]:
    """Return (canonical name, path) of the folders in `parent` that have one of the names."""
    found = {}
    for path in sorted(parent.iterdir()) if parent.is_dir() else ():
        name = names.get(path.name.lower())
        if name is None or not path.is_dir():
            continue
        if name in found:
            raise UserError(f"{parent}: both {found[name].name} and {path.name}; rename one")
        found[name] = path
    return [(name, found[name]) for name in order if name in found]


def _image_files(folder: Path, skipped: Counter) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Yield path and (bytes, mtime, ctime) of the images in a folder and below, by name."""
    visited = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        visited.add(os.path.realpath(root))
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(f"{root}/{name}") not in visited
        )
        for name in sorted(files):
            if name.startswith("."):
                continue
            try:
                name.encode()
            except UnicodeEncodeError:
                text = f"{root}: the file name {name!a} is not UTF-8; rename it"
                raise UserError(text) from None
            if not is_image_name(name):
                skipped[suffix_of(name)] += 1
                continue
            path = os.path.join(root, name)
            try:
                status = os.stat(path)
            except OSError:  # a link to nothing: reading it gives the reason
                yield path, (0, 0, 0)
                continue
            if stat.S_ISREG(status.st_mode):
                yield path, (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            else:
                skipped["not a regular file"] += 1


def measure_cached(
    folder: Path, listing: pd.DataFrame, cache: Path, processes: int | None
) -> np.ndarray:
    """Return the measurements (MEASUREMENT_DTYPE) of every listed image, `[n]`.

    An image is read only if the cache has no measurements for its path, size and times.
    """
    keys = listing["path"].str.cat(listing[["bytes", "mtime", "ctime"]].astype(str), sep="\0")
    records = np.zeros(len(listing), MEASUREMENT_DTYPE)
    todo = np.ones(len(listing), bool)
    try:
        with np.load(cache) as known:
            if known["version"] == VERSION:
                position = pd.Index(known["keys"]).get_indexer(keys)
                records[position >= 0] = known["records"][position[position >= 0]]
                todo = position < 0
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        pass  # no cache, or one that cannot be used
    todo = np.flatnonzero(todo)
    chunks = [todo[start : start + CHUNK] for start in range(0, len(todo), CHUNK)]
    jobs = [[str(folder / path) for path in listing.path.to_numpy()[c]] for c in chunks]
    if processes is None:  # a worker takes longer to start than some hundred images to measure
        processes = 1 if len(todo) < 500 else os.cpu_count() or 1
    with tqdm(total=len(todo), desc="Auditing", unit="img", disable=None) as progress:
        for chunk, measured in zip(chunks, _measure_in_processes(jobs, processes), strict=True):
            records[chunk] = measured
            progress.update(len(chunk))
    if len(todo):
        partial = cache.with_name(".partial.npz")
        try:
            np.savez(partial, version=VERSION, keys=keys.to_numpy("U"), records=records)
            os.replace(partial, cache)
        except OSError as error:
            raise UserError(f"{cache}: cannot be written ({error.strerror})") from error
    return records


def _measure_in_processes(jobs: list[list[str]], processes: int) -> Iterator[np.ndarray]:
    if processes == 1:
        yield from map(measure_files, jobs)
        return
    context = worker_context("dfd_utils.data.image_statistics", "scipy.fftpack")
    try:
        with ProcessPoolExecutor(processes, context) as pool:
            yield from pool.map(measure_files, jobs)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process of the audit died: free some memory, or, in a script, "
            'call it under `if __name__ == "__main__":`'
        ) from error
