"""Small data and trained models that the tests share; nothing is written into the project."""

import os
import struct
import tempfile
import zlib
from pathlib import Path

# Before dfd_utils is imported: what the code writes by default goes to a folder of the tests'.
os.environ["DFD_OUTPUT_DIR"] = tempfile.mkdtemp(prefix="dfd-tests-")
os.environ.pop("DFD_DATA_DIR", None)

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dfd_utils import config
from dfd_utils.data.folder import DataFolder

TIMING = ["seconds", "images_per_second"]  # columns of history.csv


@pytest.fixture(scope="session")
def tiny_sample(tmp_path_factory) -> DataFolder:
    """The embedded sample with 16 Train images per class and 4 in the other splits."""
    from dfd_utils.data.sample.generate import make_sample

    return DataFolder(make_sample(tmp_path_factory.mktemp("data") / "tiny", per_class=16))


def write_split(folder: Path, images: int, seed: int, size: int = 40) -> None:
    """Write noise images that a network separates at once: Real is bright, Fake is dark."""
    rng = np.random.default_rng(seed)
    for name, level in (("Real", 170), ("Fake", 80)):
        (folder / name).mkdir(parents=True)
        for number in range(images):
            pixels = rng.normal(level, 25, (size, size, 3)).clip(0, 255).astype("uint8")
            Image.fromarray(pixels).save(folder / name / f"{number:03}.jpg", quality=92)


@pytest.fixture(scope="session")
def easy_data(tmp_path_factory) -> DataFolder:
    """Bright against dark images: 24 per class in Train, 8 in Validation and Test."""
    folder = tmp_path_factory.mktemp("data") / "easy"
    for seed, (split, images) in enumerate((("Train", 24), ("Validation", 8), ("Test", 8))):
        write_split(folder / split, images, seed)
    return DataFolder(folder)


@pytest.fixture(scope="session")
def quick() -> config.Profile:
    """Settings that train within seconds; without workers, whose start takes as long."""
    return config.get_profile(
        "sample", image_size=32, epochs=2, batch_size=8, precision="fp32", warmup_steps=4, lr=3e-3,
        num_workers=0,
    )  # fmt: skip


@pytest.fixture(scope="session")
def trained_run(easy_data, quick, tmp_path_factory) -> Path:
    """A run with both models, trained on the easy data."""
    from dfd_utils.training.train import fit

    run = tmp_path_factory.mktemp("runs") / "easy"
    for name in ("resnet50", "efficientnet_b0"):
        fit(name, easy_data, run / name, quick, log=lambda line: None)
    return run


def quiet(line: str) -> None:
    """Ignore a line of progress."""


def assert_same_run(one: Path, two: Path) -> None:
    """Compare two finished runs bit for bit, timing aside."""
    pd.testing.assert_frame_equal(
        *(pd.read_csv(run / "history.csv").drop(columns=TIMING) for run in (one, two))
    )
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    assert (one / "model.json").read_text() == (two / "model.json").read_text()


def huge_png(width: int, height: int) -> bytes:
    """A small PNG file whose header declares any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(10**6))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    )
