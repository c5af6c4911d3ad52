"""Audits of small data sets with planted faults."""

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from dfd_utils.config import CLASSES, SPLITS, UserError
from dfd_utils.data import duplicates, image_statistics, scan
from dfd_utils.data.audit import FILES, audit, find_shift, find_shortcuts
from dfd_utils.data.folder import DataFolder
from tests.data.conftest import count_measured, make_image, write_data_set


@pytest.fixture
def data(tmp_path):
    """Distinct JPEGs, four per split and class, numbered 0.jpg to 3.jpg."""
    return write_data_set(tmp_path / "faces")


def run_audit(folder, out, **options) -> dict:
    return audit(DataFolder(folder), out, **options)


def tables(out) -> dict[str, pd.DataFrame]:
    return {name[:-4]: pd.read_csv(out / name, keep_default_na=False) for name in FILES[:4]}


def listed_pairs(out) -> dict[frozenset, str]:
    table = tables(out)["duplicates"]
    return {
        frozenset(pair): kind
        for *pair, kind in table[["path_a", "path_b", "kind"]].itertuples(index=False)
    }


def test_a_clean_data_set(data, tmp_path):
    out = tmp_path / "out"
    summary = run_audit(data, out)
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["counts"] == {split: {"Real": 4, "Fake": 4} for split in SPLITS}
    assert summary["images"] == 24 and summary["unreadable"] == 0
    assert summary["sizes"] == {"96 x 96": 24} and summary["formats"] == {"JPEG": 24}
    assert {p.name for p in out.iterdir()} == {*FILES, "cache.npz"}, "no partial file"
    table = tables(out)
    assert [len(table[name]) for name in ("unreadable", "duplicates", "exclude")] == [0, 0, 0]
    files = table["files"]
    assert list(files.columns[:4]) == ["path", "split", "label", "bytes"]
    for row in files.itertuples():
        split, name, _ = row.path.split("/")
        assert (row.split, CLASSES[row.label]) == (split, name)
        assert row.bytes == (data / row.path).stat().st_size


def test_statistics_respond_to_what_they_measure(data, tmp_path):
    base = make_image(500)
    pixels = np.asarray(base).astype(float)
    rng = np.random.default_rng(0)
    noisy = np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)
    small = base.resize((12, 12)).resize(base.size, Image.Resampling.NEAREST)
    blurred = gaussian_filter(pixels, (2, 2, 0)).astype(np.uint8)
    versions = {"base": base, "grey": base.convert("L").convert("RGB"), "blocks": small}
    versions |= {"noisy": Image.fromarray(noisy), "blurred": Image.fromarray(blurred)}
    for name, image in versions.items():
        image.save(data / "Train" / "Real" / f"{name}.png")
    for quality in (30, 60, 95):
        base.save(data / "Train" / "Fake" / f"q{quality}.jpg", quality=quality)
    Image.new("L", (40, 20), 77).save(data / "Test" / "Fake" / "flat.png")
    summary = run_audit(data, tmp_path / "out")
    files = pd.read_csv(tmp_path / "out" / "files.csv", index_col="path")
    real = files.filter(like="Train/Real/", axis=0).rename(lambda p: p.split("/")[-1][:-4])
    assert real.saturation["grey"] == 0 and real.grey_share["grey"] == 1
    assert real.saturation["base"] > 0.1 > real.grey_share["base"]
    assert real.noise["noisy"] - real.noise["blurred"] > 5
    assert real.sharpness["noisy"] > real.sharpness["base"] > real.sharpness["blurred"]
    assert real.blockiness["blocks"] > 3 > 1.2 > real.blockiness["base"]
    assert np.isnan(real.jpeg_quality["base"])
    for quality in (30, 60, 95):
        assert files.jpeg_quality[f"Train/Fake/q{quality}.jpg"] == pytest.approx(quality, abs=1)
    flat = files.loc["Test/Fake/flat.png"]
    assert (flat.width, flat.height, flat["mode"]) == (40, 20, "L")
    assert flat.brightness == pytest.approx(77) and flat.noise == 0 and flat.contrast == 0
    assert summary["not_rgb"] == ["Test/Fake/flat.png"]


