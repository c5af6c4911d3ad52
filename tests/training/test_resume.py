"""An interrupted run, whatever interrupted it, ends bit for bit as one that never stopped."""

import dataclasses
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from dfd_utils import cli
from dfd_utils.config import PROJECT_ROOT, RunInterrupted, TimeLimitReached, UserError
from dfd_utils.data import dataset
from dfd_utils.models.trained import TrainedModel, find_models
from dfd_utils.training import checkpoint, train
from dfd_utils.training.components import build_components
from dfd_utils.training.progress import Progress
from tests.conftest import assert_same_run, quiet

NAME = "efficientnet_b0"


def terminate():
    """Send SIGTERM to this process."""
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def settings(quick):
    return dataclasses.replace(
        quick, degradation_probability=0.5, cutmix_probability=0.5, num_workers=1
    )


@pytest.fixture(scope="module")
def whole(easy_data, settings, tmp_path_factory):
    """A run that was never interrupted."""
    out = tmp_path_factory.mktemp("whole") / NAME
    train.fit(NAME, easy_data, out, settings, quiet)
    return out


@pytest.fixture(scope="module")
def terminated_once(easy_data, settings, tmp_path_factory):
    """A run that received SIGTERM in the third step of its second epoch."""

    def step(self, state):
        if (state.epoch, state.step) == (2, 3):
            terminate()

    out = tmp_path_factory.mktemp("terminated") / NAME
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Progress, "step", step)
        with pytest.raises(RunInterrupted, match=r"epoch 2/2, step 3/6") as caught:
            train.fit(NAME, easy_data, out, settings, quiet)
    assert caught.value.exit_code == 143
    return out


@pytest.fixture
def terminated(terminated_once, tmp_path):
    """A copy of that run."""
    return shutil.copytree(terminated_once, tmp_path / NAME)


def test_killed_at_random_moments_the_run_ends_the_same():
    script = PROJECT_ROOT / "benchmarks" / "kill_study.py"
    command = [sys.executable, str(script), "--moments", "3", "--kills", "2", "--epochs", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 moments" in done.stdout


def test_sigterm_ends_the_step_and_the_same_call_continues(terminated, whole, easy_data, settings):
    assert [p.name for p in checkpoint.checkpoints(terminated)] == [
        "epoch_002_step_0000003",
        "epoch_002_step_0000000",
    ]
    lines = []
    train.fit(NAME, easy_data, terminated, settings, lines.append)
    assert "continuing from checkpoint epoch_002_step_0000003" in lines[1]
    assert_same_run(whole, terminated)
    assert len(checkpoint.checkpoints(terminated)) == 1  # enough to add epochs to


def test_a_run_keeps_the_exclusion_list_that_it_began_with(terminated, whole, easy_data, settings):
    lines = []
    changed = easy_data.with_exclusions(["Train/Real/000.jpg", "Validation/Fake/000.jpg"])
    train.fit(NAME, changed, terminated, settings, lines.append)
    assert "the exclusion list has changed since this run began" in lines[1]
    assert_same_run(whole, terminated)
    recorded = json.loads((terminated / "config.json").read_text())["excluded_images"]
    assert recorded == {"Train": 0, "Validation": 0, "Test": 0}


def test_images_of_skipped_batches_are_not_read(terminated, easy_data, settings, monkeypatch):
    paths, original = [], dataset.read_image
    monkeypatch.setattr(dataset, "read_image", lambda path: paths.append(path) or original(path))
    alone = dataclasses.replace(settings, num_workers=0)
    train.fit(NAME, easy_data, terminated, alone, quiet)
    assert sum("Train" in str(path) for path in paths) == 3 * settings.batch_size


def test_sigterm_during_validation_keeps_the_epoch(
    whole, easy_data, settings, tmp_path, monkeypatch
):
    with monkeypatch.context() as patched:
        patched.setattr(train, "predict_logits", lambda *_: terminate())
        with pytest.raises(RunInterrupted):
            train.fit(NAME, easy_data, tmp_path / NAME, settings, quiet)
    (saved,) = checkpoint.checkpoints(tmp_path / NAME)
    assert saved.name == "epoch_001_step_0000006"
    train.fit(NAME, easy_data, tmp_path / NAME, settings, quiet)
    assert_same_run(whole, tmp_path / NAME)


def test_sigterm_after_the_last_epoch_is_not_ignored(whole, easy_data, settings, tmp_path):
    def log(line):
        if "epoch 2/2" in line:
            terminate()

    with pytest.raises(RunInterrupted, match="the same command continues"):
        train.fit(NAME, easy_data, tmp_path / NAME, settings, log)
    assert len(train.fit(NAME, easy_data, tmp_path / NAME, settings, quiet)) == 2
    assert_same_run(whole, tmp_path / NAME)


@pytest.mark.parametrize(("error", "expected"), [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB."), RuntimeError),
    (RuntimeError("a bug"), RuntimeError),
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. "), RunInterrupted),
    (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), RunInterrupted),
])  # fmt: skip
def test_only_the_end_of_a_worker_counts_as_a_stop(
    easy_data, settings, tmp_path, monkeypatch, error, expected
):
    def step(self, state):
        terminate()
        raise error

    monkeypatch.setattr(Progress, "step", step)
    alone = dataclasses.replace(settings, num_workers=0)
    with pytest.raises(expected) as caught:
        train.fit(NAME, easy_data, tmp_path / NAME, alone, quiet)
    assert expected is RunInterrupted or caught.value is error


