"""Several processes by torchrun: one training, every image once, one writer, one error line."""

import json
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from dfd_utils.config import PROJECT_ROOT
from dfd_utils.data.folder import DataFolder
from dfd_utils.evaluation.evaluate import score_split
from dfd_utils.models.trained import TrainedModel
from dfd_utils.training import baseline
from tests.conftest import quiet, write_split
from tests.training import two_processes
from tests.training.two_processes import NAME


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set whose splits two processes cannot share equally, and an image in two splits."""
    folder = tmp_path_factory.mktemp("data") / "uneven"
    for seed, (split, images) in enumerate((("Train", 32), ("Validation", 9), ("Test", 9))):
        write_split(folder / split, images, seed)
    (folder / "Validation" / "Fake" / "000.jpg").unlink()
    (folder / "Test" / "Fake" / "000.jpg").unlink()
    shutil.copy(folder / "Test" / "Real" / "000.jpg", folder / "Train" / "Real" / "copy.jpg")
    return folder


def torchrun(*arguments, processes=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT_ROOT)}
    command += ["-m", "tests.training.two_processes", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_two_processes_work_as_one(data, tmp_path):
    """Equal but for rounding, where batch norm, which sees its process's images, is replaced."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert not DataFolder(data).is_audited
    done = torchrun("train", data, together)
    assert done.returncode == 0, done.stderr
    for line in ("the audit excludes Train 1,", "epoch 2/2"):
        assert done.stdout.count(line) == 1  # from one process
    config = json.loads((together / "config.json").read_text())
    assert (config["processes"], config["excluded_images"]["Train"]) == (2, 1)
    two_processes.train_without_batch_norm(data, alone)
    one, two = (pd.read_csv(run / "history.csv") for run in (alone, together))
    same = ["training_loss", "validation_loss", "auc", "lr"]
    pd.testing.assert_frame_equal(one[same], two[same], rtol=1e-3)


def test_three_processes_score_each_image_once(data, trained_run, tmp_path):
    model = shutil.copytree(trained_run / NAME, tmp_path / "model" / NAME)
    done = torchrun("score", data, tmp_path, model, processes=3)
    assert done.returncode == 0, done.stderr
    trained, folder = TrainedModel(model), DataFolder(data)
    expected = score_split(trained, folder, "Test")
    table = pd.read_csv(trained.results_folder(folder) / "predictions_Test.csv")
    pd.testing.assert_frame_equal(table, expected, rtol=1e-4)
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert [f"Test/{path.split('/Test/')[1]}" for path in rows["path"]] == sorted(table["path"])
    assert len(rows) == 17
    assert rows["error"].isna().all()


def test_two_processes_fit_one_baseline_and_one_fusion(easy_data, trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path / "together")
    done = torchrun("baseline", easy_data.path, run)
    assert done.returncode == 0, done.stderr
    alone = shutil.copytree(trained_run, tmp_path / "alone")
    for model in baseline.add_baseline(alone, easy_data, quiet)[-2:]:
        lines = done.stdout.splitlines()
        assert sum(line.startswith(f"{model.name}: ") for line in lines) == 1  # from one process
        scores = [
            TrainedModel(folder / model.name).score(easy_data.split("Test", model.transform))
            for folder in (run, alone)
        ]
        pd.testing.assert_frame_equal(*scores, rtol=1e-3, atol=1e-4)


def test_an_error_of_one_process_is_reported_once(data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    done = torchrun("broken", folder, tmp_path / "out")
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("dfd:")]
    assert len(errors) == 1, done.stderr
    assert "003.jpg" in errors[0]
