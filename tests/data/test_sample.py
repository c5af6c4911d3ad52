"""The embedded sample: layout, determinism, masks, degradation of Test, existing folders."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfd_utils.config import CLASSES, SPLITS, UserError
from dfd_utils.data.sample import generate
from dfd_utils.data.sample.generate import is_sample, make_sample, mask_path


def digests(folder: Path, pattern: str = "**/*.*") -> dict[str, str]:
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(float)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_sample(tmp_path_factory.mktemp("made") / "sample", per_class=24, seed=3)


def test_layout_counts_and_format(made):
    names = {path.name for path in made.iterdir()}
    assert names == {*SPLITS, "masks", "sample.json"}
    for split, count in zip(SPLITS, (24, 6, 6), strict=True):
        for name in CLASSES:
            images = sorted((made / split / name).iterdir())
            assert [path.name for path in images] == [f"{i:04d}.jpg" for i in range(count)]
            for path in images:
                with Image.open(path) as image:
                    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (256, 256))
    marker = json.loads((made / "sample.json").read_text())
    assert marker["counts"] == {"Train": 24, "Validation": 6, "Test": 6}
    assert (marker["seed"], marker["per_class"]) == (3, 24)
    assert "not real deepfakes" in marker["note"]
    assert is_sample(made)
    assert not is_sample(made / "Train")


def test_no_two_images_are_equal(made):
    hashes = list(digests(made, "*/*/*.jpg").values())
    assert len(hashes) == len(set(hashes)) == 72


def test_bytes_depend_on_neither_processes_nor_per_class(made, tmp_path):
    few = digests(make_sample(tmp_path / "few", per_class=5, seed=3, processes=2), "*/**/*.*")
    assert len(few) == 2 * (5 + 2 + 2) + 9
    many = digests(made)
    assert {name: many[name] for name in few} == few


def test_another_seed_gives_other_images(made, tmp_path):
    other = digests(make_sample(tmp_path / "other", per_class=1, seed=4), "*/*/*.jpg")
    first = digests(made)
    assert len(other) == 10
    assert all(first[name] != digest for name, digest in other.items())


def test_every_fake_has_a_mask_of_a_plausible_area_and_no_real_has_one(made):
    fakes = sorted(made.glob("*/Fake/*.jpg"))
    masks = [mask_path(fake) for fake in fakes]
    assert sorted(masks) == sorted((made / "masks").glob("*/*.png"))
    for path in masks:
        mask = np.asarray(Image.open(path))
        assert (mask.dtype, mask.shape) == (np.uint8, (256, 256))
        assert set(np.unique(mask)) == {0, 255}
        assert 0.04 < (mask == 255).mean() < 0.3
    with pytest.raises(ValueError, match="only Fake images have masks"):
        mask_path(made / "Train" / "Real" / "0000.jpg")


def test_the_swap_changes_the_masked_region_only(made, tmp_path, monkeypatch):
    """Without the source's face, a Fake differs only within its mask."""
    monkeypatch.setattr(generate, "_source_face", _unchanged(generate._source_face))
    plain = make_sample(tmp_path / "plain", per_class=8, seed=3, processes=1)
    for fake in sorted((plain / "Train" / "Fake").iterdir()):
        twin = made / "Train" / "Fake" / fake.name
        change = np.abs(pixels(fake) - pixels(twin)).mean(2)
        inside = np.asarray(Image.open(mask_path(twin))) == 255
        assert change[inside].mean() > 4
        assert change[:60].mean() < 1  # hair and background
        assert change[inside].mean() > 8 * change[~inside].mean()


def _unchanged(source_face):
    def keep_target(target, image, alpha, rng):
        source_face(target, image, alpha, rng)  # draws the same random numbers
        return image

    return keep_target


def test_swapped_faces_are_blurrier_than_faces(made):
    """Detail is the change between neighbouring pixels, in the face relative to the rest."""

    def relative_detail(path, inside):
        grey = np.asarray(Image.open(path).convert("L")).astype(float)
        blocks = grey.reshape(128, 2, 128, 2).mean((1, 3))  # without sensor noise
        detail = np.abs(np.diff(blocks, axis=0)[:, :-1]) + np.abs(np.diff(blocks, axis=1)[:-1])
        inside = inside[::2, ::2][:-1, :-1]
        return detail[inside].mean() / detail[20:90, 30:100].mean()

    real, fake = [], []
    for index in range(24):
        swapped = made / "Train" / "Fake" / f"{index:04d}.jpg"
        inside = np.asarray(Image.open(mask_path(swapped))) == 255
        fake.append(relative_detail(swapped, inside))
        real.append(relative_detail(made / "Train" / "Real" / f"{index:04d}.jpg", inside))
    assert np.mean(fake) < 0.9 * np.mean(real)


