"""The one decoder: formats, colour modes, depth, transparency, rotation, and what it refuses."""

import io
import os
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image, features

from dfd_utils.config import UserError
from dfd_utils.data import image_io
from dfd_utils.data.image_io import expand_paths, find_images, read_pixels
from dfd_utils.data.image_statistics import measure_files
from tests.conftest import huge_png

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def saved(path, image, **options) -> np.ndarray:
    image.save(path, **options)
    return read_pixels(path)


# Reading


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
def test_lossless_formats_give_the_pixels(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    pixels = saved(tmp_path / f"a.{suffix}", Image.fromarray(PIXELS), **options)
    assert np.array_equal(pixels, PIXELS)


def test_jpegs_have_the_same_pixels_as_with_pillow(tiny_sample, tmp_path):
    files = sorted((tiny_sample.path / "Train" / "Real").glob("*.jpg"))
    for subsampling in (0, 1, 2):  # 4:4:4, 4:2:2, 4:2:0
        files.append(tmp_path / f"{subsampling}.jpg")
        with Image.open(files[0]) as image:
            image.resize((101, 67)).save(files[-1], quality=60, subsampling=subsampling)
    files.append(tmp_path / "grey.jfif")
    with Image.open(files[0]) as image:
        image.convert("L").save(files[-1], "JPEG", progressive=True)
    for file in files:
        with Image.open(file) as reference:
            assert np.array_equal(read_pixels(file), np.asarray(reference.convert("RGB")))


@pytest.mark.parametrize(
    ("suffix", "modes"),
    [("png", "1 L LA P RGBA"), ("tiff", "1 L LA P PA RGBA CMYK"), ("gif", "1 L LA P RGBA")],
)
def test_colour_modes_become_rgb(tmp_path, suffix, modes):
    rgb = Image.new("RGB", (20, 10), "white")
    rgb.paste("black", (0, 0, 10, 10))
    for mode in modes.split():
        pixels = saved(tmp_path / f"a.{suffix}", rgb.convert(mode))
        assert pixels.shape == (10, 20, 3) and pixels.dtype == np.uint8
        assert pixels[:, :10].mean() < 5
        assert pixels[:, 10:].mean() > 250


def test_cmyk_jpeg_is_not_inverted(tmp_path):
    pixels = saved(tmp_path / "a.jpg", Image.new("RGB", (16, 16), (220, 60, 20)).convert("CMYK"))
    assert pixels.mean((0, 1)).tolist() == pytest.approx([220, 60, 20], abs=6)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_are_scaled_to_8(tmp_path, suffix):
    levels = np.array([[0, 128, 129, 257, 25700, 65535]], np.uint16)
    pixels = saved(tmp_path / f"a.{suffix}", Image.fromarray(levels))
    assert pixels.tolist() == [[[level] * 3 for level in (0, 0, 1, 1, 100, 255)]]


def test_transparent_pixels_are_on_white(tmp_path):
    pixels = saved(tmp_path / "a.png", Image.new("RGBA", (1, 1), (0, 0, 0, 51)))
    assert pixels.flatten().tolist() == [204] * 3  # a fifth of black on white
    hidden = Image.new("RGBA", (1, 1), (200, 0, 0, 0))
    assert saved(tmp_path / "b.webp", hidden, lossless=True).flatten().tolist() == [255] * 3
    red = Image.new("RGB", (1, 1), (200, 0, 0)).quantize(8)
    assert saved(tmp_path / "c.png", red).flatten().tolist() == [200, 0, 0]
    pixels = saved(tmp_path / "c.png", red, transparency=red.getpixel((0, 0)))
    assert pixels.flatten().tolist() == [255] * 3


def half_black(size=(60, 40)) -> Image.Image:
    image = Image.new("RGB", size, "white")
    image.paste("black", (0, 0, size[0] // 2, size[1]))
    return image


def assert_upright(pixels: np.ndarray) -> None:
    """The left half of `half_black` is at the top after a clockwise quarter turn."""
    assert pixels.shape == (60, 40, 3)
    assert pixels[:28].mean() < 5
    assert pixels[32:].mean() > 250


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "jpg"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_exif_rotation_is_applied_in_every_format(tmp_path, suffix, mode):
    image = half_black().convert("RGB" if (mode, suffix) == ("RGBA", "jpg") else mode)
    exif = image.getexif()
    exif[image_io.ORIENTATION_TAG] = 6
    assert_upright(saved(tmp_path / f"a.{suffix}", image, exif=exif))


@pytest.mark.parametrize("comment", [b"", b"\xff\xda" * 9])  # resembles the marker of a scan
def test_exif_after_another_segment_is_found(tmp_path, comment):
    image = half_black()
    exif = image.getexif()
    exif[image_io.ORIENTATION_TAG] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    content = (tmp_path / "a.jpg").read_bytes()
    segment = b"\xff\xfe" + (2 + len(comment)).to_bytes(2, "big") + comment
    (tmp_path / "a.jpg").write_bytes(content[:2] + segment + content[2:])
    assert_upright(read_pixels(tmp_path / "a.jpg"))


def broken_exif() -> bytes:
    """EXIF data with orientation 6 and a horizontal resolution of -1/0."""
    entries = [(0x112, 3, 1, struct.pack("<HH", 6, 0)), (0x11A, 10, 1, struct.pack("<I", 38))]
    block = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    for tag, kind, count, value in entries:
        block += struct.pack("<HHI", tag, kind, count) + value
    return b"Exif\0\0" + block + bytes(4) + struct.pack("<ii", -1, 0)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_exif_that_is_no_exif_is_ignored(tmp_path, suffix):
    pixels = saved(tmp_path / f"a.{suffix}", half_black(), exif=b"not EXIF data")
    assert pixels.shape == (40, 60, 3)


def test_broken_exif_does_not_hide_the_image(tmp_path):
    assert_upright(saved(tmp_path / "a.jpg", half_black(), exif=broken_exif()))
    (record,) = measure_files([str(tmp_path / "a.jpg")])
    assert (record["error"], record["format"]) == (b"", b"JPEG")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_one_frame_is_read_and_an_animation_refused(tmp_path, kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "blue", "green")]
    path = tmp_path / f"a.{kind.lower()}"
    assert saved(path, frames[0]).min() == 255
    frames[0].save(path, save_all=True, append_images=frames[1:], loop=0)
    with pytest.raises(UserError, match="animation"):
        read_pixels(path)


def test_the_first_page_of_a_tiff_is_read(tmp_path):
    pages = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    assert saved(tmp_path / "a.tif", pages[0], save_all=True, append_images=pages[1:]).min() == 255


# Refusing


@pytest.mark.filterwarnings("ignore")
def test_hostile_files_are_refused_in_one_line(tmp_path):
    (tmp_path / "bomb.png").write_bytes(huge_png(60_000, 60_000))
    (tmp_path / "big.png").write_bytes(huge_png(10_001, 10_000))
    os.mkfifo(tmp_path / "fifo.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.jpg"))
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "dangling.jpg").symlink_to("nowhere.jpg")
    with open(tmp_path / "sparse.png", "wb") as file:
        file.truncate(10**12)
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not an image")
    whole = io.BytesIO()
    Image.fromarray(PIXELS).save(whole, "JPEG", progressive=True)
    scan = whole.getvalue()[whole.getvalue().rindex(b"\xff\xda") : -2]
    (tmp_path / "scans.jpg").write_bytes(whole.getvalue()[:-2] + scan * 5000 + b"\xff\xd9")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tiff")
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(tmp_path / "integers.tiff")
    reasons = {
        "bomb.png": "megapixels", "big.png": "megapixels", "fifo.jpg": "pipe", "s.jpg": "socket",
        "loop.jpg": "symbolic links", "dangling.jpg": "No such file", "sparse.png": "MB",
        "empty.jpg": "empty", "text.jpg": "not an image", "scans.jpg": "scans",
        "float.tiff": "floating point", "integers.tiff": "16 bits", "": "a folder without an image",
    }  # fmt: skip
    paths = [str(tmp_path / name) for name in reasons]
    records = measure_files(paths)  # the audit reports the same reasons
    for path, reason, record in zip(paths, reasons.values(), records, strict=True):
        with pytest.raises(UserError, match=reason) as caught:
            read_pixels(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
        assert reason in record["error"].decode()


def test_a_huge_jpeg_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg")
    monkeypatch.setattr(image_io, "MAX_PIXELS", 1000)
    with pytest.raises(UserError, match="megapixels"):
        read_pixels(tmp_path / "a.jpg")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff", "gif"])
def test_damaged_files_are_read_or_refused(tmp_path, suffix):
    rng = np.random.default_rng(1)
    Image.fromarray(PIXELS).save(tmp_path / f"a.{suffix}")
    whole = (tmp_path / f"a.{suffix}").read_bytes()
    path = tmp_path / f"b.{suffix}"
    for _ in range(60):
        damaged = bytearray(whole[: rng.integers(10, len(whole))])
        for position in rng.integers(0, min(len(damaged), 200), 5):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert read_pixels(path).shape[2] == 3
        except UserError as error:
            assert str(error).startswith(f"{path}: ")


def test_the_import_changes_no_global_setting():
    code = (
        "import warnings, numpy, simplejpeg, PIL.Image, PIL.ImageFile\n"
        "def settings():\n"
        "    pillow = {**vars(PIL.Image), **vars(PIL.ImageFile)}\n"
        "    flags = {k: v for k, v in pillow.items() if k.isupper() and not isinstance(v, dict)}\n"
        "    return repr((flags, warnings.filters, PIL.Image.warnings is warnings))\n"
        "before = settings()\n"
        "import dfd_utils.data.image_io\n"
        "assert settings() == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def with_chunk(content: bytes, kind: bytes, data: bytes, last: bool = False) -> bytes:
    """Return a PNG with one more chunk, behind its header or before its end."""
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    position = len(content) - 12 if last else 33
    return content[:position] + chunk + content[position:]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("kind", "header"),
    [(b"zTXt", b"Comment\0\0"), (b"iTXt", b"Comment\0\1\0en\0\0"), (b"iCCP", b"profile\0\0")],
)
def test_a_png_with_a_long_text_is_read(tmp_path, kind, header, last):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    whole, text = (tmp_path / "a.png").read_bytes(), np.random.default_rng(0).bytes(3 * 10**6)
    for data in (zlib.compress(text), zlib.compress(bytes(3 * 10**6))):
        (tmp_path / "a.png").write_bytes(with_chunk(whole, kind, header + data, last))
        assert np.array_equal(read_pixels(tmp_path / "a.png"), PIXELS)
        (record,) = measure_files([str(tmp_path / "a.png")])
        assert record["error"] == b""


def test_a_short_text_of_a_png_still_gives_its_rotation(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/>'
    half_black().save(tmp_path / "a.png")
    data = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp + b"</rdf:RDF></x:xmpmeta>")
    content = with_chunk((tmp_path / "a.png").read_bytes(), b"iTXt", data)
    content = with_chunk(content, b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 * 10**6)))
    (tmp_path / "a.png").write_bytes(content)
    assert_upright(read_pixels(tmp_path / "a.png"))


