"""Loaders: worker processes, shared memory, and what stays equal with any number of workers."""

import shutil
import subprocess
import sys

import psutil
import pytest
import torch
from torchvision.transforms import v2

from dfd_utils.config import UserError
from dfd_utils.data.loader import data_loader, fit_shared_memory, inference_batch_size
from tests.data.conftest import make_dataset


def test_random_transforms_depend_on_seed_epoch_and_index_alone(folder):
    dataset = make_dataset(folder, v2.RandomCrop(16), seed=5)

    def images(workers):
        return torch.cat([batch for batch, _ in data_loader(dataset, 4, num_workers=workers)])

    first = images(0)
    assert torch.equal(first, images(2))
    dataset.epoch = 1
    assert not torch.equal(first, images(0))


def test_workers_see_the_epoch(folder):
    loader = data_loader(make_dataset(folder, v2.RandomCrop(16), seed=5), 4, num_workers=1)
    passes = []
    for epoch in (0, 1, 0):
        loader.dataset.epoch = epoch
        passes.append(torch.cat([images for images, _ in loader]))
    assert torch.equal(passes[0], passes[2])
    assert not torch.equal(passes[0], passes[1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_with_a_killed_process(folder):
    code = (
        "import sys, time, psutil\n"
        "from dfd_utils.data.loader import data_loader\n"
        "from tests.data.conftest import make_dataset\n"
        "loader = data_loader(make_dataset(sys.argv[1]), 4, num_workers=1)\n"
        "batches = iter(loader)  # its workers live as long as it\n"
        "next(batches)\n"
        "print(*(p.pid for p in psutil.Process().children(recursive=True)), flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        workers = [psutil.Process(int(pid)) for pid in run.stdout.readline().split()]
        run.kill()
    assert len(workers) >= 3  # the resource tracker, the server and its worker
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


def test_a_shuffled_loader_drops_a_short_batch_unless_it_is_the_only_one(folder):
    dataset = make_dataset(folder)
    assert [len(y) for _, y in data_loader(dataset, 4, shuffle=True, num_workers=0)] == [4, 4]
    assert [len(y) for _, y in data_loader(dataset, 16, shuffle=True, num_workers=0)] == [10]


def test_batches_are_channels_last(folder):
    batch, labels = next(iter(data_loader(make_dataset(folder), 4, num_workers=1)))
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == [0, 0, 0, 0]


def test_batches_of_workers_equal_those_of_the_process(folder):
    dataset = make_dataset(folder)
    alone = list(data_loader(dataset, 4, num_workers=0))
    loader = data_loader(dataset, 4, num_workers=1, persistent=True)
    passes = [*loader, *loader, *loader]  # more batches than slots
    assert [len(labels) for _, labels in passes] == [4, 4, 2] * 3
    for batch, expected in zip(passes, alone * 3, strict=True):
        assert all(map(torch.equal, batch, expected))


def test_two_passes_over_one_loader_at_a_time_are_refused(folder):
    loader = data_loader(make_dataset(folder), 4, num_workers=1)
    interrupted = iter(loader)
    next(interrupted)
    assert len(list(loader)) == 3
    with pytest.raises(RuntimeError, match="two passes"):
        list(interrupted)


@pytest.mark.parametrize(
    ("free", "expected"),
    [(10**9, (4, 4)), (80, (4, 2)), (49, (4, 1)), (20, (2, 1)), (9, (0, 0)), (0, (0, 0))],
)
def test_workers_and_batches_fit_into_shared_memory(free, expected):
    workers, prefetch = fit_shared_memory(4, 10, free)
    assert (workers, prefetch) == expected
    assert workers * prefetch * 10 <= free


def test_too_little_shared_memory_is_reported_and_used(folder, monkeypatch, capsys):
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=30_000))
    state = torch.get_rng_state()
    loader = data_loader(make_dataset(folder), 4, num_workers=2)
    assert torch.equal(state, torch.get_rng_state())
    assert (loader.num_workers, loader.prefetch_factor) == (1, 1)
    assert "--shm-size" in capsys.readouterr().err
    assert sum(len(images) for images, _ in loader) == 10


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_gives_one_line_with_its_name_and_a_remedy(folder, workers):
    victim = folder / "Train" / "Real" / "002.jpg"
    victim.write_bytes(victim.read_bytes()[:300])
    with pytest.raises(UserError) as caught:
        list(data_loader(make_dataset(folder), 4, num_workers=workers))
    assert str(caught.value).startswith(str(victim))
    assert "dfd audit" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_inference_batches_have_about_as_many_pixels_at_any_size():
    cpu = torch.device("cpu")
    sizes = [inference_batch_size(cpu, size) for size in (16, 64, 224, 2000)]
    assert sizes == [512, 392, 32, 1]


def test_inference_batches_are_shared_equally_by_the_processes():
    for device in map(torch.device, ("cpu", "cuda")):
        for size in (64, 224, 2000):
            one, three = (inference_batch_size(device, size, processes) for processes in (1, 3))
            assert three % 3 == 0
            assert one <= three < one + 3
