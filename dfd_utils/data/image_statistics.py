"""Measurements of an image file: its properties, hashes and degradation statistics.

The audit's worker processes import this module, so it avoids slow imports.
"""

import hashlib
import os
import warnings
from contextlib import suppress
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image

from dfd_utils.data.image_io import FORMATS, decode, open_image, read_content

# Raise the number whenever the same file gives other values; so does another set of formats.
VERSION = f"6 {' '.join(FORMATS)}"
HASH_SIZE = 8  # imagehash.phash of 8 x 8 coefficients: 64 bits
THUMBNAIL = 32  # pixels per side
BAND = 4_000_000  # pixels measured at a time: the statistics need 28 bytes per pixel
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
TRANSPARENCY = "transparency"  # share of pixels that are not opaque, 0 to 1
STANDARD_LUMA_MEAN = 57.625  # of libjpeg's luma quantisation table at quality 50
MEASUREMENT_DTYPE = np.dtype(
    [("error", "S100"), ("sha256", "S64"), ("pixels", "S32"), ("width", "i4"), ("height", "i4")]
    + [("format", "S8"), ("mode", "S8"), ("jpeg_tables", "S8")]
    + [(name, "f4") for name in (*STATISTICS, *COLOURS, TRANSPARENCY)]
    + [("hash", "u8"), ("thumbnail", "u1", (THUMBNAIL, THUMBNAIL))]
)


def measure_files(paths: list[str]) -> np.ndarray:
    """Return the measurements of every file, `[n]`; an unreadable file has an error message."""
    records = np.zeros(len(paths), MEASUREMENT_DTYPE)
    _read_ahead(paths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's name no file
        for record, path in zip(records, paths, strict=True):
            try:
                _measure(Path(path), record)
            except Exception as error:  # whatever a damaged file raises: record it and continue
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                record["error"] = reason.encode("ascii", "replace")
    return records


def _read_ahead(paths: list[str]) -> None:
    """Ask the system to read all files ahead, so that the cores do not wait for each in turn."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        with suppress(OSError):  # _measure reports the reason
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
            os.close(file)


def _measure(path: Path, record: np.void) -> None:
    """Fill the measurements of one image; raise an error with the reason if it is unreadable."""
    content = read_content(path)
    record["sha256"] = hashlib.sha256(content).hexdigest()
    pixels = np.ascontiguousarray(decode(content).transpose(2, 0, 1))
    header = open_image(content)
    record["width"], record["height"] = header.size
    record["format"], record["mode"] = header.format, header.mode
    tables = getattr(header, "quantization", None) or {}
    if tables:
        record["jpeg_tables"] = hashlib.sha256(repr(sorted(tables.items())).encode()).hexdigest()
    record["jpeg_quality"] = _jpeg_quality(tables)
    if header.has_transparency_data:
        record[TRANSPARENCY] = (np.asarray(header.convert("RGBA"))[..., 3] < 255).mean()
    record["pixels"] = hashlib.blake2b(
        pixels, key=repr(pixels.shape).encode(), digest_size=16
    ).hexdigest()
    grey = _fill_statistics(pixels, record)
    image = Image.fromarray(grey)
    bits = imagehash.phash(image, hash_size=HASH_SIZE).hash
    record["hash"] = np.packbits(bits).view(np.uint64)[0]
    size = (THUMBNAIL, THUMBNAIL)
    record["thumbnail"] = np.asarray(image.resize(size, Image.Resampling.BOX))


def _fill_statistics(pixels: np.ndarray, record: np.void) -> np.ndarray:
    """Fill the statistics of an image, uint8 RGB `[3, H, W]`, and return its luma `[H, W]`.

    Those of an image of more than `BAND` pixels are means over bands across its longer side.
    """
    across = 1 + int(np.argmax(pixels.shape[1:]))
    length, bands = pixels.shape[across], -(-pixels[0].size // BAND)
    size = -(-length // (8 * bands)) * 8  # starts on the grid of JPEG
    luma = []
    for start in range(0, length, size):
        band = pixels.take(range(start, min(start + size, length)), across)
        statistics, grey = _statistics(band)
        luma.append(grey)
        for name, value in statistics.items():
            record[name] += value * band.shape[across] / length
    return np.concatenate(luma, axis=across - 1)


def _statistics(pixels: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """Return the statistics of pixels, uint8 RGB `[3, H, W]`, and their luma, uint8 `[H, W]`."""
    red, green, blue = pixels
    highest = np.maximum(np.maximum(red, green), blue)  # faster than pixels.max(0)
    chroma = highest - np.minimum(np.minimum(red, green), blue)
    found = {"saturation": (chroma / np.maximum(highest, 1, dtype=np.float32)).mean()}
    found["grey_share"] = (chroma < 10).mean()
    found |= {name: channel.mean() for name, channel in zip(COLOURS, pixels, strict=True)}
    luma = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
    found |= {"brightness": luma.mean(), "contrast": luma.std()}
    if min(luma.shape) > 2:
        across = luma[:, :-2] - 2 * luma[:, 1:-1] + luma[:, 2:]  # second differences
        down = luma[:-2] - 2 * luma[1:-1] + luma[2:]
        found["sharpness"] = (across[1:-1] + down[:, 1:-1]).std()
        # Second differences in both directions respond to noise, but not to straight edges.
        mixed = across[:-2] - 2 * across[1:-1] + across[2:]
        found["noise"] = np.sqrt(np.pi / 2) / 6 * np.abs(mixed).mean()
    found["blockiness"] = np.mean([_blockiness(luma), _blockiness(luma.T)])
    return found, (luma + 0.5).astype(np.uint8)


def _blockiness(luma: np.ndarray) -> float:
    steps = np.abs(np.diff(luma, axis=1)).mean(0)
    return steps[7::8].mean() / steps.mean() if len(steps) > 7 and steps.any() else 1.0


def _jpeg_quality(tables: dict[int, list[int]]) -> float:
    if 0 not in tables:
        return np.nan
    scale = 100 * np.mean(tables[0]) / STANDARD_LUMA_MEAN
    return float(np.clip((200 - scale) / 2 if scale <= 100 else 5000 / scale, 1, 100))