@pytest.mark.parametrize("harm", ["truncate", "flip"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    terminated, whole, easy_data, settings, harm
):
    newest, before = checkpoint.checkpoints(terminated)
    file = newest / "state.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content if harm == "flip" else content[: len(content) // 2])
    lines = []
    train.fit(NAME, easy_data, terminated, settings, lines.append)
    assert newest.name in lines[1]
    assert "damaged (state.pt" in lines[1]
    assert before.name in lines[2]
    assert_same_run(whole, terminated)


def test_a_full_disk_leaves_the_last_good_checkpoint(
    whole, easy_data, settings, tmp_path, monkeypatch
):
    often = dataclasses.replace(settings, checkpoint_minutes=0)
    out, original, calls, lines = tmp_path / NAME, torch.save, [], []

    def save(content, file):
        calls.append(file)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if 4 <= len(calls) < 8:  # the last ones of epoch 1: the system stops in the middle
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, limits[1]))
        try:
            original(content, file)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    def log(line):
        lines.append(line)
        saved = checkpoint.checkpoints(out)
        if "no checkpoint" in line:
            assert saved
            assert all(checkpoint.find_corruption(path) is None for path in saved)
            assert not (out / "checkpoint" / ".partial").exists()
        if "epoch 1/2" in line:  # announced when it cannot be lost any more
            assert saved[0].name.startswith("epoch_002")

    monkeypatch.setattr(torch, "save", save)
    train.fit(NAME, easy_data, out, often, log)
    assert any("no checkpoint could be written (File too large)" in line for line in lines)
    assert sum("epoch 1/2" in line for line in lines) == 1
    assert_same_run(whole, out)


