"""Two processes by torchrun: the same training, every image once, one writer, one error line."""

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from dfd_utils.config import PROJECT_ROOT
from dfd_utils.evaluation.evaluate import score_split
from dfd_utils.training import train
from tests import two_processes
from tests.conftest import write_split
from tests.test_train import quiet

NAME = "efficientnet_b0"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Splits that two processes cannot share evenly."""
    folder = tmp_path_factory.mktemp("data") / "uneven"
    for seed, (split, images) in enumerate((("Train", 32), ("Validation", 9), ("Test", 9))):
        write_split(folder / split, images, seed)
    (folder / "Validation" / "Fake" / "000.jpg").unlink()
    (folder / "Test" / "Fake" / "000.jpg").unlink()
    return folder


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT_ROOT)}
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, env=environment
    )


def test_two_processes_work_as_one(data, tmp_path):
    """Equal but for rounding, where batch norm, which sees its process's images, is replaced."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    model = tmp_path / "model" / NAME
    train.fit(NAME, data, model, two_processes.PROFILE, quiet)
    done = torchrun("-m", "tests.two_processes", data, together, model)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2/2") == 1  # one process speaks
    two_processes.train_without_batch_norm(data, alone)
    one, two = (pd.read_csv(run / "history.csv") for run in (alone, together))
    same = ["training_loss", "validation_loss", "auc", "lr"]
    pd.testing.assert_frame_equal(one[same], two[same], rtol=1e-3)
    # The evaluation there scored each image once, as one process does.
    table = pd.read_csv(model / "predictions_Test.csv")
    expected = score_split(model, data, "Test")
    pd.testing.assert_frame_equal(table, expected, rtol=1e-4)


def test_an_error_of_one_process_is_told_once(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "Train" / "Fake" / "003.jpg").write_bytes(b"")
    command = ["train", "--model", NAME, "--data", tmp_path / "data", "--out", tmp_path / "out"]
    command += ["--image-size", 32, "--batch-size", 16, "--precision", "fp32"]
    done = torchrun("-m", "dfd_utils", *command)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("dfd:")]
    assert len(told) == 1, done.stderr
    assert "003.jpg" in told[0]