def test_a_png_of_countless_texts_is_refused_in_little_time(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    bomb = b"Comment\0\0" + zlib.compress(bytes(3 * 10**6))
    chunk = with_chunk(bytes(45), b"zTXt", bomb)[33:-12]
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[:33] + chunk * 10_000 + content[33:])
    start = time.monotonic()
    with pytest.raises(UserError, match=r"a\.png: "):
        read_pixels(tmp_path / "a.png")
    assert time.monotonic() - start < 5


# Formats that not every installation reads


def test_avif_is_read_where_pillow_can(tmp_path):
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    pixels = saved(tmp_path / "a.avif", Image.fromarray(PIXELS).resize((64, 64)), quality=100)
    with Image.open(tmp_path / "a.avif") as reference:
        assert np.array_equal(pixels, np.asarray(reference))
    exif = half_black().getexif()
    exif[image_io.ORIENTATION_TAG] = 6
    assert_upright(saved(tmp_path / "b.avif", half_black(), quality=100, exif=exif))
    assert list(expand_paths([tmp_path])) == [str(tmp_path / "a.avif"), str(tmp_path / "b.avif")]
    (record,) = measure_files([str(tmp_path / "a.avif")])
    assert (record["error"], record["format"]) == (b"", b"AVIF")
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("white", "blue")]
    frames[0].save(tmp_path / "c.avif", save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match="animation"):
        read_pixels(tmp_path / "c.avif")


