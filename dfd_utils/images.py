"""Image files: which there are, and their pixels. Knows no torch, so that workers start small."""

import io
import os
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from dfd_utils.config import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
IMAGE_KINDS = ", ".join(IMAGE_SUFFIXES)


def image_entries(folder: Path) -> list[os.DirEntry]:
    """Return the image files of a folder by name.

    Raises:
        UserError: a file's name is not UTF-8, which no table could hold.
    """
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if entry.name.lower().endswith(IMAGE_SUFFIXES)]
    for entry in found:
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            text = f"{folder}: the file name {entry.name!a} is not UTF-8; rename it"
            raise UserError(text) from None
    return sorted(found, key=lambda entry: entry.name)


def read_pixels(path: str | Path) -> np.ndarray:
    """Decode an image file to uint8 RGB `[H, W, 3]`, turned upright by its EXIF tag.

    Upright JPEGs go through simplejpeg, with the accurate DCT: the same pixels as Pillow's, in
    half the time. Pillow reads all other files, and judges those that simplejpeg refuses.

    Raises:
        UserError: the file is missing, empty, truncated or no image; names it and the remedy.
    """
    try:
        return decode(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a readable image"
        raise UserError(
            f"{path}: {reason}; remove it, or let `dfd audit` put it on the exclusion list"
        ) from error


def decode(content: bytes) -> np.ndarray:
    """Decode a file's content as `read_pixels` does; a ValueError says that it cannot be."""
    pixels = _plain_jpeg(content)
    if pixels is not None:
        return pixels
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError("not a readable image") from error


def _plain_jpeg(content: bytes) -> np.ndarray | None:
    """Return uint8 `[H, W, 3]`; None where Pillow has to look: no JPEG, damaged, turned, huge."""
    header = _jpeg_header(content)
    if not simplejpeg.is_jpeg(content) or b"Exif" in header or b"Orientation" in header:
        return None  # EXIF or XMP may say that the image lies on its side
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(content)
        if height * width > Image.MAX_IMAGE_PIXELS:
            return None
        return simplejpeg.decode_jpeg(content)
    except ValueError:
        return None


def _jpeg_header(content: bytes) -> bytes:
    """Return what stands before a JPEG's first scan; all of it, where that is not clear."""
    place = 2  # behind the start marker; then come segments: marker, length, content
    while (marker := content[place : place + 2]) != b"\xff\xda":
        if marker[:1] != b"\xff":
            return content
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return content[:place]