def test_without_any_checkpoint_epochs_are_announced_once_the_model_is_saved(
    whole, easy_data, settings, tmp_path, monkeypatch
):
    def save(content, file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def log(line):
        lines.append(line)
        if "epoch" in line:
            assert (out / "model.json").is_file()

    out, lines = tmp_path / NAME, []
    monkeypatch.setattr(torch, "save", save)
    train.fit(NAME, easy_data, out, settings, log)
    assert "no checkpoint could be written (No space left on device)" in lines[1]
    assert ["epoch 1/2" in lines[-2], "epoch 2/2" in lines[-1]] == [True, True]
    assert_same_run(whole, out)


def test_a_half_written_checkpoint_is_overwritten(terminated, whole, easy_data, settings):
    partial = terminated / "checkpoint" / ".partial" / "state.pt"
    partial.parent.mkdir()
    partial.write_bytes(bytes(150_000_000))  # larger than a checkpoint
    train.fit(NAME, easy_data, terminated, settings, quiet)
    (saved,) = checkpoint.checkpoints(terminated)
    assert torch.load(saved / "state.pt", weights_only=True)["state"]["step"] == 0
    assert not partial.parent.exists()
    assert_same_run(whole, terminated)


def test_the_newest_two_checkpoints_are_kept_beyond_epoch_999(easy_data, settings, tmp_path):
    alone = dataclasses.replace(settings, num_workers=0)
    training = build_components(NAME, easy_data, alone)
    state = checkpoint.TrainingState(training.accelerator)
    lines = []
    with checkpoint.CheckpointWriter(training, state, tmp_path, lines.append) as writer:
        for epochs in (997, 998, 999):
            state.rows = [{}] * epochs
            writer.save()
        writer.wait()
        newest = checkpoint.checkpoints(tmp_path)[0]
        inode = newest.stat().st_ino
        writer.save()  # the same state again: it is on disk already
    names = [path.name for path in checkpoint.checkpoints(tmp_path)]
    assert names == ["epoch_1000_step_0000000", "epoch_999_step_0000000"]
    assert newest.stat().st_ino == inode
    assert not lines


def test_the_time_limit_stops_with_a_checkpoint(easy_data, tmp_path, capsys):
    command = ["train", "--model", NAME, "--data", str(easy_data.path), "--epochs", "2"]
    command += ["--image-size", "32", "--batch-size", "8", "--precision", "fp32"]
    command += ["--max-hours", "1e-9", "--out", str(tmp_path)]
    assert cli.main(command) == TimeLimitReached.exit_code == 75
    (line,) = capsys.readouterr().err.splitlines()
    assert "max_hours" in line
    assert "epoch_001_step_0000001" in line
    assert checkpoint.find_corruption(checkpoint.checkpoints(tmp_path / NAME)[0]) is None


def test_more_epochs_continue_and_fewer_are_refused(whole, easy_data, settings, tmp_path):
    out = tmp_path / NAME
    train.fit(NAME, easy_data, out, dataclasses.replace(settings, epochs=1), quiet)
    lines = []
    train.fit(NAME, easy_data, out, settings, lines.append)
    assert "continuing from checkpoint epoch_002_step_0000000" in lines[1]
    assert_same_run(whole, out)
    with pytest.raises(UserError, match="epochs"):
        train.fit(NAME, easy_data, out, dataclasses.replace(settings, epochs=1), quiet)


def test_every_epoch_can_be_kept_as_a_model(whole, easy_data, settings, tmp_path):
    kept = dataclasses.replace(settings, keep_epochs=True)
    history = train.fit(NAME, easy_data, tmp_path / NAME, kept, quiet)
    assert_same_run(whole, tmp_path / NAME)
    folders = sorted((tmp_path / NAME / "epochs").iterdir())
    assert [folder.name for folder in folders] == ["epoch_001", "epoch_002"]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    best = json.loads((whole / "model.json").read_text())["epoch"]
    assert weights[0] != weights[1]
    assert weights[best - 1] == (whole / "model.safetensors").read_bytes()
    for folder, row in zip(folders, history.itertuples(), strict=True):
        assert TrainedModel(folder).description.temperature == pytest.approx(row.temperature)
    assert [model.folder for model in find_models(tmp_path)] == [tmp_path / NAME]


def test_a_finished_run_contains_no_more_than_it_needs(whole):
    assert sorted(p.name for p in whole.iterdir() if not p.name.startswith(".")) == [
        "checkpoint", "config.json", "excluded.csv", "history.csv", "model.json",
        "model.safetensors",
    ]  # fmt: skip