def test_copies_are_found_and_excluded_from_train_first(data, tmp_path):
    plants = {
        "Train/Real/0.jpg": ("Test/Real/copy.jpg", "exact", shutil.copyfile),
        "Train/Real/1.jpg": (
            "Validation/Real/same_pixels.png",
            "exact",
            lambda a, b: Image.open(a).save(b),
        ),
        "Train/Real/2.jpg": (
            "Train/Real/again.jpg",
            "near",
            lambda a, b: Image.open(a).save(b, quality=60),
        ),
        "Validation/Fake/0.jpg": (
            "Test/Fake/resized.jpg",
            "near",
            lambda a, b: Image.open(a).resize((60, 60)).resize((96, 96)).save(b, quality=90),
        ),
        "Train/Fake/3.jpg": (
            "Validation/Fake/darker.jpg",
            "near",
            lambda a, b: Image.open(a).point(lambda v: 0.8 * v).save(b, quality=90),
        ),
        "Test/Real/3.jpg": ("Train/Fake/other_label.jpg", "exact", shutil.copyfile),
    }
    for path, (copy, _, make) in plants.items():
        make(data / path, data / copy)
    summary = run_audit(data, tmp_path / "out")
    expected = {frozenset((path, copy)): kind for path, (copy, kind, _) in plants.items()}
    assert listed_pairs(tmp_path / "out") == expected
    table = tables(tmp_path / "out")
    flags = table["duplicates"].set_index("path_a")  # path_a comes first in files.csv
    assert flags.across_labels[flags.across_labels].index.tolist() == ["Train/Fake/other_label.jpg"]
    assert flags.across_splits[~flags.across_splits].index.tolist() == ["Train/Real/2.jpg"]
    excluded = table["exclude"].set_index("path").reason.to_dict()
    assert excluded == {
        "Train/Real/0.jpg": "also in Test/Real/copy.jpg",
        "Train/Real/1.jpg": "also in Validation/Real/same_pixels.png",
        "Validation/Fake/0.jpg": "also in Test/Fake/resized.jpg",
        "Train/Fake/3.jpg": "also in Validation/Fake/darker.jpg",
        "Test/Real/3.jpg": "same image under the other label: Train/Fake/other_label.jpg",
        "Train/Fake/other_label.jpg": "same image under the other label: Test/Real/3.jpg",
    }
    leakage = {"Train in Validation": 2, "Train in Test": 2, "Validation in Test": 1}
    assert summary["leakage"] == leakage
    assert summary["excluded"]["Train"] == {"Real": 2, "Fake": 2}
    assert "2 images of Train are also in Test" in summary["warnings"]


