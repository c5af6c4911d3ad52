"""What do damaged image files do to the decoders of the audit and of the prediction?

    python -m benchmarks.fuzz_images [--images 100000] [--first 0] [--case NUMBER FILE]

Damages small drawn images of every format that is read. Each must be read by both decoders, to the
same pixels, or be refused by both with one line: within 10 s, less than 1 GB of memory, and nothing
on standard error but what libtiff itself writes there about a TIFF. A case is known by its number;
`--case` writes its file. Exits with 1 if one fails.
"""

import argparse
import hashlib
import io
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.mutations import mutate
from benchmarks.watched import watch
from dfd_utils.config import UserError
from dfd_utils.data.image_io import read_pixels
from dfd_utils.data.image_statistics import measure_files

# Format, colour mode, and the options of Pillow's `save`.
KINDS = (
    ("JPEG", "RGB", {"quality": 85}),
    ("JPEG", "RGB", {"progressive": True}),
    ("JPEG", "CMYK", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"}),
    ("JPEG", "L", {"subsampling": 0}),
    ("PNG", "RGB", {"icc_profile": b"x" * 300}),
    ("PNG", "RGBA", {}),
    ("PNG", "I;16", {}),
    ("PNG", "P", {"transparency": 0}),
    ("PNG", "1", {}),
    ("WEBP", "RGB", {"quality": 70}),
    ("WEBP", "RGBA", {"lossless": True}),
    ("BMP", "RGB", {}),
    ("BMP", "P", {}),
    ("TIFF", "RGB", {}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("TIFF", "RGB", {"compression": "jpeg"}),
    ("TIFF", "RGBA", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", "I;16", {}),
    ("TIFF", "1", {"compression": "group4"}),
    ("GIF", "P", {}),
    ("AVIF", "RGB", {}),
)


def main() -> int:
    """Fuzz, and print a row per format and a line per finding."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", nargs=2, metavar=("NUMBER", "FILE"))
    options = parser.parse_args()
    if options.case:
        Path(options.case[1]).write_bytes(mutate(seeds(), int(options.case[0]))[1])
        return 0
    start, counts, findings = time.monotonic(), Counter(), 0
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        cases = range(options.first, options.first + options.images)
        for number, result in watch(cases, partial(prepare, folder)):
            kind, _, outcome = result.partition(" ")
            if outcome in ("read", "refused"):
                counts[kind, outcome] += 1
            else:
                findings += 1
                print(f"case {number}: {result}", flush=True)
    print("| format | read | refused |\n|---|---:|---:|")
    for kind in dict.fromkeys(kind for kind, _, _ in KINDS):
        print(f"| {kind} | {counts[kind, 'read']:,} | {counts[kind, 'refused']:,} |")
    seconds = time.monotonic() - start
    print(f"{options.images:,} damaged images, {findings} findings, {seconds:.0f} s")
    return int(findings > 0)


def seeds() -> list[bytes]:
    """Return a small drawn face in every kind of file."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :48]
    pixels = np.stack([40 + 4 * x, 40 + 4 * y, 200 - 3 * x], axis=2)
    pixels = (pixels + rng.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8)
    drawn = Image.fromarray(pixels)
    files = []
    for kind, mode, options in KINDS:
        if mode == "I;16":
            image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        else:
            image = drawn.convert(mode)
        if mode == "RGBA":
            image.putalpha(Image.fromarray(pixels[..., 1]))
        file = io.BytesIO()
        image.save(file, kind, **options)
        files.append(file.getvalue())
    return files


def prepare(folder: str) -> Callable[[int], str]:
    """Return the function that tries one case, in a process whose standard error is watched."""
    files, path = seeds(), os.path.join(folder, "image")
    told = os.open(os.path.join(folder, "stderr"), os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.dup2(told, sys.stderr.fileno())
    warnings.filterwarnings("ignore", module=r"PIL\.")  # as the commands do

    def attempt(number: int) -> str:
        which, content = mutate(files, number)
        with open(path, "wb") as file:
            file.write(content)
        outcome = compare(path)
        if os.fstat(told).st_size:
            lines = os.pread(told, 10**6, 0)
            if KINDS[which][0] != "TIFF" or b"Warning" in lines or b"Traceback" in lines:
                outcome = f"standard error: {lines[:300]!r}"
            os.ftruncate(told, 0)
            os.lseek(told, 0, os.SEEK_SET)
        return f"{KINDS[which][0]} {outcome}"

    return attempt


def compare(path: str) -> str:
    """Read a file by both decoders; return "read", "refused", or what is wrong."""
    record = measure_files([path])[0]
    try:
        pixels = np.ascontiguousarray(read_pixels(path).transpose(2, 0, 1))
    except UserError as error:
        reason = str(error).removeprefix(f"{path}: ")
        if not record["error"]:
            return f"the audit reads what prediction refuses: {reason}"
        return "refused" if reason and len(reason.splitlines()) == 1 else f"reason: {reason!r}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}"
    if record["error"]:
        return f"prediction reads what the audit refuses: {record['error']!r}"
    key = repr(pixels.shape).encode()
    same = hashlib.blake2b(pixels, key=key, digest_size=16).hexdigest().encode()
    return "read" if record["pixels"] == same else "two decoders, two images"


if __name__ == "__main__":
    sys.exit(main())