def test_both_classes_share_the_range_of_jpeg_qualities(made):
    tables = {}
    for label, name in enumerate(CLASSES):
        images = (made / "Train" / name).iterdir()
        tables[label] = [sum(Image.open(path).quantization[0]) for path in images]
        assert len(set(tables[label])) >= 6
    best, worst = (Image.open(_saved(quality)).quantization[0] for quality in (95, 85))
    assert all(sum(best) <= table <= sum(worst) for table in tables[0] + tables[1])
    assert abs(np.mean(tables[0]) - np.mean(tables[1])) < 0.5 * np.std(tables[0])


def _saved(quality: int):
    from io import BytesIO

    data = BytesIO()
    Image.new("RGB", (8, 8)).save(data, "JPEG", quality=quality)
    return data


def test_test_is_degraded_and_train_is_not(made, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "_degrade", lambda image, rng: image)
    clean = make_sample(tmp_path / "clean", per_class=24, seed=3, processes=1)
    assert digests(made, "Train/*/*") == digests(clean, "Train/*/*")
    assert digests(made, "Validation/*/*") == digests(clean, "Validation/*/*")
    names = sorted(path.relative_to(clean) for path in clean.glob("Test/*/*.jpg"))
    changed = {name: (made / name).read_bytes() != (clean / name).read_bytes() for name in names}
    assert {path.parts[1] for path, value in changed.items() if value} == set(CLASSES)
    assert 0.5 < np.mean(list(changed.values())) < 1

    def saturation(root):
        return np.mean([np.ptp(pixels(root / name), axis=2).mean() for name in names])

    assert saturation(made) < 0.97 * saturation(clean)


def test_a_complete_sample_is_kept(tmp_path, monkeypatch):
    folder = make_sample(tmp_path / "sample", per_class=1)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(generate, "_write_images", None)  # a call would fail
    assert make_sample(folder, per_class=1) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_an_interrupted_run_leaves_no_sample_and_the_next_one_cleans_up(tmp_path, monkeypatch):
    folder, written = tmp_path / "sample", []

    def fail_at_the_fourth(job):
        written.append(job)
        if len(written) == 4:
            raise KeyboardInterrupt
        real_write(job)

    real_write = generate._write_image
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(generate, "_write_image", fail_at_the_fourth)
        make_sample(folder, per_class=1, processes=1)
    assert not folder.exists()
    assert list(tmp_path.iterdir()) == []
    killed, running = (tmp_path / f".sample.{name}.partial" for name in "ab")
    killed.mkdir()
    running.mkdir()
    os.utime(killed, (0, 0))
    make_sample(folder, per_class=1)
    assert sorted(tmp_path.iterdir()) == [running, folder]
    assert len(list(folder.glob("*/*/*.jpg"))) == 10


def test_two_at_the_same_time_make_one_complete_sample(tmp_path, monkeypatch):
    folder, write = tmp_path / "sample", generate._write_images

    def write_while_another_finishes(*arguments):
        monkeypatch.setattr(generate, "_write_images", write)
        make_sample(folder, per_class=1)
        write(*arguments)

    monkeypatch.setattr(generate, "_write_images", write_while_another_finishes)
    assert make_sample(folder, per_class=1) == folder
    assert list(tmp_path.iterdir()) == [folder]
    assert len(list(folder.glob("*/*/*.jpg"))) == 10
    monkeypatch.setattr(generate, "_write_images", write_while_another_finishes)
    folder = tmp_path / "other"
    with pytest.raises(UserError, match="per_class 1, not 2"):
        make_sample(folder, per_class=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "sample"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "sample").mkdir()
    assert is_sample(make_sample(tmp_path / "sample", per_class=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"seed": 1}, "seed 0, not 1"), ({"per_class": 2}, "per_class 1, not 2")],
)
def test_another_sample_is_not_overwritten(tmp_path, settings, message):
    folder = make_sample(tmp_path / "sample", per_class=1)
    before = digests(folder)
    with pytest.raises(UserError, match=message):
        make_sample(folder, **{"per_class": 1, "seed": 0} | settings)
    assert digests(folder) == before


def test_a_sample_of_another_version_or_with_images_missing_is_refused(tmp_path, monkeypatch):
    folder = make_sample(tmp_path / "sample", per_class=1)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="version"):
        patch.setattr(generate, "VERSION", generate.VERSION + 1)
        make_sample(folder, per_class=1)
    (folder / "Test" / "Fake" / "0001.jpg").unlink()
    with pytest.raises(UserError, match="does not contain 2 images"):
        make_sample(folder, per_class=1)


def test_other_contents_are_not_changed(tmp_path):
    (tmp_path / "photo.jpg").write_text("mine")
    with pytest.raises(UserError, match="other files"):
        make_sample(tmp_path, per_class=1)
    with pytest.raises(UserError, match="other files"):
        make_sample(tmp_path / "photo.jpg", per_class=1)
    with pytest.raises(UserError, match="Not a directory"):
        make_sample(tmp_path / "photo.jpg" / "sample", per_class=1)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"locked \(Permission denied\)"):
        make_sample(tmp_path / "locked", per_class=1)


def test_per_class_below_one_is_refused(tmp_path):
    with pytest.raises(UserError, match="per_class is 0"):
        make_sample(tmp_path / "sample", per_class=0)
