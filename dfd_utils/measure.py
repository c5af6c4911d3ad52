"""Measure image files: what each holds, its hashes and its degradation statistics."""

import hashlib
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import imagehash
import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from dfd_utils.config import CLASSES, SPLITS, UserError
from dfd_utils.duplicates import HASH_SIZE, THUMBNAIL
from dfd_utils.images import image_entries, read_pixels

VERSION = 2  # raise it whenever the same file gives other values
CHUNK = 64  # images a task of a worker process

# Degradation statistics of an image; grey levels run from 0 to 255.
STATISTICS = {
    "saturation": "mean of HSV saturation, 0 to 1",
    "grey_share": "share of pixels whose channels differ by less than 10 grey levels, 0 to 1",
    "sharpness": "standard deviation of the Laplacian, grey levels",
    "noise": "standard deviation of the noise (Immerkaer 1996), grey levels",
    "blockiness": "steps across the 8 x 8 grid of JPEG relative to all steps; 1 without a grid",
    "brightness": "mean luma, grey levels",
    "contrast": "standard deviation of luma, grey levels",
    "jpeg_quality": "quality 1 to 100 of libjpeg's scale, from the file's luma table",
}
COLOURS = ("red", "green", "blue")  # means, grey levels
STANDARD_LUMA_MEAN = 57.625  # of libjpeg's luma quantisation table at quality 50

RECORD = np.dtype(
    [("error", "S100"), ("sha256", "S64"), ("pixels", "S32"), ("width", "i4"), ("height", "i4")]
    + [("format", "S8"), ("mode", "S8"), ("jpeg_tables", "S8")]
    + [(name, "f4") for name in (*STATISTICS, *COLOURS)]
    + [("hash", "u8"), ("thumbnail", "u1", (THUMBNAIL, THUMBNAIL))]
)


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
        yield from map(_measure_chunk, jobs)
        return
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:  # imported once, not once a worker
        context.set_forkserver_preload(["dfd_utils.measure"])
    try:
        with ProcessPoolExecutor(processes, context) as pool:
            yield from pool.map(_measure_chunk, jobs)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process of the audit died: free some memory, or, in a script, "
            'call it under `if __name__ == "__main__":`'
        ) from error


def _measure_chunk(paths: list[str]) -> np.ndarray:
    records = np.zeros(len(paths), RECORD)
    _read_ahead(paths)
    for record, path in zip(records, paths, strict=True):
        try:
            _measure(Path(path), record)
        except Exception as error:  # whatever a broken file raises: it is named, the rest goes on
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            record["error"] = reason.encode("ascii", "replace")
    return records


def _read_ahead(paths: list[str]) -> None:
    """Ask the system for all files at once, so that the cores do not wait for each in turn."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        with suppress(OSError):  # measuring it will tell
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
            os.close(file)


def _measure(path: Path, record: np.void) -> None:
    """Fill the RECORD of one image; raises with the reason where it cannot be read."""
    data = path.read_bytes()
    if not data:
        raise ValueError("empty file")
    record["sha256"] = hashlib.sha256(data).hexdigest()
    try:
        header = Image.open(BytesIO(data))
    except Image.UnidentifiedImageError:
        raise ValueError("not an image, whatever its name says") from None
    record["width"], record["height"] = header.size
    record["format"], record["mode"] = header.format, header.mode
    try:
        pixels = np.ascontiguousarray(read_pixels(path).transpose(2, 0, 1))
    except UserError:
        raise ValueError(f"truncated or damaged {header.format} ({header.mode})") from None
    tables = getattr(header, "quantization", None) or {}
    if tables:
        record["jpeg_tables"] = hashlib.sha256(repr(sorted(tables.items())).encode()).hexdigest()
    record["jpeg_quality"] = _jpeg_quality(tables)
    record["pixels"] = hashlib.blake2b(
        pixels, key=repr(pixels.shape).encode(), digest_size=16
    ).hexdigest()
    grey = _fill_statistics(pixels, record)
    picture = Image.fromarray(grey)
    bits = imagehash.phash(picture, hash_size=HASH_SIZE).hash
    record["hash"] = np.packbits(bits).view(np.uint64)[0]
    size = (THUMBNAIL, THUMBNAIL)
    record["thumbnail"] = np.asarray(picture.resize(size, Image.Resampling.BOX))


def _fill_statistics(pixels: np.ndarray, record: np.void) -> np.ndarray:
    """Fill the statistics of an image, uint8 RGB `[3, H, W]`, and return its luma `[H, W]`."""
    red, green, blue = pixels
    highest = np.maximum(np.maximum(red, green), blue)  # faster than pixels.max(0)
    chroma = highest - np.minimum(np.minimum(red, green), blue)
    record["saturation"] = (chroma / np.maximum(highest, 1, dtype=np.float32)).mean()
    record["grey_share"] = (chroma < 10).mean()
    for name, channel in zip(COLOURS, pixels, strict=True):
        record[name] = channel.mean()
    luma = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
    record["brightness"], record["contrast"] = luma.mean(), luma.std()
    if min(luma.shape) > 2:
        across = luma[:, :-2] - 2 * luma[:, 1:-1] + luma[:, 2:]  # second differences
        down = luma[:-2] - 2 * luma[1:-1] + luma[2:]
        record["sharpness"] = (across[1:-1] + down[:, 1:-1]).std()
        # Second differences both ways see noise, but no straight edges.
        mixed = across[:-2] - 2 * across[1:-1] + across[2:]
        record["noise"] = np.sqrt(np.pi / 2) / 6 * np.abs(mixed).mean()
    record["blockiness"] = np.mean([_blockiness(luma), _blockiness(luma.T)])
    return (luma + 0.5).astype(np.uint8)


def _blockiness(luma: np.ndarray) -> float:
    steps = np.abs(np.diff(luma, axis=1)).mean(0)
    return steps[7::8].mean() / steps.mean() if len(steps) > 7 and steps.any() else 1.0


def _jpeg_quality(tables: dict[int, list[int]]) -> float:
    if 0 not in tables:
        return np.nan
    scale = 100 * np.mean(tables[0]) / STANDARD_LUMA_MEAN
    return float(np.clip((200 - scale) / 2 if scale <= 100 else 5000 / scale, 1, 100))
