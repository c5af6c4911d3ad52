"""Nothing is lost: broken off at any moment, a run ends bit for bit as one never broken."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import pandas as pd
import pytest
import torch

from dfd_utils import cli
from dfd_utils.config import PROJECT_ROOT, RunInterrupted, TimeLimitReached, UserError
from dfd_utils.data import dataset
from dfd_utils.models.trained import load_model
from dfd_utils.training import checkpoint, train
from dfd_utils.training.progress import Progress
from tests.test_train import assert_same_run, quiet

NAME = "efficientnet_b0"


@pytest.fixture(scope="module")
def settings(quick):
    return dataclasses.replace(
        quick, degradation_probability=0.5, cutmix_probability=0.5, num_workers=1
    )


@pytest.fixture(scope="module")
def whole(easy_data, settings, tmp_path_factory):
    """A run that was never broken."""
    out = tmp_path_factory.mktemp("whole") / NAME
    train.fit(NAME, easy_data, out, settings, quiet)
    return out


@pytest.fixture(scope="module")
def terminated_once(easy_data, settings, tmp_path_factory):
    """A run that got SIGTERM in the third step of its second epoch."""

    def step(self, state):
        if (state.epoch, state.step) == (2, 3):
            os.kill(os.getpid(), signal.SIGTERM)

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
    command = [sys.executable, str(script), "--moments", "2", "--kills", "2", "--epochs", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 moments" in done.stdout


def test_sigterm_finishes_the_step_and_the_same_call_goes_on(
    terminated, whole, easy_data, settings
):
    assert [p.name for p in checkpoint.checkpoints(terminated)] == [
        "epoch_002_step_0000003",
        "epoch_002_step_0000000",
    ]
    lines = []
    train.fit(NAME, easy_data, terminated, settings, lines.append)
    assert "going on from checkpoint epoch_002_step_0000003" in lines[0]
    assert_same_run(whole, terminated)
    assert len(checkpoint.checkpoints(terminated)) == 1  # enough to add epochs to


def test_images_of_skipped_batches_are_not_read(terminated, easy_data, settings, monkeypatch):

    read = []
    original = dataset.read_image
    monkeypatch.setattr(
        dataset, "read_image", lambda path, *more: read.append(path) or original(path, *more)
    )
    alone = dataclasses.replace(settings, num_workers=0)
    train.fit(NAME, easy_data, terminated, alone, quiet)
    assert sum("Train" in str(path) for path in read) == 3 * settings.batch_size


def test_sigterm_while_judging_keeps_the_epoch(whole, easy_data, settings, tmp_path, monkeypatch):
    def judged(*args):
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(train, "evaluate_epoch", judged)
        with pytest.raises(RunInterrupted):
            train.fit(NAME, easy_data, tmp_path / NAME, settings, quiet)
    (place,) = checkpoint.checkpoints(tmp_path / NAME)
    assert place.name == "epoch_001_step_0000006"
    train.fit(NAME, easy_data, tmp_path / NAME, settings, quiet)
    assert_same_run(whole, tmp_path / NAME)


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
    assert newest.name in lines[0]
    assert "damaged (state.pt" in lines[0]
    assert before.name in lines[1]
    assert_same_run(whole, terminated)


def test_a_full_disk_leaves_the_last_good_checkpoint(
    whole, easy_data, settings, tmp_path, monkeypatch
):
    often = dataclasses.replace(settings, checkpoint_minutes=0)
    out, original, calls, lines = tmp_path / NAME, torch.save, [], []

    def save(what, file):
        calls.append(file)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if 4 <= len(calls) < 8:  # the system refuses to write on in the middle of the file
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, limits[1]))
        try:
            original(what, file)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    def log(line):
        lines.append(line)
        if "no checkpoint" in line:
            places = checkpoint.checkpoints(out)
            assert places
            assert all(checkpoint.find_corruption(place) is None for place in places)
            assert not (out / "checkpoint" / ".partial").exists()

    monkeypatch.setattr(torch, "save", save)
    train.fit(NAME, easy_data, out, often, log)
    assert any("no checkpoint could be written (File too large)" in line for line in lines)
    assert_same_run(whole, out)


def test_what_a_killed_run_left_half_written_is_written_over(
    terminated, whole, easy_data, settings
):
    left = terminated / "checkpoint" / ".partial" / "state.pt"
    left.parent.mkdir()
    left.write_bytes(bytes(150_000_000))  # more than a checkpoint has
    train.fit(NAME, easy_data, terminated, settings, quiet)
    (place,) = checkpoint.checkpoints(terminated)
    assert torch.load(place / "state.pt", weights_only=True)["state"]["step"] == 0
    assert not left.parent.exists()
    assert_same_run(whole, terminated)


def test_time_is_up(easy_data, tmp_path, capsys):
    command = ["train", "--model", NAME, "--data", str(easy_data), "--epochs", "2"]
    command += ["--image-size", "32", "--batch-size", "8", "--precision", "fp32"]
    command += ["--max-hours", "1e-9", "--out", str(tmp_path)]
    assert cli.main(command) == TimeLimitReached.exit_code == 75
    (line,) = capsys.readouterr().err.splitlines()
    assert "max_hours" in line
    assert "epoch_001_step_0000001" in line
    assert checkpoint.find_corruption(checkpoint.checkpoints(tmp_path / NAME)[0]) is None


def test_more_epochs_go_on_and_fewer_are_refused(whole, easy_data, settings, tmp_path):
    out = tmp_path / NAME
    train.fit(NAME, easy_data, out, dataclasses.replace(settings, epochs=1), quiet)
    lines = []
    train.fit(NAME, easy_data, out, settings, lines.append)
    assert "going on from checkpoint epoch_002_step_0000000" in lines[0]
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
        _, description = load_model(folder)
        assert description["temperature"] == pytest.approx(row.temperature)


def test_a_run_keeps_no_more_than_it_needs(whole):
    assert sorted(p.name for p in whole.iterdir() if not p.name.startswith(".")) == [
        "checkpoint", "config.json", "history.csv", "model.json", "model.safetensors",
    ]  # fmt: skip


def test_history_tells_how_each_epoch_is_calibrated(whole):
    history = pd.read_csv(whole / "history.csv")
    assert {"temperature", "threshold"} <= set(history.columns)
