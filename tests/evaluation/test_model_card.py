"""The model card, whose numbers are those of the files beside it."""

import shutil

import pytest
import yaml

from dfd_utils.data.folder import DataFolder
from dfd_utils.evaluation.evaluate import evaluate
from dfd_utils.evaluation.model_card import write_model_card
from dfd_utils.models.trained import TrainedModel


@pytest.fixture
def model(trained_run, tmp_path):
    folder = tmp_path / "run" / "resnet50"
    shutil.copytree(trained_run / folder.name, folder, ignore=shutil.ignore_patterns("check*"))
    return TrainedModel(folder)


def test_the_card_has_each_data_set_by_itself_and_readable_metadata(model, easy_data, tmp_path):
    name = 'o`ther| "set"'
    other = DataFolder(shutil.copytree(easy_data.path, tmp_path / name))
    (other.path / "Test" / "Real" / "000.jpg").unlink()
    for data in (easy_data, other):
        evaluate([model], data, log=lambda line: None, resamples=20)
    _, metadata, text = (model.folder / "README.md").read_text().split("---\n", 2)
    (index,) = yaml.safe_load(metadata)["model-index"]
    assert index["name"] == "ResNet50"
    found = {result["dataset"]["name"]: result["metrics"] for result in index["results"]}
    assert list(found) == ["easy", name]
    for data in (easy_data, other):
        entry = model.metrics(data, "Test")
        values = {metric["type"]: metric["value"] for metric in found[data.name]}
        assert values == {key: entry[key] for key in ("auc", "accuracy", "f1")}
        low, high = entry["intervals"]["auc"]
        cell = f"{entry['auc']:.3f} [{low:.3f}, {high:.3f}]" if low is not None else "too few"
        assert f"| {entry['images']} | {cell}" in text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.count("|") for row in rows] == [8, 8]
    assert "no evidence" not in text


def test_the_sample_is_named_as_such_and_the_band_is_told(model, easy_data):
    model.config["embedded_sample"] = True
    write_model_card(model)
    text = (model.folder / "README.md").read_text()
    assert "no evidence about real deepfakes" in text
    assert "it always answers" in text


def test_a_file_of_weights_alone_gets_no_card(model, tmp_path):
    shutil.copy(model.weights_file, tmp_path / "weights.safetensors")
    write_model_card(TrainedModel(tmp_path / "weights.safetensors"))
    assert not (tmp_path / "README.md").exists()
