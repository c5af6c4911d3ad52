"""Small data sets, and counts of the images that an audit reads."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from dfd_utils.config import CLASSES, SPLITS
from dfd_utils.data import scan
from dfd_utils.data.dataset import DeepFakeDataset
from tests.conftest import write_split


def make_image(seed: int, size: int = 96) -> Image.Image:
    """Return an image of smooth colours, different for every seed."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.standard_normal((size, size, 3)), (size / 12, size / 12, 0))
    field = 128 + 55 * field / field.std() + 3 * rng.standard_normal(field.shape)
    return Image.fromarray(np.clip(field, 0, 255).astype(np.uint8))


def write_data_set(folder: Path, first_seed: int = 0, images: int = 4) -> Path:
    """Write distinct JPEGs, `images` per split and class, numbered from 0.jpg."""
    for k, (split, name) in enumerate((s, c) for s in SPLITS for c in CLASSES):
        (folder / split / name).mkdir(parents=True)
        for i in range(images):
            path = folder / split / name / f"{i}.jpg"
            make_image(first_seed + 10 * k + i).save(path, quality=90)
    return folder


def count_measured(monkeypatch) -> list[str]:
    """Return a list that will contain the images that audits read, as split/class/name."""
    read, measure_files = [], scan.measure_files

    def measure(paths):
        read.extend("/".join(Path(path).parts[-3:]) for path in paths)
        return measure_files(paths)

    monkeypatch.setattr(scan, "measure_files", measure)
    return read


@pytest.fixture
def folder(tmp_path):
    """A folder with five images per class in Train."""
    write_split(tmp_path / "Train", 5, seed=3)
    return tmp_path


def make_dataset(folder, transform=None, seed=None) -> DeepFakeDataset:
    names = [f"Train/{name}/{number:03}.jpg" for name in CLASSES for number in range(5)]
    return DeepFakeDataset(Path(folder), names, [0] * 5 + [1] * 5, transform, seed)
