import shutil
import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from dfd_utils.config import UserError
from dfd_utils.data.dataset import DeepFakeDataset, load_split, read_image
from dfd_utils.data.folder import audit_folder, check_layout, data_fingerprint
from dfd_utils.data.loader import data_loader, fit_shared_memory
from tests.conftest import write_split


@pytest.fixture
def split(tmp_path):
    write_split(tmp_path / "Train", 5, seed=3)
    return tmp_path / "Train"


def test_items_are_uint8_images_with_real_0_and_fake_1(split):
    dataset = DeepFakeDataset(split)
    assert len(dataset) == 10
    for index in range(10):
        image, label = dataset[index]
        assert image.dtype == torch.uint8
        assert image.shape == (3, 40, 40)
        assert dataset.path(index).parent.name == ("Real", "Fake")[label]
        with Image.open(dataset.path(index)) as reference:
            assert np.abs(np.asarray(reference, int) - image.permute(1, 2, 0).numpy()).max() <= 3


def test_transform_and_exclusion(split):
    dataset = DeepFakeDataset(split, v2.Resize((16, 16)), exclude={"Fake/000.jpg", "Real/004.jpg"})
    assert len(dataset) == 8
    assert dataset[0][0].shape == (3, 16, 16)
    assert "Fake/000.jpg" not in {f"{p.parent.name}/{p.name}" for p in map(dataset.path, range(8))}


@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_missing_or_empty_class_is_named(split, damage):
    shutil.rmtree(split / "Fake")
    if damage == "empty":
        (split / "Fake").mkdir()
    with pytest.raises(UserError, match=r"Train/Fake: no "):
        DeepFakeDataset(split)


def test_missing_split_is_named(split):
    with pytest.raises(UserError, match="Validation"):
        check_layout(split.parent)


@pytest.mark.parametrize("content", [b"", b"not an image", "truncated"])
@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image_gives_one_line_with_name_and_remedy(split, content, workers):
    victim = split / "Real" / "002.jpg"
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2] if content == "truncated" else content)
    with pytest.raises(UserError) as caught:
        list(data_loader(DeepFakeDataset(split), 4, num_workers=workers))
    assert str(caught.value).startswith(str(victim))
    assert "dfd audit" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_any_colour_mode_becomes_rgb(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new("RGB", (20, 10), (200, 100, 50)).convert(mode).save(tmp_path / f"a.{suffix}")
    assert read_image(tmp_path / f"a.{suffix}").shape == (3, 10, 20)


@pytest.mark.parametrize("before", [b"", b"\xff\xda" * 9])  # looks like the scan's marker
def test_exif_turned_image_is_upright(tmp_path, before):
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "a.jpg", exif=exif)
    start, rest = (content := (tmp_path / "a.jpg").read_bytes())[:2], content[2:]
    comment = b"\xff\xfe" + (2 + len(before)).to_bytes(2, "big") + before
    (tmp_path / "a.jpg").write_bytes(start + comment + rest)
    assert read_image(tmp_path / "a.jpg").shape == (3, 20, 10)


def test_random_transforms_depend_on_seed_epoch_and_index_alone(split):
    dataset = DeepFakeDataset(split, v2.RandomCrop(16), seed=5)

    def images(workers):
        return torch.cat([batch for batch, _ in data_loader(dataset, 4, num_workers=workers)])

    first = images(0)
    assert torch.equal(first, images(2))
    dataset.epoch = 1
    assert not torch.equal(first, images(0))


