"""Two processes by torchrun: the same training, every image once, one writer, one error line."""

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from dfd_utils import train
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
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "dfd_utils"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, env=environment
    )


def training(data, out):
    return ["train", "--model", NAME, "--data", data, "--out", out, "--epochs", 2,
            "--image-size", 32, "--batch-size", 16, "--precision", "fp32"]  # fmt: skip


def test_two_processes_train_as_one(data, quick, tmp_path):
    from dfd_utils.config import get_profile

    done = torchrun(*training(data, tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2/2") == 1  # one process speaks
    assert "2" in (tmp_path / NAME / "config.json").read_text()
    profile = get_profile("sample", epochs=2, image_size=32, batch_size=16, precision="fp32")
    alone = train.fit(NAME, data, tmp_path / "alone", profile, quiet)
    together = pd.read_csv(tmp_path / NAME / "history.csv")
    # Batch norm sees 8 images a process instead of 16; everything else is the same.
    assert together["training_loss"].tolist() == pytest.approx(
        alone["training_loss"].tolist(), abs=0.05
    )
    judged = torchrun("evaluate", "--data", data, tmp_path / NAME)
    assert judged.returncode == 0, judged.stderr
    table = pd.read_csv(tmp_path / NAME / "predictions_Test.csv")
    assert len(table) == 17
    assert table["path"].is_unique


def test_an_error_of_one_process_is_told_once(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "Train" / "Fake" / "003.jpg").write_bytes(b"")
    done = torchrun(*training(tmp_path / "data", tmp_path / "out"))
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("dfd:")]
    assert len(told) == 1, done.stderr
    assert "003.jpg" in told[0]