def test_similar_images_are_not_duplicates(data, tmp_path):
    image = make_image(700)
    image.save(data / "Train" / "Real" / "whole.png")
    swapped = np.asarray(image).copy()
    swapped[36:60, 36:60] = np.asarray(make_image(701))[36:60, 36:60]  # a swapped face
    Image.fromarray(swapped).save(data / "Train" / "Fake" / "swapped.png")
    for i, level in enumerate((10, 10, 11, 12)):  # black frames are flat: not duplicates
        black = np.random.default_rng(i).integers(level, level + 2, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(black).save(data / "Test" / CLASSES[i % 2] / f"black{i}.png")
    assert run_audit(data, tmp_path / "out")["duplicates"]["near"]["pairs"] == 0
    assert listed_pairs(tmp_path / "out") == {}


def test_many_copies_of_one_image_are_listed_briefly(data, tmp_path):
    for i in range(30):
        shutil.copyfile(data / "Train/Real/0.jpg", data / "Train" / "Real" / f"copy{i:02}.jpg")
    Image.open(data / "Train/Real/0.jpg").save(data / "Test/Real/again.jpg", quality=70)
    run_audit(data, tmp_path / "out")
    table = tables(tmp_path / "out")
    assert len(table["duplicates"]) < 100
    pairs = table["duplicates"]
    assert {*pairs.path_a, *pairs.path_b} >= {f"Train/Real/copy{i:02}.jpg" for i in range(30)}
    assert len(table["exclude"]) == 31 and set(table["exclude"].reason) == {
        "also in Test/Real/again.jpg"
    }


def test_unreadable_files_are_listed_and_excluded(data):
    whole = (data / "Train/Real/0.jpg").read_bytes()
    broken = {
        "Train/Real/short.jpg": (whole[:-2], "truncated"),
        "Train/Fake/half.jpg": (whole[: len(whole) // 2], "truncated"),
        "Validation/Real/empty.png": (b"", "empty"),
        "Validation/Fake/text.jpg": (b"not an image at all", "not an image"),
        "Test/Real/zip.jpg": (b"PK\x03\x04" + bytes(500), "not an image"),
        "Test/Fake/header.jpg": (whole[:20], ""),
    }
    for path, (content, _) in broken.items():
        (data / path).write_bytes(content)
    (data / "Test/Fake/nowhere.jpg").symlink_to("gone.jpg")
    broken["Test/Fake/nowhere.jpg"] = (b"", "No such file")
    (data / "Test/Fake/Thumbs.db").write_bytes(b"no image")
    folder = DataFolder(data)
    summary, out = audit(folder), folder.audit_folder
    assert summary["unreadable"] == 7 and summary["images"] == 31
    table = tables(out)
    reasons = table["unreadable"].set_index("path").error
    assert set(reasons.index) == set(broken) == set(table["exclude"].path)
    for path, (_, words) in broken.items():
        assert words in reasons[path]
    assert len(table["files"]) == 31
    assert summary["skipped"] == {".db": 1}
    assert "skipped files that are not images: 1 .db" in summary["warnings"]
    for split in SPLITS:
        images = folder.split(split)
        assert len(images) == 8
        assert all(image.ndim == 3 for image, _ in images)


def test_a_second_audit_reads_only_what_changed(data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = run_audit(data, out)
    read = count_measured(monkeypatch)
    assert run_audit(data, out) == first and read == []
    make_image(900).save(data / "Test/Real/2.jpg", quality=90)
    shutil.copyfile(data / "Test/Real/1.jpg", data / "Test/Real/new.jpg")
    (data / "Test/Fake/0.jpg").unlink()
    second = run_audit(data, out)
    assert sorted(read) == ["Test/Real/2.jpg", "Test/Real/new.jpg"]
    assert second["counts"]["Test"] == {"Real": 5, "Fake": 3}
    assert second["duplicates"]["exact"]["pairs"] == 1
    fresh = run_audit(data, tmp_path / "fresh")
    assert fresh == second
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
    (out / "cache.npz").write_bytes(b"damaged")
    (out / "summary.json").unlink()
    assert run_audit(data, out) == second


def test_worker_processes_measure_the_same(data, tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "CHUNK", 5)
    run_audit(data, tmp_path / "one", processes=1)
    run_audit(data, tmp_path / "two", processes=2)
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_data_set_without_images_is_refused(tmp_path):
    (tmp_path / "faces" / "Test" / "Fake").mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        run_audit(tmp_path / "faces", tmp_path / "out")
    assert all(f"{split}/{name}" in str(caught.value) for split in SPLITS for name in CLASSES)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="nowhere: no such data folder"):
        DataFolder(tmp_path / "nowhere")


def test_all_images_may_be_unreadable(data, tmp_path):
    for path in data.rglob("*.jpg"):
        path.write_bytes(b"")
    summary = run_audit(data, tmp_path / "out")
    assert summary["unreadable"] == 24 and len(tables(tmp_path / "out")["exclude"]) == 24


def test_an_output_folder_that_cannot_be_made(data, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be made"):
        run_audit(data, tmp_path / "file" / "out")


def test_a_name_that_is_not_utf8_is_refused(data, tmp_path):
    make_image(1).save(os.fsencode(data / "Train" / "Real") + b"/\xff.jpg", "JPEG")
    with pytest.raises(UserError, match=r"faces: the file name .*Train/Real/.* is not UTF-8"):
        run_audit(data, tmp_path / "out")


def test_candidates_are_all_pairs_within_the_radius():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (400, 64), dtype=np.uint8)
    for i in range(200):  # neighbours at 0 to 9 bits
        bits[200 + i] = bits[i]
        flipped = rng.choice(64, i % 10, replace=False)
        bits[200 + i, flipped] ^= 1
    hashes = np.packbits(bits, axis=1).view(np.uint64).ravel()
    pairs, hamming = duplicates.candidate_pairs(hashes)
    distance = (bits[:, None] != bits[None]).sum(2)
    i, j = np.nonzero(np.triu(distance <= duplicates.RADIUS, 1))
    assert len(pairs) == 100
    np.testing.assert_array_equal(pairs, np.stack([i, j], 1))
    np.testing.assert_array_equal(hamming, distance[i, j])


def test_equal_hashes_are_verified_by_thumbnails():
    rng = np.random.default_rng(0)
    base = gaussian_filter(128 + 500 * rng.standard_normal((32, 32)), 3).clip(20, 235)
    local = base.copy()
    local[8:12, 8:12] += 12  # a swapped face differs in one block
    everywhere = base + rng.normal(0, 5, base.shape)  # 4 grey levels in every block
    dim = [100 + 0.025 * base, 100 + 0.025 * (base + 0.4 * base.T)]  # nearly black, and alike
    versions = [base, 0.9 * base + 8, local, everywhere, *dim]
    thumbnails = np.stack(versions).round().astype(np.uint8)
    near = duplicates.near_pairs(np.full(6, 7, np.uint64), thumbnails, np.arange(6))
    assert near[["a", "b"]].to_numpy().tolist() == [[0, 1]]
    pairs = np.array([[0, 0], [0, 2]])
    correlation, difference = duplicates.compare_thumbnails(thumbnails, pairs)
    assert correlation[0] == pytest.approx(1, abs=1e-4) and difference[0] == 0
    assert correlation[1] > duplicates.MIN_CORRELATION and 8 < difference[1] < 13


def test_exact_groups_join_equal_files_and_equal_pixels():
    files, pixels = np.array(list("aabcde")), np.array(list("uvvwxu"))
    groups = duplicates.exact_groups(files, pixels)
    assert [list(np.flatnonzero(groups == g)) for g in range(3)] == [[0, 1, 2, 5], [3], [4]]


def rows_of_files(n: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"split": np.repeat(SPLITS, n), "label": np.tile([0, 1], 3 * n // 2)})
    table["bytes"] = rng.integers(5000, 9000, 3 * n)
    table = table.assign(width=256, height=256, jpeg_tables="a")
    for name in (*image_statistics.STATISTICS, *image_statistics.COLOURS, "transparency"):
        table[name] = rng.normal(100, 10, 3 * n)
    return table


def test_shortcuts_are_reported_only_where_they_are():
    table = rows_of_files(600).assign(jpeg_quality=90.0)
    assert not any(row["warning"] for row in find_shortcuts(table))
    table.loc[(table.split == "Train") & (table.label == 1), "bytes"] += 3000
    table.loc[(table.split == "Test") & (table.label == 1), "jpeg_tables"] = "b"
    rows = {(row["split"], row["attributes"]): row for row in find_shortcuts(table)}
    warned = {key for key, row in rows.items() if row["warning"]}
    expected = {("Train", "file size"), ("Test", "JPEG tables")}
    assert warned == expected | {("Train", "all attributes"), ("Test", "all attributes")}
    row = rows["Train", "file size"]
    assert 0.9 < row["low"] < row["auc"] < row["high"] <= 1 and "file size" in row["warning"]
    assert rows["Validation", "file size"]["low"] < 0.5 < rows["Validation", "file size"]["high"]


def test_too_few_images_give_no_warning():
    rows = find_shortcuts(rows_of_files(20))
    assert rows and all(row["auc"] is None and not row["warning"] for row in rows)


def test_shift_has_its_sign_and_size():
    table = rows_of_files(400)
    table.loc[table.split == "Test", "saturation"] -= 20
    table.loc[(table.split == "Test") & (table.label == 1), "noise"] += 30
    table["jpeg_quality"] = np.nan  # not one JPEG
    rows = {(r["split"], r["class"], r["statistic"]): r for r in find_shift(table)}
    row = rows["Test", "All", "saturation"]
    assert row["size"] == "large" and -1 < row["cliffs_delta"] < -0.7
    assert row["median"] == pytest.approx(80, abs=2)
    assert row["train_median"] == pytest.approx(100, abs=2)
    assert rows["Test", "Fake", "noise"]["cliffs_delta"] > 0.9
    assert rows["Test", "Real", "noise"]["size"] == "negligible"
    assert rows["Validation", "All", "saturation"]["size"] == "negligible"
    assert not any(statistic == "jpeg_quality" for *_, statistic in rows)
    here = table.saturation[table.split == "Test"].to_numpy()
    there = table.saturation[table.split == "Train"].to_numpy()
    delta = np.sign(here[:, None] - there).mean()
    assert row["cliffs_delta"] == pytest.approx(delta)


def test_transparency_that_predicts_the_label_is_reported():
    table = rows_of_files(120).assign(jpeg_quality=90.0, transparency=0.0)
    table.loc[(table.split == "Train") & (table.label == 1), "transparency"] = 0.5
    warnings = [row["warning"] for row in find_shortcuts(table) if row["warning"]]
    assert any(text.startswith("Train: transparency alone predicts the label") for text in warnings)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"{}", b"path\nTrain/Real/0.jpg\n"])
def test_a_damaged_audit_is_made_again(data, tmp_path, name, damage):
    def opened() -> DataFolder:
        folder = DataFolder(data)
        folder.audit_folder = tmp_path / "out"
        return folder

    shutil.copy(data / "Train" / "Real" / "0.jpg", data / "Test" / "Real" / "copy.jpg")
    summary, excluded = opened().audit_summary, opened().exclusions
    assert len(excluded) == 1
    file = tmp_path / "out" / name
    whole = file.read_bytes()
    file.write_bytes(damage)
    assert opened().audit_summary == summary
    assert file.read_bytes() == whole
    assert opened().exclusions == excluded


def test_a_large_image_is_measured_in_bands(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for shape in ((200, 96), (96, 200)):
        pixels = rng.normal(120, 30, (*shape, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        whole = image_statistics.measure_files([str(tmp_path / "a.png")])[0]
        with monkeypatch.context() as patch:
            patch.setattr(image_statistics, "BAND", 5000)
            bands = image_statistics.measure_files([str(tmp_path / "a.png")])[0]
        for name in image_statistics.STATISTICS:
            if name != "jpeg_quality":
                assert bands[name] == pytest.approx(whole[name], rel=0.05), name
        for name in (*image_statistics.COLOURS, "brightness", "grey_share", "saturation"):
            assert bands[name] == pytest.approx(whole[name], rel=1e-5), name
        assert bands["contrast"] != whole["contrast"], "it was measured in bands"
        assert bands["hash"] == whole["hash"]
        assert (bands["thumbnail"] == whole["thumbnail"]).all()


def test_an_audit_by_other_rules_is_repeated(data, tmp_path, monkeypatch):
    Image.open(data / "Train/Real/0.jpg").save(data / "Test/Real/copy.jpg", quality=60)
    assert run_audit(data, tmp_path / "out")["duplicates"]["near"]["pairs"] == 1
    read = count_measured(monkeypatch)
    monkeypatch.setattr(duplicates, "MIN_CORRELATION", 1.1)
    monkeypatch.setitem(duplicates.RULES, "min_correlation", 1.1)
    assert run_audit(data, tmp_path / "out")["duplicates"]["near"]["pairs"] == 0
    assert not read, "the measurements do not depend on the rules"
    monkeypatch.setattr(scan, "VERSION", "another")
    (tmp_path / "out" / "summary.json").unlink()
    run_audit(data, tmp_path / "out")
    assert len(read) == 25, "other measurements need the images"


def test_two_audits_into_one_folder_at_the_same_time_are_both_complete(data, tmp_path, monkeypatch):
    savez, out, others = np.savez, tmp_path / "out", []

    def save_while_another_finishes(*arguments, **arrays):
        savez(*arguments, **arrays)
        monkeypatch.setattr(np, "savez", savez)
        others.append(run_audit(data, out))

    monkeypatch.setattr(np, "savez", save_while_another_finishes)
    assert run_audit(data, out) == others[0]
    assert {path.name for path in out.iterdir()} == {*FILES, "cache.npz"}
