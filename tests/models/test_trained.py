"""`TrainedModel`: what it reads from a folder, what it refuses, and which model is chosen."""

import dataclasses
import json
import os
import shutil

import pandas as pd
import pytest
import torch

from dfd_utils.config import UserError
from dfd_utils.data.folder import DataFolder
from dfd_utils.evaluation.evaluate import evaluate
from dfd_utils.models.description import ModelDescription
from dfd_utils.models.registry import create_model
from dfd_utils.models.trained import (
    TrainedModel,
    best_epoch,
    choose_model,
    find_models,
    models_by_title,
)
from dfd_utils.models.weights import save_weights
from tests.conftest import quiet

NAME = "efficientnet_b0"


@pytest.fixture
def saved(tmp_path):
    """A model's folder with nothing but the model."""
    torch.manual_seed(0)
    folder = tmp_path / "model"
    save_weights(create_model(NAME), folder / "model.safetensors")
    ModelDescription(NAME, 64, temperature=1.5, threshold=0.4).write(folder / "model.json")
    return folder


def change(path, **values):
    """Change values in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_saved_model_is_loaded_unchanged(saved):
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    torch.manual_seed(0)
    expected = create_model(NAME).eval()(images)
    model = TrainedModel(saved)
    assert torch.equal(model.load()(images), expected)
    assert model.load() is model.load()
    assert (model.description.temperature, model.description.threshold) == (1.5, 0.4)
    assert (model.name, model.title) == ("model", "EfficientNet-B0")


@pytest.mark.parametrize(
    "values",
    [
        {"threshold": 1.5}, {"threshold": None}, {"temperature": 0}, {"image_size": -1},
        {"image_size": 10**6}, {"precision": "fp31"}, {"fused": "no"}, {"epochs": [3]},
        {"unsure_from": 0.5}, {"unsure_from": 0.6, "unsure_to": 0.4}, {"architecture": ["x"]},
    ],
)  # fmt: skip
def test_a_description_out_of_range_is_refused(saved, values):
    change(saved / "model.json", **values)
    with pytest.raises(UserError, match=r"model\.json: damaged; train the model again"):
        TrainedModel(saved)


@pytest.mark.parametrize(
    "content",
    ["", "epoch\n1\n", "epoch,auc\n", "epoch,auc\n2,0.5\n", "epoch,auc\n1,nan\n",
     "epoch,auc\n1,x\n", "epoch,auc\ntrue,0.5\n", "epoch,auc\n1,0.5,3\n1,0.5\n",
     f"epoch,auc\n1,{'9' * 400}\n"],
)  # fmt: skip
def test_a_damaged_history_is_named(saved, content):
    (saved / "history.csv").write_text(content)
    with pytest.raises(UserError, match=r"history\.csv is missing or damaged"):
        choose_model(saved.parent)


def test_a_file_of_weights_alone_is_recognised(saved):
    weights = shutil.copy(saved / "model.safetensors", saved.parent / "weights.safetensors")
    model = TrainedModel(weights)
    assert model.description == ModelDescription(NAME, 224, temperature=1.0, threshold=0.5)
    assert not model.is_calibrated
    assert TrainedModel(saved / "model.safetensors").is_calibrated


def test_keys_of_earlier_versions_are_ignored(saved):
    before = TrainedModel(saved).description
    change(saved / "model.json", memory_format="channels_last", compiled=False, quantized=None)
    assert TrainedModel(saved).description == before
    assert TrainedModel(saved).load()


@pytest.mark.parametrize(("key", "value"), [
    ("classes", ["Fake", "Real"]), ("positive_class", "Real"), ("mean", [0.5] * 3),
    ("std", [0.5] * 3),
])  # fmt: skip
def test_other_classes_or_normalisation_are_refused_by_name(saved, key, value):
    change(saved / "model.json", **{key: value})
    with pytest.raises(UserError, match=rf"model\.json: {key} is "):
        TrainedModel(saved)


def test_weights_of_another_architecture_are_refused(saved):
    change(saved / "model.json", architecture="resnet50")
    with pytest.raises(UserError, match=r"safetensors: its weights are not those of a resnet"):
        TrainedModel(saved).load()


def test_a_damaged_or_missing_model_is_named(saved):
    (saved / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="not a file of weights"):
        TrainedModel(saved).load()
    description = json.loads((saved / "model.json").read_text())
    for damaged in ("{", json.dumps(description | {"temperature": "high"}), '{"image_size": 64}'):
        (saved / "model.json").write_text(damaged)
        with pytest.raises(UserError, match=r"model\.json: damaged"):
            TrainedModel(saved)
    (saved / "model.json").unlink()
    with pytest.raises(UserError, match="no trained model"):
        TrainedModel(saved)


def test_find_models_returns_each_model_once(trained_run, tmp_path):
    folders = [trained_run / NAME, trained_run / "resnet50"]
    models = find_models(trained_run / NAME, trained_run)
    assert [model.folder for model in models] == folders
    assert list(models_by_title(models)) == ["EfficientNet-B0", "ResNet50"]
    for missing in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="no trained model"):
            find_models(trained_run, missing)


def test_no_two_models_share_a_title(saved, tmp_path):
    for folder in ("one/a", "one/b", "two/a"):
        shutil.copytree(saved, tmp_path / "runs" / folder)
    models = find_models(tmp_path / "runs")
    titles = [f"EfficientNet-B0 ({name})" for name in ("one/a", "b", "two/a")]
    assert models_by_title(models) == dict(zip(titles, models, strict=True))


def test_the_model_of_a_single_epoch_is_used_only_where_it_is_named(saved, tmp_path):
    run = tmp_path / "runs" / "epochs"  # a run may have this name, too
    epoch = run / NAME / "epochs" / "epoch_003"
    shutil.copytree(saved, epoch)
    for path in (run / NAME, run.parent):  # while the training still runs
        with pytest.raises(UserError, match="no trained model"):
            choose_model(path)
    shutil.copy(saved / "model.json", run / NAME)
    shutil.copy(saved / "model.safetensors", run / NAME)
    os.utime(epoch / "model.json", (4e9, 4e9))
    assert [model.folder for model in find_models(run.parent)] == [run / NAME]
    assert choose_model(run.parent).folder == run / NAME
    assert choose_model(epoch).folder == epoch
    assert [model.folder for model in find_models(epoch)] == [epoch]
    assert [model.folder for model in find_models(epoch.parent)] == [epoch]


@pytest.fixture
def evaluated(trained_run, easy_data, tmp_path):
    """A copy of a model, and of the data set that it has been evaluated on."""
    model = TrainedModel(shutil.copytree(trained_run / NAME, tmp_path / NAME))
    data = DataFolder(shutil.copytree(easy_data.path, tmp_path / "data"))
    evaluate([model], data, "Validation", quiet, resamples=20)
    return model, data


def test_results_of_the_same_images_and_model_are_returned(evaluated):
    model, data = evaluated
    predictions = model.predictions(DataFolder(data.path), "Validation")
    assert list(predictions) == ["path", "label", "score", "logit"]
    assert model.metrics(data, "Validation")["images"] == len(predictions) == 16
    with pytest.raises(UserError, match="not evaluated on Test of data"):
        model.metrics(data, "Test")


def test_results_of_other_images_are_refused(evaluated):
    model, data = evaluated
    listed = data.images["path"][data.images["split"] == "Validation"]
    others = [data.with_exclusions([listed.iloc[0]])]
    (data.path / "Validation" / "Real" / "000.jpg").unlink()
    others.append(DataFolder(data.path))
    for other in others:
        for read in (model.metrics, model.predictions):
            with pytest.raises(UserError, match="not evaluated on Validation of data"):
                read(other, "Validation")


@pytest.mark.parametrize("changed", ["weights", "description"])
def test_results_of_another_model_are_refused(evaluated, changed):
    model, data = evaluated
    if changed == "weights":
        network = TrainedModel(model.folder).load()
        network.backbone.classifier[1].bias.data += 1
        save_weights(network, model.weights_file)
    else:
        other = dataclasses.replace(model.description, temperature=9.0)
        other.write(model.folder / "model.json")
    for read in ("metrics", "predictions"):
        with pytest.raises(UserError, match="not evaluated on Validation of data"):
            getattr(TrainedModel(model.folder), read)(data, "Validation")


def test_changed_predictions_are_refused(evaluated):
    model, data = evaluated
    path = model.results_folder(data) / "predictions_Validation.csv"
    path.write_text(path.read_text().replace(",0,", ",1,", 1))
    with pytest.raises(UserError, match=r"predictions_Validation\.csv: missing or changed"):
        model.predictions(data, "Validation")
    path.unlink()
    with pytest.raises(UserError, match=r"predictions_Validation\.csv: missing or changed"):
        model.predictions(data, "Validation")


def test_a_network_loaded_in_inference_mode_has_gradients(saved):
    model = TrainedModel(saved)
    with torch.inference_mode():
        model.load()
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    model.load()(images).sum().backward()  # as Grad-CAM does


def test_the_best_model_of_the_newest_run_is_chosen(saved, tmp_path):
    for run, auc in (("old", 0.99), ("new", 0.5)):
        for name, better in (("resnet50", 0), (NAME, 0.1)):
            folder = tmp_path / "runs" / run / name
            folder.mkdir(parents=True)
            shutil.copy(saved / "model.json", folder)
            history = pd.DataFrame({"epoch": [1], "auc": [auc + better]})
            history.to_csv(folder / "history.csv", index=False)
            if run == "old":
                os.utime(folder / "model.json", (1, 1))
    assert choose_model(tmp_path / "runs").folder == tmp_path / "runs" / "new" / NAME


def test_best_epoch_is_the_later_of_two_equal_ones():
    history = pd.DataFrame({"epoch": [1, 2, 3, 4], "auc": [0.5, 0.8, 0.8, 0.7]})
    assert best_epoch(history) == 3
    history["degraded_auc"] = [0.5, 0.6, 0.6, 0.75]  # counts as much
    assert best_epoch(history) == 4
