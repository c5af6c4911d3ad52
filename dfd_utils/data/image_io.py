"""Image files: which files are images, and the one decoder of their pixels; without torch."""

import os
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, features

from dfd_utils.config import UserError

try:
    from pillow_heif import HeifImageFile  # used directly: registering it would change Pillow
except ImportError:  # the extra `heif` is not installed
    HeifImageFile = None

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif",
)  # fmt: skip
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
if "avif" in features.modules and features.check_module("avif"):
    IMAGE_SUFFIXES, FORMATS = (*IMAGE_SUFFIXES, ".avif"), (*FORMATS, "AVIF")
PILLOW_FORMATS = FORMATS
if HeifImageFile is not None:
    IMAGE_SUFFIXES, FORMATS = (*IMAGE_SUFFIXES, ".heic", ".heif"), (*FORMATS, "HEIF")
MAX_PIXELS = 64_000_000  # decoding needs up to 16 bytes per pixel: 1 GB
MAX_BYTES = 4 * MAX_PIXELS  # the size of the largest image without compression, transparent
MAX_SCANS = 100  # of a progressive JPEG; encoders write about 10, and each costs a whole pass
MAX_TEXTS = 100  # of a PNG, that are compressed
ORIENTATION_TAG = 0x0112  # of EXIF
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def is_image_name(name: str) -> bool:
    """Return whether a file name has an image's suffix and does not start with a dot."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def describe_skipped(skipped: Counter) -> str:
    """Return a line about the files that are not images, by suffix; empty if there are none."""
    counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(skipped.items()))
    return f"skipped files that are not images: {counts}" if counts else ""


def expand_paths(paths: Iterable[str | Path], skipped: Counter | None = None) -> Iterator[str]:
    """Yield the files that `paths` refer to, in their order.

    A folder refers to the images in it and below, sorted by name; links to folders are not
    followed. A pattern refers to the files that it matches, anything else to itself. A folder or
    pattern without images is yielded as it is: `read_pixels` reports it. In folders, hidden files
    are ignored, and `skipped` counts the files that are not images, by suffix.
    """
    skipped = Counter() if skipped is None else skipped
    for path in map(os.fspath, paths):
        files = iter([path])
        if os.path.isdir(path):
            files = _list_folder(path, skipped)
        elif not os.path.lexists(path) and any(sign in path for sign in "*?["):
            files = expand_paths(_matching_files(path), skipped)
        yield next(files, path)
        yield from files


def find_images(
    folder: str,
    skipped: Counter,
    follow_links: bool = False,
    onerror: Callable[[OSError], object] | None = None,
) -> Iterator[str]:
    """Yield the images in a folder and below, sorted by name; ignore hidden files and folders.

    `skipped` counts the other files by suffix; `onerror` is called for an unreadable folder.
    """
    visited, waiting = set(), [(folder, os.path.realpath(folder))]  # os.walk fails 1,000 deep
    while waiting:
        root, real = waiting.pop()
        if real in visited:  # a link leads here, too
            continue
        visited.add(real)
        try:
            with os.scandir(root) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            if onerror:
                onerror(error)
            continue
        folders = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                link = entry.is_symlink()
                below = os.path.realpath(entry.path) if link else os.path.join(real, entry.name)
                folders += [(entry.path, below)] if follow_links or not link else []
            elif is_image_name(entry.name):
                yield entry.path
            else:
                suffix = os.path.splitext(entry.name)[1].lower() or "without suffix"
                skipped[suffix.encode(errors="replace").decode()] += 1
        waiting += reversed(folders)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _list_folder(folder: str, skipped: Counter) -> Iterator[str]:
    unreadable: list[OSError] = []
    yield from find_images(folder, skipped, onerror=unreadable.append)
    yield from (str(error.filename) for error in unreadable)


def _matching_files(pattern: str) -> list[str]:
    # In pathlib "**" does not follow links, unlike in the glob module.
    anchor = Path(pattern).anchor
    try:
        return sorted(map(str, Path(anchor).glob(str(Path(pattern).relative_to(anchor)))))
    except (ValueError, OSError):
        return []


def read_pixels(path: str | Path) -> np.ndarray:
    """Decode an image file to uint8 RGB `[H, W, 3]`, turned upright by its EXIF tag.

    Reads `FORMATS` (of TIFF the first page, of HEIF the primary image) in any colour mode; scales
    16 bits to 8 and composites transparent pixels on white. Refuses before decoding: anything but a
    regular file, more than `MAX_BYTES` or `MAX_PIXELS`, animations, JPEGs of more than `MAX_SCANS`
    scans.

    Raises:
        UserError: one line with the file and the reason.
    """
    try:
        return decode(read_content(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def read_content(path: str | Path) -> bytes:
    """Return a file's bytes; raise an OSError, or a ValueError for what cannot be an image."""
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(f"a folder without an image ({', '.join(IMAGE_SUFFIXES)})")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("a device, pipe or socket, not a file")
    if status.st_size == 0:
        raise ValueError("an empty file, not an image")
    if status.st_size > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES // 10**6} MB: not an image, or too large")
    return Path(path).read_bytes()


