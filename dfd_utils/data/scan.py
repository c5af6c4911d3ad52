"""The list of a data set's image files, and their measurements on all cores, cached."""

import multiprocessing
import os
import stat
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from tqdm import tqdm

from dfd_utils.config import CLASSES, SPLITS, UserError
from dfd_utils.data.image_io import find_images
from dfd_utils.data.image_statistics import MEASUREMENT_DTYPE, VERSION, measure_files

CHUNK = 64  # images per task of a worker process
SPLIT_NAMES = {s.lower(): s for s in SPLITS} | {"valid": "Validation", "val": "Validation"}
CLASS_NAMES = {name.lower(): name for name in CLASSES}


def list_images(folder: Path) -> tuple[pd.DataFrame, Counter]:
    """List the files of a data set: its images, and the number of other files by suffix.

    Split and class folders may be in any letter case and have sub-folders. Files and folders
    whose name starts with a dot are ignored.

    Returns:
        columns path (relative to `folder`), split, label, bytes, mtime and ctime (ns), a row per
        image file, sorted by split, class and path; and the counts.

    Raises:
        UserError: two folders differ only in letter case; a name is not UTF-8; a folder is
            unreadable.
    """
    rows, skipped, start = [], Counter(), len(os.path.join(folder, ""))
    for split, split_folder in _subfolders(folder, SPLIT_NAMES, SPLITS):
        for class_name, class_folder in _subfolders(split_folder, CLASS_NAMES, CLASSES):
            files = find_images(str(class_folder), skipped, True, _raise_unreadable)
            for path in files:
                name = path[start:]  # ten times as fast as os.path.relpath
                if not _is_utf8(name):
                    raise UserError(f"{folder}: the file name {name!a} is not UTF-8; rename it")
                if (attributes := _file_attributes(path)) is None:
                    skipped["not a regular file"] += 1
                else:
                    rows.append((name, split, CLASSES.index(class_name), *attributes))
    columns = ["path", "split", "label", "bytes", "mtime", "ctime"]
    return pd.DataFrame(rows, columns=columns), skipped


def _subfolders(parent: Path, names: dict[str, str], order: tuple) -> list[tuple[str, Path]]:
    """Return (canonical name, path) of the folders in `parent` that have one of the names."""
    paths = {}
    for path in sorted(parent.iterdir()) if parent.is_dir() else ():
        name = names.get(path.name.lower())
        if name is None or not path.is_dir():
            continue
        if name in paths:
            raise UserError(f"{parent}: both {paths[name].name} and {path.name}; rename one")
        paths[name] = path
    return [(name, paths[name]) for name in order if name in paths]


def _raise_unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be listed ({error.strerror})") from error


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _file_attributes(path: str) -> tuple[int, int, int] | None:
    """Return size, mtime and ctime (ns); zeros for a dangling link, None for pipes and the like."""
    try:
        status = os.stat(path)
    except OSError:  # the audit reports the reason
        return 0, 0, 0
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def measure_cached(
    folder: Path, listing: pd.DataFrame, cache: Path, processes: int | None
) -> np.ndarray:
    """Return the measurements (MEASUREMENT_DTYPE) of every listed image, `[n]`.

    An image is read only if the cache has no measurements of its path, size and times.
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
        pass  # there is no cache, or it is damaged
    todo = np.flatnonzero(todo)
    chunks = [todo[start : start + CHUNK] for start in range(0, len(todo), CHUNK)]
    jobs = [[str(folder / path) for path in listing.path.to_numpy()[c]] for c in chunks]
    if processes is None:  # starting workers takes longer than measuring a few hundred images
        processes = 1 if len(todo) < 500 else os.cpu_count() or 1
    with tqdm(total=len(todo), desc="Auditing", unit="img", disable=None) as progress:
        for chunk, measured in zip(chunks, _measure_in_processes(jobs, processes), strict=True):
            records[chunk] = measured
            progress.update(len(chunk))
    if len(todo):
        partial = cache.with_name(f".{uuid.uuid4().hex}.partial.npz")
        try:
            np.savez(partial, version=VERSION, keys=keys.to_numpy("U"), records=records)
            os.replace(partial, cache)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise UserError(f"{cache}: cannot be written ({error.strerror})") from error
    return records


def _measure_in_processes(jobs: list[list[str]], processes: int) -> Iterator[np.ndarray]:
    if processes == 1:
        yield from map(measure_files, jobs)
        return
    # Not from a forkserver: the process has one, which serves the data loaders of a training.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(processes, context) as pool:
            yield from pool.map(measure_files, jobs)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process of the audit died: free some memory; in a script, call the audit "
            'under `if __name__ == "__main__":`'
        ) from error
