"""The image files of a data set and their measurements, made on all cores and kept."""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from tqdm import tqdm

from dfd_utils.config import CLASSES, SPLITS, UserError
from dfd_utils.images import image_entries
from dfd_utils.measure import RECORD, VERSION, measure_files
from dfd_utils.workers import worker_context

CHUNK = 64  # images a task of a worker process


def list_images(folder: Path) -> pd.DataFrame:
    """Return path, split, label, bytes and mtime (ns) of every image file, by split and class.

    Raises:
        UserError: names every split and class that is missing or empty.
    """
    missing, rows = [], []
    for split in SPLITS:
        for label, name in enumerate(CLASSES):
            try:
                entries = image_entries(folder / split / name)
            except (FileNotFoundError, NotADirectoryError):
                entries = []
            missing += [] if entries else [f"{split}/{name}"]
            for entry in entries:
                try:
                    size, mtime = entry.stat().st_size, entry.stat().st_mtime_ns
                except OSError:  # a link to nothing: reading it will say so
                    size, mtime = 0, 0
                rows.append((f"{split}/{name}/{entry.name}", split, label, size, mtime))
    if missing:
        raise UserError(
            f"{folder}: no images in {', '.join(missing)}; a data set is laid out as "
            f"{{{','.join(SPLITS)}}}/{{{','.join(CLASSES)}}}"
        )
    return pd.DataFrame(rows, columns=["path", "split", "label", "bytes", "mtime"])


def measure_all(
    folder: Path, listing: pd.DataFrame, cache: Path, processes: int | None
) -> np.ndarray:
    """Return the RECORD of every listed image `[n]`; those in the cache are not read again."""
    keys = listing.path + "\0" + listing.bytes.astype(str) + "\0" + listing.mtime.astype(str)
    records = np.zeros(len(listing), RECORD)
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
        for chunk, measured in zip(chunks, _run(jobs, processes), strict=True):
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


def _run(jobs: list[list[str]], processes: int) -> Iterator[np.ndarray]:
    if processes == 1:
        yield from map(measure_files, jobs)
        return
    context = worker_context("dfd_utils.measure", "scipy.fftpack")  # the second is imagehash's own
    try:
        with ProcessPoolExecutor(processes, context) as pool:
            yield from pool.map(measure_files, jobs)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process of the audit died: free some memory, or, in a script, "
            'call it under `if __name__ == "__main__":`'
        ) from error
