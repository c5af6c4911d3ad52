"""Models side by side: other seeds, other data sets, and what each model costs."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from dfd_utils import cli, config
from dfd_utils.data.folder import DataFolder
from dfd_utils.evaluation import across_runs, cost
from dfd_utils.evaluation.across_runs import runs_with_other_seeds, seed_metrics
from dfd_utils.evaluation.evaluate import evaluate
from dfd_utils.models.trained import TrainedModel, find_models, models_by_title
from dfd_utils.reporting.evaluation_text import data_set_matrix
from tests.conftest import quiet, write_split

NAME = "efficientnet_b0"


@pytest.fixture
def runs(trained_run, tmp_path):
    """A folder of runs that are copies of one model, recorded as if they had other settings."""
    trainings = {
        "easy": {},
        # The last two do not change the result.
        "easy-seed1": {"settings": {"seed": 1, "max_hours": 4.0, "checkpoint_minutes": 1.0}},
        "easy-lr": {"settings": {"seed": 2, "lr": 1.0}},
        "easy-imagenet": {"settings": {"seed": 3}, "initial_weights": "imagenet"},
        "easy-data": {"settings": {"seed": 4}, "data_fingerprint": "0123456789abcdef"},
        "easy-excluded": {"settings": {"seed": 5}},
        "easy-damaged": {"settings": {"seed": 6}},
    }
    ignore = shutil.ignore_patterns("checkpoint", "metrics.json", "predictions_*", "on_*")
    for name, changes in trainings.items():
        folder = shutil.copytree(trained_run / NAME, tmp_path / "runs" / name / NAME, ignore=ignore)
        content = json.loads((folder / "config.json").read_text())
        content["settings"] |= changes.pop("settings", {})
        (folder / "config.json").write_text(json.dumps(content | changes))
    with open(tmp_path / "runs" / "easy-excluded" / NAME / "excluded.csv", "a") as file:
        file.write("Train/Real/000.jpg\n")
    (tmp_path / "runs" / "easy-damaged" / NAME / "model.json").write_text("{")
    return tmp_path / "runs"


@pytest.fixture
def data_root(tmp_path, monkeypatch):
    """The data folder, with one data set that has Test and one that does not."""
    monkeypatch.setattr(config, "DATA_DIR", tmp_path / "my data")
    (tmp_path / "my data" / "unfinished" / "Train").mkdir(parents=True)
    write_split(tmp_path / "my data" / "faces" / "Test", images=4, seed=7)
    return tmp_path / "my data"


def contents(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_runs_with_other_seeds_differ_only_in_the_seed(runs):
    def names(run):
        models = runs_with_other_seeds(TrainedModel(runs / run / NAME))
        return [model.folder.parent.name for model in models]

    assert names("easy") == ["easy", "easy-seed1"]
    assert names("easy-seed1") == ["easy-seed1", "easy"]
    for alone in ("easy-lr", "easy-imagenet", "easy-data", "easy-excluded"):
        assert names(alone) == [alone]


def test_a_seed_without_results_is_reported_and_scored_only_on_request(runs, easy_data):
    models = {"EfficientNet-B0": TrainedModel(runs / "easy" / NAME)}
    evaluate(list(models.values()), easy_data, "Test", quiet, resamples=50)
    before, lines = contents(runs), []
    table = seed_metrics(models, easy_data, log=lines.append)
    assert table["seed"].tolist() == [0]
    (line,) = lines
    assert f"missing: easy-seed1/{NAME} on Test of easy" in line
    assert contents(runs) == before
    table = seed_metrics(models, easy_data, score_missing=True, log=quiet)
    assert table["seed"].tolist() == [0, 1]
    entry = TrainedModel(runs / "easy-seed1" / NAME).metrics(easy_data, "Test")
    assert table["auc"].tolist()[1] == entry["auc"]
    # Existing results are left alone, whatever their number of resamples.
    assert models["EfficientNet-B0"].metrics(easy_data, "Test")["resamples"] == 50


def test_results_on_other_data_sets_are_read_or_named(runs, easy_data, data_root):
    model = TrainedModel(runs / "easy" / NAME)
    evaluate([model], easy_data, "Test", quiet, resamples=50)
    own, other = across_runs.data_sets(easy_data)
    assert (own, other.path) == (easy_data, data_root / "faces")
    before, lines = contents(runs), []
    table = across_runs.across_data_sets([model], [own, other], log=lines.append)
    assert table["tested_on"].tolist() == ["easy"]
    assert not other.audit_folder.exists()
    assert contents(runs) == before
    # The line contains the command that adds the result.
    (line,) = lines
    assert f"missing: easy/{NAME} on Test of faces" in line
    _, command, _ = line.split("`")
    assert cli.main(shlex.split(command)[1:]) == 0
    table = across_runs.across_data_sets([model], across_runs.data_sets(easy_data), log=pytest.fail)
    assert table["tested_on"].tolist() == ["easy", "faces"]
    assert table["trained_on"].tolist() == ["easy", "easy"]
    assert table["images"].tolist() == [16, 8]


def test_missing_results_are_scored_and_broken_models_left_out(runs, easy_data, data_root):
    (runs / "easy-lr" / NAME / "model.safetensors").write_bytes(b"broken")
    models = [TrainedModel(runs / name / NAME) for name in ("easy-lr", "easy")]
    data_sets, lines = across_runs.data_sets(easy_data), []
    table = across_runs.across_data_sets(models, data_sets, score_missing=True, log=lines.append)
    assert table["run"].tolist() == ["easy", "easy"]
    assert table["tested_on"].tolist() == ["easy", "faces"]
    left_out = [line for line in lines if line.startswith("left out: ")]
    assert len(left_out) == 2
    assert all("easy-lr" in line for line in left_out)


def test_data_sets_of_one_name_get_different_labels(runs, data_root, tmp_path):
    write_split(tmp_path / "more" / "faces" / "Test", images=4, seed=8)
    data_sets = [DataFolder(parent / "faces") for parent in (data_root, tmp_path / "more")]
    model = TrainedModel(runs / "easy" / NAME)
    table = across_runs.across_data_sets([model], data_sets, score_missing=True, log=quiet)
    expected = [f"faces ({data.fingerprint[:8]})" for data in data_sets]
    assert table["tested_on"].tolist() == expected
    assert data_set_matrix(table).columns[2:].tolist() == [f"on {name}" for name in expected]


def test_two_models_of_one_architecture_stay_two(runs, easy_data):
    shutil.copytree(runs / "easy" / NAME, runs / "easy" / "second")
    models = models_by_title(find_models(runs / "easy"))
    assert list(models) == [f"EfficientNet-B0 ({name})" for name in (NAME, "second")]
    evaluate(list(models.values()), easy_data, "Test", quiet, resamples=50)
    seeds = seed_metrics(models, easy_data, log=quiet)
    assert seeds["model"].tolist() == list(models)
    matrix = data_set_matrix(across_runs.across_data_sets(list(models.values()), [easy_data]))
    assert matrix.index.tolist() == [NAME, "second"]


def test_cost_of_a_model(trained_run):
    model = TrainedModel(trained_run / "resnet50")
    costs = cost.model_cost(model)
    # He et al. 2016, table 1: 3.8 billion multiply-adds at 224 px; torchvision's v1.5 has 4.1, of
    # which 32 px need (32 / 224)^2
    assert costs["GFLOPs per image"] == pytest.approx(2 * 4.1 * (32 / 224) ** 2, rel=0.02)
    # 25.6 million minus the layer for ImageNet's 1000 classes
    assert costs["parameters (million)"] == pytest.approx(23.5, abs=0.05)
    assert costs["weights on disk (MB)"] == pytest.approx(model.weights_file.stat().st_size / 1e6)
    assert cost.training_cost(model)["epochs"] == 2


def test_scoring_is_measured(trained_run):
    costs = cost.scoring_cost(TrainedModel(trained_run / NAME))
    assert costs["one image (ms)"] > 0
    assert costs[f"images/s in batches of {cost.BATCH_SIZE}"] > 0
    assert ("peak memory (MB)" in costs) == (costs["scored on"] != "cpu")