def test_heic_is_read_with_the_extra(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    exif = half_black().getexif()
    exif[image_io.ORIENTATION_TAG] = 6
    for name, image in (("a.heic", half_black((128, 96))), ("b.HEIC", half_black())):
        options = {"exif": exif.tobytes()} if name == "b.HEIC" else {}
        pillow_heif.from_pillow(image).save(tmp_path / name, quality=-1, **options)
    pixels = read_pixels(tmp_path / "a.heic")
    assert pixels.shape == (96, 128, 3)
    assert pixels[:, :60].max() < 5 and pixels[:, 70:].min() > 250
    assert_upright(read_pixels(tmp_path / "b.HEIC"))
    assert list(expand_paths([tmp_path])) == [str(tmp_path / "a.heic"), str(tmp_path / "b.HEIC")]
    (record,) = measure_files([str(tmp_path / "a.heic")])
    assert (record["error"], record["format"]) == (b"", b"HEIF")
    content = (tmp_path / "a.heic").read_bytes()
    with pytest.raises(ValueError, match="Unexpected end of file") as caught:
        image_io.decode(content[: len(content) // 2])
    assert "\n" not in str(caught.value)


def test_formats_that_cannot_be_read_here_are_named_with_the_remedy(tmp_path):
    """In a process of its own, in which neither decoder is installed."""
    for name, brand in (("a.heic", b"heic"), ("b.jpg", b"mif1"), ("c.avif", b"avif")):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(4) + b"miaf" + bytes(99))
    code = (
        "import sys, PIL.features as features\n"
        "sys.modules['pillow_heif'] = None\n"
        "features.modules.pop('avif', None)\n"
        "from dfd_utils.data.image_io import *\n"
        "skipped = Counter()\n"
        "print(*list(expand_paths([sys.argv[1]], skipped)), dict(skipped))\n"
        "for name in ('a.heic', 'b.jpg', 'c.avif'):\n"
        "    try: read_pixels(sys.argv[1] + '/' + name)\n"
        "    except UserError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines == [
        f"{tmp_path}/b.jpg {{'.heic': 1, '.avif': 1}}",
        f"{tmp_path}/a.heic: a HEIC image; to read it: pip install 'dfd-utils[heif]'",
        f"{tmp_path}/b.jpg: a HEIC image; to read it: pip install 'dfd-utils[heif]'",
        f"{tmp_path}/c.avif: an AVIF image; to read it: pip install --upgrade pillow",
    ]


# Finding


def test_folders_patterns_and_files_are_expanded_in_their_order(tmp_path):
    for name in ("b.jpg", "a.png", "deep/c.BMP", "deep/d.jfif", "deep/.e.jpg", ".hidden/f.jpg",
                 "note.txt", "README", "clip.MP4", "x[1].jpg"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    skipped = Counter()
    paths = [tmp_path / "missing.jpg", tmp_path, f"{tmp_path}/**/*.BMP", tmp_path / "x[1].jpg"]
    expected = ["missing.jpg", "a.png", "b.jpg", "x[1].jpg", "deep/c.BMP", "deep/d.jfif"]
    expected += ["deep/c.BMP", "x[1].jpg"]
    assert list(expand_paths(paths, skipped)) == [str(tmp_path / name) for name in expected]
    assert skipped == {".txt": 1, "without suffix": 1, ".mp4": 1}


def test_folders_1000_deep_and_circles_are_read_once(tmp_path):
    image = Image.new("RGB", (8, 8))
    image.save(tmp_path / "a.jpg")
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1000):
        os.mkdir("d", dir_fd=here)
        here, above = os.open("d", os.O_RDONLY, dir_fd=here), here
        os.close(above)
    os.symlink(tmp_path, "circle", dir_fd=here)
    os.symlink("self", "self", dir_fd=here)
    os.symlink(tmp_path / "a.jpg", "z.jpg", dir_fd=here)
    os.close(here)
    deepest = str(tmp_path / "d" / "/".join("d" * 999) / "z.jpg")
    for follow_links in (False, True):
        found = list(find_images(str(tmp_path), Counter(), follow_links))
        assert found == [str(tmp_path / "a.jpg"), deepest]
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # too deep for pytest's own


def test_paths_without_an_image_are_kept(tmp_path):
    (tmp_path / "empty").mkdir()
    paths = [str(tmp_path / "empty"), f"{tmp_path}/*.webp", "no\udcffwhere.jpg", "nul\0.jpg"]
    assert list(expand_paths(paths)) == paths
