"""Runs beside each other: other seeds, other data sets, and what each model costs."""

import json
import shutil

import pytest

from dfd_utils import config
from dfd_utils.evaluation import across_runs, cost, evaluate


@pytest.fixture
def several(trained_run, easy_data, tiny_sample, tmp_path, monkeypatch):
    """ResNet50 as trained, as if with seed 1, and as if with another lr; two data sets."""
    seed1 = {"seed": 1, "max_hours": 4.0, "checkpoint_minutes": 1.0}  # the last two change nothing
    for name, change in (("easy", {}), ("easy-seed1", seed1), ("easy-lr", {"lr": 1.0})):
        folder = tmp_path / "build" / "runs" / name / "resnet50"
        shutil.copytree(trained_run / "resnet50", folder, ignore=shutil.ignore_patterns("check*"))
        told = json.loads((folder / "config.json").read_text())
        told["settings"] |= change
        (folder / "config.json").write_text(json.dumps(told))
    (tmp_path / "data" / "unfinished").mkdir(parents=True)
    for data in (easy_data, tiny_sample):
        (tmp_path / "data" / data.name).symlink_to(data)
    monkeypatch.setattr(config, "BUILD_DIR", tmp_path / "build")
    monkeypatch.setattr(config, "DATA_DIR", tmp_path / "data")
    return tmp_path / "build" / "runs"


def test_repeats_differ_in_the_seed_alone(several):
    found = across_runs.runs_with_other_seeds(several / "easy" / "resnet50")
    assert [folder.parent.name for folder in found] == ["easy", "easy-seed1"]
    assert [
        folder.parent.name
        for folder in across_runs.runs_with_other_seeds(several / "easy-lr" / "resnet50")
    ] == ["easy-lr"]


def test_seed_metrics_judge_every_repeat(several, easy_data):
    folders = {"ResNet50": several / "easy" / "resnet50"}
    table = across_runs.seed_metrics(folders, easy_data, log=lambda _: None)
    assert table["seed"].tolist() == [0, 1]
    entry = evaluate.read_metrics(several / "easy-seed1" / "resnet50", "Test")
    assert table["auc"].tolist()[1] == entry["auc"]


def test_every_model_meets_every_data_set_by_itself(several, easy_data):
    (several / "easy-lr" / "resnet50" / "model.safetensors").write_bytes(b"broken")
    (several / "easy-lr" / "resnet50" / "metrics.json").unlink(missing_ok=True)
    lines = []
    table = across_runs.across_data_sets(easy_data, log=lines.append)
    assert table["tested_on"].tolist() == ["easy", "tiny"]
    assert table["run"].tolist() == ["easy", "easy"]  # the other seed is a repeat
    assert table["images"].tolist() == [16, 8]
    assert any("left out" in line and "easy-lr" in line for line in lines)
    own = across_runs.across_data_sets(easy_data, everything=False, log=lines.append)
    assert own["tested_on"].tolist() == ["easy"]


def test_cost_of_a_model(trained_run):
    folder = trained_run / "resnet50"
    found = cost.model_cost(folder)
    # He et al. 2016, table 1: 3.8 billion multiply-adds at 224 px; torchvision's v1.5 has 4.1, of
    # which 32 px need (32 / 224)^2
    assert found["GFLOPs an image"] == pytest.approx(2 * 4.1 * (32 / 224) ** 2, rel=0.02)
    assert found["parameters (million)"] == pytest.approx(23.5, abs=0.05)  # 25.6 less the head
    size = (folder / "model.safetensors").stat().st_size
    assert found["weights on disk (MB)"] == pytest.approx(size / 1e6)
    assert cost.training_cost(folder)["epochs"] == 2


def test_scoring_is_measured_in_its_own_process(trained_run):
    found = cost.scoring_cost(trained_run / "efficientnet_b0")
    assert found["one image (ms)"] > 0
    assert 10 < found["peak memory (MB)"] < 2000
    assert found[f"images/s in batches of {cost.BATCH_SIZE}"] > 0