def test_workers_see_the_epoch_and_live_from_one_pass_to_the_next(split):
    loader = data_loader(DeepFakeDataset(split, v2.RandomCrop(16), seed=5), 4, num_workers=1)
    passes = []
    for epoch in (0, 1, 0):
        loader.dataset.epoch = epoch
        passes.append(torch.cat([images for images, _ in loader]))
    assert torch.equal(passes[0], passes[2])
    assert not torch.equal(passes[0], passes[1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_with_a_killed_process(split):
    code = (
        "import sys, time, psutil\n"
        "from dfd_utils.data.dataset import DeepFakeDataset; from dfd_utils.data.loader import data_loader\n"
        "loader = data_loader(DeepFakeDataset(sys.argv[1]), 4, num_workers=1)\n"
        "next(iter(loader))\n"
        "print(*(p.pid for p in psutil.Process().children(recursive=True)), flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(split)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        workers = [psutil.Process(int(pid)) for pid in run.stdout.readline().split()]
        run.kill()
    assert len(workers) >= 2  # the server and its worker
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


def test_shuffled_loader_drops_the_short_batch_only_where_there_are_more(split):
    dataset = DeepFakeDataset(split)
    assert [len(y) for _, y in data_loader(dataset, 4, shuffle=True, num_workers=0)] == [4, 4]
    assert [len(y) for _, y in data_loader(dataset, 16, shuffle=True, num_workers=0)] == [10]


def test_every_keeps_both_classes(split):
    dataset = DeepFakeDataset(split).every(5)
    assert len(dataset) == 5
    assert set(dataset.labels) == {0, 1}


def test_fingerprint_follows_the_images_and_the_audit(easy_data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(easy_data, copy)
    before = data_fingerprint(copy)
    assert before == data_fingerprint(easy_data)
    exclude = audit_folder(copy) / "exclude.csv"
    exclude.parent.mkdir(parents=True)
    exclude.write_text("path,reason\nTrain/Real/001.jpg,duplicate\n")
    assert data_fingerprint(copy) != before
    assert len(load_split(copy, "Train")) == 47
    exclude.unlink()
    assert data_fingerprint(copy) == before
    with open(copy / "Test" / "Fake" / "000.jpg", "ab") as file:
        file.write(b"\0")
    assert data_fingerprint(copy) != before


def test_jpegs_have_pillows_pixels_to_the_last_bit(tiny_sample, tmp_path):
    files = sorted((tiny_sample / "Train" / "Real").glob("*.jpg"))
    for subsampling in (0, 1, 2):  # 4:4:4, 4:2:2, 4:2:0
        files.append(tmp_path / f"{subsampling}.jpg")
        with Image.open(files[0]) as image:
            image.resize((101, 67)).save(files[-1], quality=60, subsampling=subsampling)
    files.append(tmp_path / "grey.jpg")
    with Image.open(files[0]) as image:
        image.convert("L").save(files[-1], progressive=True)
    for file in files:
        with Image.open(file) as reference:
            expected = np.asarray(reference.convert("RGB"))
        assert np.array_equal(read_image(file).permute(1, 2, 0).numpy(), expected)


def test_huge_jpeg_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match="not a readable image"):
        read_image(tmp_path / "a.jpg")


def test_batches_lie_channels_last(split):
    batch, labels = next(iter(data_loader(DeepFakeDataset(split), 4, num_workers=1)))
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == [0, 0, 0, 0]


def test_workers_hand_over_every_batch_as_it_is(split):
    dataset = DeepFakeDataset(split)
    alone = list(data_loader(dataset, 4, num_workers=0))
    loader = data_loader(dataset, 4, num_workers=1, persistent=True)
    passes = [*loader, *loader, *loader]  # kept: more batches than there are places for
    assert [len(labels) for _, labels in passes] == [4, 4, 2] * 3
    for (images, labels), (its_images, its_labels) in zip(passes, alone * 3, strict=True):
        assert torch.equal(images, its_images)
        assert torch.equal(labels, its_labels)


def test_two_passes_over_one_loader_at_a_time_are_refused(split):
    loader = data_loader(DeepFakeDataset(split), 4, num_workers=1)
    interrupted = iter(loader)
    next(interrupted)
    assert len(list(loader)) == 3
    with pytest.raises(RuntimeError, match="two passes"):
        list(interrupted)


@pytest.mark.parametrize(
    ("free", "expected"),
    [(10**9, (4, 4)), (80, (4, 2)), (49, (4, 1)), (20, (2, 1)), (9, (0, 0)), (0, (0, 0))],
)
def test_what_shared_memory_holds(free, expected):
    workers, waiting = fit_shared_memory(4, 10, free)
    assert (workers, waiting) == expected
    assert workers * waiting * 10 <= free


def test_small_shared_memory_is_said_and_survived(split, monkeypatch, capsys):
    usage = shutil.disk_usage(split)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=30_000))
    state = torch.get_rng_state()
    loader = data_loader(DeepFakeDataset(split), 4, num_workers=2)
    assert torch.equal(state, torch.get_rng_state())
    assert (loader.num_workers, loader.prefetch_factor) == (1, 1)
    assert "--shm-size" in capsys.readouterr().err
    assert sum(len(images) for images, _ in loader) == 10
