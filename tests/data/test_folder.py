"""`DataFolder`: its list of images, its fingerprint, its audit and its splits."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from dfd_utils.config import CLASSES, SPLITS, UserError
from dfd_utils.data import folder
from dfd_utils.data.folder import DataFolder
from dfd_utils.data.sample.generate import make_sample
from tests.data.conftest import count_measured, make_image, write_data_set


@pytest.fixture
def path(tmp_path):
    return write_data_set(tmp_path / "faces", images=2)


def names(data: DataFolder, split: str) -> set[str]:
    return set(data.split(split).names)


# The list of images


def test_images_are_listed_by_split_class_and_name(path):
    images = DataFolder(path).images
    expected = [f"{split}/{name}/{i}.jpg" for split in SPLITS for name in CLASSES for i in (0, 1)]
    assert images["path"].tolist() == expected
    for row in images.itertuples():
        assert row.path.split("/")[:2] == [row.split, CLASSES[row.label]]
        status = (path / row.path).stat()
        assert (row.bytes, row.mtime, row.ctime) == (
            status.st_size, status.st_mtime_ns, status.st_ctime_ns,
        )  # fmt: skip


def test_every_image_format_and_sub_folder_counts(path):
    real = path / "Train" / "Real"
    for suffix in (".bmp", ".jfif", ".PNG", ".webp", ".tif", ".gif"):
        kind = "JPEG" if suffix == ".jfif" else None
        make_image(100 + len(suffix)).save(real / f"x{suffix}", kind)
    (path / "Train" / "Fake" / "generator").mkdir()
    make_image(200).save(path / "Train" / "Fake" / "generator" / "y.jpg")
    data = DataFolder(path)
    assert names(data, "Train") >= {"Train/Real/x.bmp", "Train/Real/x.jfif", "Train/Real/x.PNG"}
    assert "Train/Fake/generator/y.jpg" in names(data, "Train")
    assert (data.images["split"] == "Train").sum() == 4 + 7
    assert not data.skipped


def test_hidden_files_are_ignored_and_other_files_counted(path):
    real = path / "Train" / "Real"
    (real / "._0.jpg").write_bytes(b"\0\5\x16\7" + bytes(200))
    (real / ".ipynb_checkpoints").mkdir()
    shutil.copy(real / "0.jpg", real / ".ipynb_checkpoints" / "0-checkpoint.jpg")
    for name in ("raw.CR2", "clip.mp4", "other.mp4", "README"):
        (real / name).touch()
    os.mkfifo(real / "pipe.jpg")
    data = DataFolder(path)
    assert names(data, "Train") == {f"Train/{name}/{i}.jpg" for name in CLASSES for i in (0, 1)}
    skipped = {".cr2": 1, ".mp4": 2, "without suffix": 1, "not a regular file": 1}
    assert data.skipped == data.audit_summary["skipped"] == skipped
    (warning,) = (text for text in data.audit_summary["warnings"] if "skipped" in text)
    assert "files that are not images: 1 .cr2, 2 .mp4, 1 not a" in warning


def test_folders_in_lower_case_are_accepted(path):
    for split in SPLITS:
        for name in CLASSES:
            (path / split / name).rename(path / split / name.lower())
        (path / split).rename(path / {"Validation": "valid"}.get(split, split.lower()))
    data = DataFolder(path)
    data.check_layout()
    assert names(data, "Validation") == {
        f"valid/{name}/{i}.jpg" for name in ("real", "fake") for i in (0, 1)
    }
    assert data.split("Test").labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("added", ["test", "Test/fake"])
def test_two_folders_that_differ_only_in_case_are_refused(path, added):
    try:
        (path / added).mkdir()
    except FileExistsError:
        pytest.skip("the file system ignores the case")
    with pytest.raises(UserError, match=r"both .*rename one"):
        DataFolder(path).check_layout()


def test_missing_classes_are_named_and_test_alone_can_be_opened(path):
    shutil.rmtree(path / "Train")
    shutil.rmtree(path / "Validation" / "Fake")
    (path / "Validation" / "Fake").mkdir()
    data = DataFolder(path)
    with pytest.raises(UserError) as caught:
        data.check_layout()
    for name in ("Train/Real", "Train/Fake", "Validation/Fake"):
        assert name in str(caught.value)
    assert "Validation/Real" not in str(caught.value)
    data.check_layout(["Test"])
    assert len(data.split("Test")) == 4
    for split in ("Train", "Validation"):
        with pytest.raises(UserError, match=f"{split}/Fake"):
            data.split(split)
    with pytest.raises(UserError, match="unknown split 'test'"):
        data.split("test")


def test_a_missing_folder_is_named():
    with pytest.raises(UserError, match="no-such-data: no such data folder"):
        DataFolder("no-such-data")


def test_an_unreadable_sub_folder_is_named(path, monkeypatch):
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    (path / "Train" / "Real" / "locked").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"locked: cannot be listed \(Permission denied\)"):
        DataFolder(path).check_layout()


def test_links_to_folders_are_followed_once(path, tmp_path):
    shutil.move(path / "Train" / "Real", tmp_path / "elsewhere")
    (path / "Train" / "Real").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    assert (DataFolder(path).images["split"] == "Train").sum() == 4


# The audit


def test_unreadable_links_are_excluded(path):
    (path / "Train" / "Fake" / "gone.jpg").symlink_to("/nowhere/gone.jpg")
    (path / "Train" / "Real" / "itself.jpg").symlink_to("itself.jpg")
    data = DataFolder(path)
    assert data.excluded("Train") == ["Train/Fake/gone.jpg", "Train/Real/itself.jpg"]
    assert len(data.split("Train")) == 4


def test_a_class_may_not_be_excluded_completely(path):
    for i in (0, 1):
        (path / "Train" / "Fake" / f"{i}.jpg").write_bytes(b"damaged")
    with pytest.raises(UserError, match="Train: the audit excludes every image of a class"):
        DataFolder(path).split("Train")


def test_data_sets_of_one_name_have_audits_of_their_own(tmp_path):
    paths = [
        write_data_set(tmp_path / name / "versions" / "1", seed, images=2)
        for name, seed in (("a", 0), ("b", 500))
    ]
    shutil.copy(paths[0] / "Test" / "Real" / "0.jpg", paths[0] / "Train" / "Real" / "0.jpg")
    first, second = map(DataFolder, paths)
    assert first.name == second.name == "1"
    assert first.excluded("Train") == ["Train/Real/0.jpg"]
    assert first.audit_folder != second.audit_folder
    assert not second.is_audited
    assert second.exclusions == frozenset()
    assert len(second.split("Train")) == 4
    again = DataFolder(paths[0])
    assert again.is_audited
    assert (again.audit_folder / "exclude.csv").read_text().count("\n") == 2
    assert len(again.split("Train")) == 3


def test_names_are_text(path):
    twin = make_image(4242)
    twin.save(path / "Train" / "Real" / r"$\frac{1$, 'a'.jpg")
    twin.save(path / "Test" / "Real" / "A$AP_$1.jpg")
    twin.save(path / "Test" / "Real" / "NA.jpg")
    data = DataFolder(path)
    assert data.excluded("Train") == [r"Train/Real/$\frac{1$, 'a'.jpg"]
    assert {"Test/Real/A$AP_$1.jpg", "Test/Real/NA.jpg"} < names(data, "Test")


def test_another_exclusion_list_leaves_the_first_object(path):
    data = DataFolder(path)
    other = data.with_exclusions(["Train/Real/1.jpg"])
    assert len(other.split("Train")) == 3 and len(data.split("Train")) == 4
    assert other.fingerprint == data.fingerprint
    assert other.split_fingerprint("Train") != data.split_fingerprint("Train")
    assert other.split_fingerprint("Test") == data.split_fingerprint("Test")
    assert data.split_fingerprint("Test") != data.split_fingerprint("Train")


# The fingerprint


def test_the_fingerprint_follows_the_contents(path, tmp_path, monkeypatch):
    before = DataFolder(path).fingerprint
    read = count_measured(monkeypatch)
    assert DataFolder(path).fingerprint == before
    assert not read, "a second look reads no image"
    copy = shutil.copytree(path, tmp_path / "copy")
    assert DataFolder(copy).fingerprint == before
    read.clear()

    victim = path / "Test" / "Fake" / "0.jpg"
    status, content = victim.stat(), bytearray(victim.read_bytes())
    content[-10] ^= 1
    victim.write_bytes(content)
    os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (victim.stat().st_size, victim.stat().st_mtime_ns) == (
        status.st_size, status.st_mtime_ns,
    )  # fmt: skip
    changed = DataFolder(path).fingerprint
    assert changed != before
    assert read == ["Test/Fake/0.jpg"]

    content[-10] ^= 1
    victim.write_bytes(content)
    assert DataFolder(path).fingerprint == before
    victim.rename(victim.with_name("a.jpg"))
    assert DataFolder(path).fingerprint not in (before, changed)
    victim.with_name("a.jpg").unlink()
    assert len({DataFolder(path).fingerprint, before, changed}) == 3


# Pixels: training, evaluation and the audit use one decoder


def test_16_bits_and_transparency_are_decoded_alike_everywhere(path):
    real = path / "Train" / "Real"
    grey = np.asarray(make_image(900).convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(real / "deep.png")
    pixels = np.dstack([np.asarray(make_image(901)), np.zeros((96, 96), np.uint8)])
    pixels[:48, :, 3] = 255
    Image.fromarray(pixels).save(real / "cutout.png")
    data = DataFolder(path)
    items = dict(zip(data.split("Train").names, data.split("Train"), strict=True))
    assert np.array_equal(items["Train/Real/deep.png"][0].numpy(), np.stack([grey] * 3))
    assert (items["Train/Real/cutout.png"][0][:, 48:] == 255).all()
    files = (data.audit_folder / "files.csv").read_text().splitlines()
    table = [dict(zip(files[0].split(","), line.split(","), strict=True)) for line in files[1:]]
    rows = {row["path"].split("/")[-1]: row for row in table if "png" in row["path"]}
    assert float(rows["deep.png"]["brightness"]) == pytest.approx(grey.mean(), abs=0.5)
    assert float(rows["cutout.png"]["transparency"]) == 0.5


def test_the_embedded_sample_is_recognised(tiny_sample, path, tmp_path, monkeypatch):
    assert tiny_sample.is_sample and not DataFolder(path).is_sample
    monkeypatch.setattr("dfd_utils.data.folder.DATA_DIR", tmp_path)
    make_sample(tmp_path / "sample", per_class=1)
    assert DataFolder().path == tmp_path / "sample"


def test_the_embedded_sample_is_drawn_where_it_is_missing(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(folder, "DATA_DIR", tmp_path)
    monkeypatch.setattr(
        folder, "make_sample", lambda path: drawn.append(make_sample(path, per_class=2))
    )
    for _ in range(2):
        assert folder.open_data(tmp_path / "sample").is_sample
    assert drawn == [tmp_path / "sample"]
    with pytest.raises(UserError, match="no such data folder"):
        folder.open_data(tmp_path / "other")
