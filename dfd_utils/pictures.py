"""Pictures from anywhere: finding them, and reading them in bounded time and memory."""

import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from dfd_utils.config import UserError
from dfd_utils.images import IMAGE_SUFFIXES, decode

SUFFIXES = (*IMAGE_SUFFIXES, ".bmp", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 100_000_000
MAX_BYTES = 3 * MAX_PIXELS  # as many as the largest picture takes uncompressed
MAX_SCANS = 100  # of a progressive JPEG; encoders write about 10, and each costs a whole pass

# Pillow looks at the header before it decodes; what it only warns of is refused here.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def find_pictures(paths: Iterable[str | Path]) -> Iterator[str]:
    """Yield the files that `paths` stand for, in their order.

    A folder stands for the pictures in it and below, by name (links to folders are not followed,
    so that a loop has an end); a pattern for the files it matches; all else for itself. A folder
    or pattern without a picture is yielded as it is, for `read_picture` to name.
    """
    for path in map(os.fspath, paths):
        found = [path]
        if os.path.isdir(path):
            found = _below(path)
        elif not os.path.lexists(path) and any(sign in path for sign in "*?["):
            found = find_pictures(_matching(path))
        empty = True
        for file in found:
            empty = False
            yield file
        if empty:
            yield path


def _below(folder: str) -> Iterator[str]:
    unreadable: list[OSError] = []
    for place, folders, files in os.walk(folder, onerror=unreadable.append):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES):
                yield os.path.join(place, name)
    yield from (str(error.filename) for error in unreadable)


def _matching(pattern: str) -> list[str]:
    # pathlib's "**" does not follow links, glob's does.
    anchor = Path(pattern).anchor
    try:
        return sorted(map(str, Path(anchor).glob(str(Path(pattern).relative_to(anchor)))))
    except (ValueError, OSError):
        return []


def read_picture(path: str | Path) -> Tensor:
    """Decode a picture of unknown origin to uint8 RGB `[3, H, W]`, turned upright by EXIF.

    JPEG, PNG, WebP, BMP and TIFF (its first page), in any colour mode: 16 bits are scaled to 8,
    what is transparent lies on white. Refused before anything is decoded: what is no regular
    file, more than `MAX_BYTES` or `MAX_PIXELS`, animations, and JPEGs of endless scans.

    Raises:
        UserError: why it was not read; names the file.
    """
    try:
        _check_file(os.stat(path))
        content = Path(path).read_bytes()
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            _check_header(image, content)
            plain = image.mode in ("RGB", "L") and not image.has_transparency_data
            if not plain or image.format == "TIFF":
                return pil_to_tensor(_as_rgb(ImageOps.exif_transpose(image)))
        return torch.from_numpy(decode(content)).permute(2, 0, 1)  # as in training and evaluation
    except UserError as error:
        reason = str(error)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        reason = f"more than {MAX_PIXELS // 10**6} megapixels"
    except Image.UnidentifiedImageError:
        reason = f"not an image ({', '.join(FORMATS)}), or damaged"
    except Exception as error:  # Pillow's decoders raise errors of any kind on damaged files
        reason = getattr(error, "strerror", None) or f"not a readable image ({error})"
    raise UserError(f"{path}: {reason}")


def _check_file(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"a folder without a picture ({', '.join(SUFFIXES)})")
    if not stat.S_ISREG(status.st_mode):
        raise UserError("a device, pipe or socket, not a file")
    if status.st_size == 0:
        raise UserError("an empty file, not an image")
    if status.st_size > MAX_BYTES:
        raise UserError(f"more than {MAX_BYTES // 10**6} MB")


def _check_header(image: Image.Image, content: bytes) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"more than {MAX_PIXELS // 10**6} megapixels")
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        raise UserError("an animation; save one of its frames as a picture")
    if image.info.get("progressive") and content.count(b"\xff\xda") > MAX_SCANS:
        raise UserError(f"a JPEG of more than {MAX_SCANS} scans")


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise UserError("pixels in floating point, of unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise UserError("pixels of more than 16 bits; save it with 8 or 16 bits")
        eight = (levels.astype(np.uint32) + 128) // 257  # 65535 / 255 = 257
        return Image.fromarray(eight.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