def decode(content: bytes) -> np.ndarray:
    """Decode a file's content as `read_pixels` does; raise a ValueError with the reason if not.

    simplejpeg decodes upright JPEGs to the same pixels as Pillow in half the time. Pillow decodes
    all other files, including those that simplejpeg refuses.
    """
    pixels = _decode_plain_jpeg(content)
    if pixels is not None:
        return pixels
    try:
        with open_image(content) as image:
            _check_header(image, content)
            image.load()  # rotates a TIFF by its tag and removes the tag
            upright = _UPRIGHT.get(_orientation(image))
            rgb = _to_rgb(image)
        return np.array(rgb.transpose(upright) if upright is not None else rgb)
    except Image.DecompressionBombError as error:
        raise ValueError(f"more than {MAX_PIXELS // 10**6} megapixels") from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"not an image ({', '.join(FORMATS)}), or damaged") from error
    except Exception as error:  # of any kind on damaged files, and of several lines
        reason = " ".join(str(error).split())
        if not isinstance(error, ValueError):
            reason = f"not a readable image ({reason})"
        raise ValueError(reason) from error


def open_image(content: bytes) -> Image.Image:
    """Return a file's content as an image of Pillow, whose pixels are not decoded yet.

    Raises:
        Exception: of any kind if the content is not an image of `FORMATS`.
    """
    kind = _isobmff_kind(content)
    if kind == "HEIF":
        if HeifImageFile is None:
            raise ValueError("a HEIC image; to read it: pip install 'dfd-utils[heif]'")
        return HeifImageFile(BytesIO(content))
    if kind == "AVIF" and kind not in FORMATS:
        raise ValueError("an AVIF image; to read it: pip install --upgrade pillow")
    if content.startswith(b"\x89PNG"):
        content = _without_long_texts(content)
    return Image.open(BytesIO(content), formats=PILLOW_FORMATS)


def _isobmff_kind(content: bytes) -> str | None:
    """Return "AVIF" or "HEIF" by the brands at the start of the file (ISO/IEC 23008-12)."""
    if content[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(content[:4], "big"), 256)
    brands = {content[start : start + 4] for start in range(8, end, 4)}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    return "HEIF" if brands & {b"heic", b"heix", b"heim", b"heis", b"mif1"} else None


def _without_long_texts(content: bytes) -> bytes:
    """Return a PNG without the compressed texts and the colour profile that are too long.

    Pillow refuses an image with one of more than 1 MB. One with more than `MAX_TEXTS` is returned
    as it is, so that hostile files cost little time.
    """
    kept, start, position, texts = [], 0, 8, 0
    while position < len(content) and texts <= MAX_TEXTS:
        end = position + 12 + int.from_bytes(content[position : position + 4], "big")
        kind = content[position + 4 : position + 8]
        if kind in (b"zTXt", b"iTXt", b"iCCP"):
            texts += 1
            if _is_long(kind, content[position + 8 : end - 4]):
                kept.append(content[start:position])
                start = end
        position = end
    return b"".join([*kept, content[start:]]) if kept and texts <= MAX_TEXTS else content


def _is_long(kind: bytes, data: bytes) -> bool:
    data = data.partition(b"\0")[2][1:]  # behind the name, and the method or iTXt's flag
    if kind == b"iTXt":
        data = data[1:].split(b"\0", 2)[-1]  # behind the method and two names of the language
    inflater = zlib.decompressobj()
    try:
        inflater.decompress(data, ImageFile.SAFEBLOCK)
    except zlib.error:  # not compressed, or damaged: Pillow reads or ignores it
        return False
    return bool(inflater.unconsumed_tail)


def _check_header(image: Image.Image, content: bytes) -> None:
    """Raise a ValueError for an image that must not be decoded."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"more than {MAX_PIXELS // 10**6} megapixels")
    if image.format in ("PNG", "WEBP", "GIF", "AVIF") and getattr(image, "is_animated", False):
        raise ValueError("an animation; save one of its frames as an image")
    if image.info.get("progressive") and content.count(b"\xff\xda") > MAX_SCANS:
        raise ValueError(f"a JPEG of more than {MAX_SCANS} scans")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF data; the pixels may be intact
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating point pixels of unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError("pixels of more than 16 bits; save it with 8 or 16 bits")
        eight = levels.astype(np.uint32)
        eight += 128
        eight //= 257  # 65535 / 255 = 257
        return Image.fromarray(eight.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _decode_plain_jpeg(content: bytes) -> np.ndarray | None:
    """Return uint8 `[H, W, 3]`; None if it is not a JPEG, or is damaged, rotated or huge."""
    if not simplejpeg.is_jpeg(content) or content.count(b"\xff\xda") > MAX_SCANS:
        return None
    header = _jpeg_header(content)
    if b"Exif" in header or b"Orientation" in header:  # EXIF or XMP may contain a rotation
        return None
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(content)
        if height * width > MAX_PIXELS:
            return None
        return simplejpeg.decode_jpeg(content)
    except ValueError:
        return None


def _jpeg_header(content: bytes) -> bytes:
    """Return a JPEG's bytes before its first scan; all bytes if the segments are damaged."""
    position = 2  # after the start marker; each segment has a marker, a length and its content
    while (marker := content[position : position + 2]) != b"\xff\xda":
        if marker[:1] != b"\xff":
            return content
        position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    return content[:position]
