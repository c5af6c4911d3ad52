"""Evaluation: predictions and metrics, when they are reused, and degraded images."""

import dataclasses
import json
import math
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.special import expit
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    roc_auc_score,
)
from statsmodels.stats.proportion import proportion_confint

from dfd_utils import cli
from dfd_utils.config import UserError
from dfd_utils.data import transforms
from dfd_utils.data.folder import DataFolder
from dfd_utils.evaluation import evaluate as evaluate_module
from dfd_utils.evaluation import robustness
from dfd_utils.evaluation.evaluate import (
    evaluate,
    score_split,
    select_error_examples,
    update_metrics_file,
)
from dfd_utils.models.trained import TrainedModel, find_models
from dfd_utils.stats import metrics
from tests.conftest import quiet, write_split

NAME = "efficientnet_b0"


def copy_model(folder: Path, to: Path) -> TrainedModel:
    """Return a copy of a trained model, without its results."""
    names = "checkpoint", "metrics.json", "*.csv", "on_*"
    return TrainedModel(shutil.copytree(folder, to, ignore=shutil.ignore_patterns(*names)))


@pytest.fixture(scope="module")
def run(trained_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated") / "easy"
    for name in ("resnet50", NAME):
        copy_model(trained_run / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def table(run, easy_data):
    return evaluate(find_models(run), easy_data, "Test", quiet, resamples=100)


@pytest.fixture
def model(trained_run, tmp_path):
    return copy_model(trained_run / NAME, tmp_path / "run" / NAME)


def make_test_data(folder: Path, seed: int = 5) -> DataFolder:
    """Make a data set that has only Test, with 4 images per class."""
    write_split(folder / "Test", images=4, seed=seed)
    return DataFolder(folder)


# Results


def test_metrics_are_those_of_the_predictions_file(table, run):
    assert set(table.index) == {"resnet50", NAME}
    for name, row in table.iterrows():
        predictions = pd.read_csv(run / name / "predictions_Test.csv")
        assert list(predictions.columns) == ["path", "label", "score", "logit"]
        labels, scores = predictions["label"], predictions["score"]
        assert all((labels == 1) == predictions["path"].str.startswith("Test/Fake/"))
        content = json.loads((run / name / "metrics.json").read_text())
        assert content["positive_class"] == "Fake"
        entry, called = content["Test"], scores >= 0.5
        assert np.isclose(entry["auc"], roc_auc_score(labels, scores))
        assert np.isclose(entry["accuracy"], accuracy_score(labels, called))
        assert np.isclose(entry["f1"], f1_score(labels, called, zero_division=0))
        low, high = entry["intervals"]["auc"]
        assert low <= entry["auc"] <= high
        assert row["auc"] == entry["auc"]
        expected = confusion_matrix(labels, called, labels=[0, 1])
        assert (metrics.confusion(labels, scores) == expected).all()


def test_metrics_at_the_chosen_threshold_and_before_calibration(table, run, easy_data):
    model = TrainedModel(run / "resnet50")
    entry, predictions = model.metrics(easy_data, "Test"), model.predictions(easy_data, "Test")
    labels, scores, raw = predictions["label"], predictions["score"], expit(predictions["logit"])
    before, chosen = entry["before_temperature"], entry["at_validation_threshold"]
    assert np.isclose(before["log_loss"], log_loss(labels, raw, labels=[0, 1]))
    assert chosen["threshold"] == model.description.threshold
    assert np.isclose(chosen["accuracy"], accuracy_score(labels, scores >= chosen["threshold"]))
    best = [balanced_accuracy_score(labels, scores >= cut) for cut in np.linspace(0, 1, 201)]
    assert entry["oracle"]["balanced_accuracy"] >= max(best) - 1e-12
    assert "intervals" not in entry["oracle"]  # a bound, not a result
    for part in (entry, before, chosen):
        for name, (low, high) in part["intervals"].items():
            assert low <= part[name] <= high or name == "expected_calibration_error"


def test_scores_are_calibrated_by_the_models_temperature(table, run, easy_data):
    model = TrainedModel(run / "resnet50")
    predictions, temperature = model.predictions(easy_data, "Test"), model.description.temperature
    resize = transforms.eval_transform(model.description.image_size)
    pixels = [np.array(Image.open(easy_data.path / path)) for path in predictions["path"]]
    images = [resize(torch.from_numpy(array).permute(2, 0, 1)) for array in pixels]
    with torch.inference_mode():
        logits = model.load()(torch.stack(images)).numpy().astype("float64")
    assert abs(temperature - 1) > 0.01
    margin = logits[:, 1] - logits[:, 0]
    assert predictions["logit"].to_numpy() == pytest.approx(margin, rel=1e-5, abs=1e-4)
    assert predictions["score"].to_numpy() == pytest.approx(expit(margin / temperature), abs=1e-4)
    # Written as text and read back to the last bit.
    assert (expit(predictions["logit"] / temperature) == predictions["score"]).all()
    assert (predictions["logit"] == score_split(model, easy_data, "Test")["logit"]).all()


def test_a_small_temperature_does_not_change_the_ranking(trained_run, easy_data, tmp_path):
    """Nor do error examples and what precedes calibration, even if all scores are rounded to 1."""
    model = copy_model(trained_run / "resnet50", tmp_path / "resnet50")
    logits = score_split(model, easy_data, "Test")["logit"]
    weights = load_file(model.weights_file)
    for part in ("weight", "bias"):
        weights[f"backbone.fc.{part}"] /= logits.std()
    weights["backbone.fc.bias"][1] += 5 - logits.mean() / logits.std()  # all are called Fake
    save_file(weights, model.weights_file)
    results = []
    for temperature in (1.0, 0.05):
        description = dataclasses.replace(model.description, temperature=temperature)
        description.write(model.folder / "model.json")
        again = TrainedModel(model.folder)
        evaluate([again], easy_data, "Test", quiet, resamples=20)
        results.append((again.metrics(easy_data, "Test"), again.predictions(easy_data, "Test")))
    (usual, scored), (small, rounded) = results
    assert scored["score"].nunique() == 16
    assert (rounded["score"] == 1).all()
    ranking = {"auc", "average_precision", "aurc", *metrics.ROC_METRICS}
    assert {n: small[n] for n in ranking} == {n: usual[n] for n in ranking}
    assert small["auc"] == pytest.approx(roc_auc_score(scored["label"], scored["logit"]))
    assert small["before_temperature"] == usual["before_temperature"]
    assert small["before_temperature"]["brier"] == usual["brier"] != small["brier"]
    examples = [select_error_examples(table, 3)["path"].tolist() for table in (scored, rounded)]
    assert examples[0] == examples[1]


def test_two_evaluations_write_the_same_bytes(trained_run, easy_data, tmp_path):
    contents = []
    for name in ("one", "two"):
        model = copy_model(trained_run / NAME, tmp_path / name / NAME)
        evaluate([model], easy_data, "Test", quiet, resamples=50)
        robustness.degraded_predictions([model], easy_data, severities=(5,), images=4)
        files = "predictions_Test.csv", "degraded_Validation.csv", "metrics.json"
        contents.append([(model.folder / file).read_bytes() for file in files])
    assert contents[0] == contents[1]


def test_a_data_set_needs_only_the_split_that_is_evaluated(model, tmp_path, capsys):
    data = make_test_data(tmp_path / "faces")
    assert cli.main(["evaluate", "--data", str(data.path), str(model.folder)]) == 0
    folder = model.results_folder(data)
    assert str(folder) in capsys.readouterr().out
    assert (folder / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")
    assert len(model.predictions(data, "Test")) == 8
    with pytest.raises(UserError, match="Train/Real"):
        evaluate([model], data, "Train", quiet)


def test_each_split_has_its_own_confusion_matrix(model, easy_data):
    command = ["evaluate", "--data", str(easy_data.path), str(model.folder), "--split"]
    assert cli.main([*command, "Test"]) == 0
    test = (model.folder / "confusion_matrix.png").read_bytes()
    assert cli.main([*command, "Validation"]) == 0
    validation = (model.folder / "confusion_matrix_Validation.png").read_bytes()
    assert validation.startswith(b"\x89PNG")
    assert (model.folder / "confusion_matrix.png").read_bytes() == test != validation


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "model.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "\xff"])
def test_a_damaged_file_is_named_and_kept(table, run, easy_data, tmp_path, name, content):
    folder = shutil.copytree(run / NAME, tmp_path / "model")
    (folder / name).write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=rf"{name}: damaged; \w+"):
        evaluate([TrainedModel(folder)], easy_data, "Test", quiet, resamples=10)
    assert (folder / name).read_text(encoding="latin-1") == content


# Which results are reused


def test_changed_predictions_are_scored_again(table, run, easy_data):
    lines, file = [], run / "resnet50" / "predictions_Test.csv"

    def again():
        evaluate(find_models(run), easy_data, "Test", lines.append, resamples=100)

    again()
    assert lines == []
    content = file.read_text()
    score = content.splitlines()[1].split(",")[2]
    file.write_text(content.replace(score, str(1 - float(score))))
    with pytest.raises(UserError, match=r"predictions_Test\.csv: missing or changed"):
        TrainedModel(run / "resnet50").predictions(easy_data, "Test")
    again()
    assert len(lines) == 1
    assert file.read_text() == content


def test_changed_metrics_are_computed_again(table, run, easy_data):
    lines, file = [], run / "resnet50" / "metrics.json"
    content = json.loads(file.read_text())
    before = json.dumps(content["Test"])
    content["Test"]["auc"] = 0.125
    file.write_text(json.dumps(content))
    model = TrainedModel(run / "resnet50")
    with pytest.raises(UserError, match="not evaluated on Test"):
        model.metrics(easy_data, "Test")
    evaluate([model], easy_data, "Test", lines.append, resamples=100)
    assert len(lines) == 1
    assert json.dumps(model.metrics(easy_data, "Test")) == before


def test_more_resamples_give_new_intervals_without_scoring(model, easy_data, monkeypatch):
    evaluate([model], easy_data, "Test", quiet, resamples=100)
    before = model.metrics(easy_data, "Test")
    monkeypatch.setattr(TrainedModel, "score", None)  # scoring would fail
    evaluate([model], easy_data, "Test", pytest.fail, resamples=3000)
    after = model.metrics(easy_data, "Test")
    assert (before["resamples"], after["resamples"]) == (100, 3000)
    assert before["log_loss"] == after["log_loss"]
    assert before["intervals"]["log_loss"] != after["intervals"]["log_loss"]


def test_data_sets_of_one_name_do_not_overwrite_each_other(model, easy_data, tmp_path):
    evaluate([model], easy_data, "Test", quiet, resamples=50)
    own = (model.folder / "predictions_Test.csv").read_bytes()
    data = [
        make_test_data(tmp_path / parent / "faces", seed) for parent, seed in (("a", 1), ("b", 2))
    ]
    for data_set in data:
        evaluate([model], data_set, "Test", quiet, resamples=50)
    expected = {f"on_faces-{data_set.fingerprint[:8]}" for data_set in data}
    assert {path.name for path in model.folder.glob("on_*")} == expected
    assert len(expected) == 2
    for data_set in data:
        scores = score_split(model, data_set, "Test")["score"]
        assert model.predictions(data_set, "Test")["score"].tolist() == scores.tolist()
    assert (model.folder / "predictions_Test.csv").read_bytes() == own
    assert len(model.predictions(easy_data, "Test")) == 16


def assert_old_results_are_refused(model: TrainedModel, data: DataFolder) -> dict:
    """Check that `data` has no results before it is evaluated; return them then."""
    for results in (model.metrics, model.predictions):
        with pytest.raises(UserError, match="not evaluated on Test"):
            results(data, "Test")
    lines = []
    evaluate([model], data, "Test", lines.append, resamples=50)
    assert len(lines) == 1
    return model.metrics(data, "Test")


def test_changed_images_are_scored_again(model, easy_data, tmp_path):
    # Once for the data set that the model was trained on, once for another one.
    own = DataFolder(shutil.copytree(easy_data.path, tmp_path / "easy"))
    for data in (own, make_test_data(tmp_path / "faces")):
        folder = data.path / "Test"
        before = assert_old_results_are_refused(model, data)
        (folder / "Real").rename(tmp_path / "swap")
        (folder / "Fake").rename(folder / "Real")
        (tmp_path / "swap").rename(folder / "Fake")
        swapped = assert_old_results_are_refused(model, DataFolder(data.path))
        assert swapped["auc"] == pytest.approx(1 - before["auc"])
        next((folder / "Fake").iterdir()).unlink()
        fewer = assert_old_results_are_refused(model, DataFolder(data.path))
        assert fewer["images"] == before["images"] - 1


def test_results_depend_on_the_exclusion_list(model, easy_data):
    evaluate([model], easy_data, "Test", quiet, resamples=50)
    excluded = easy_data.with_exclusions(["Test/Real/000.jpg"])
    assert assert_old_results_are_refused(model, excluded)["images"] == 15


def test_results_depend_on_the_weights(model, easy_data):
    evaluate([model], easy_data, "Test", quiet, resamples=50)
    weights = load_file(model.weights_file)
    weights["backbone.classifier.1.bias"][0] += 0.1
    save_file(weights, model.weights_file)
    assert_old_results_are_refused(TrainedModel(model.folder), easy_data)


# Files


def test_metrics_file_is_strict_json(model):
    entry = {"auc": math.nan, "intervals": {"auc": [-math.inf, 1.0], "f1": (np.float64("nan"), 0)}}
    update_metrics_file(model, model.folder, "Test", entry)
    content = json.loads((model.folder / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert content["Test"].pop("checksum")
    assert content["Test"] == {"auc": None, "intervals": {"auc": [None, 1.0], "f1": [None, 0]}}


def test_simultaneous_updates_keep_every_entry(model, monkeypatch):
    def slow(path, content):
        time.sleep(0.01)
        return write_json(path, content)

    write_json = evaluate_module.write_json
    monkeypatch.setattr(evaluate_module, "write_json", slow)
    with ThreadPoolExecutor(4) as threads:
        names = [f"split {number}" for number in range(12)]
        list(threads.map(lambda n: update_metrics_file(model, model.folder, n, {"name": n}), names))
    content = json.loads((model.folder / "metrics.json").read_text())
    assert [content[name]["name"] for name in names] == names


def test_scores_that_are_not_numbers_end_with_one_line(model, easy_data, capsys):
    weights = load_file(model.weights_file)
    weights["backbone.classifier.1.bias"][0] = math.nan
    save_file(weights, model.weights_file)
    assert cli.main(["evaluate", "--data", str(easy_data.path), str(model.folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the model's output is not a number for 16 of 16 images" in line
    with pytest.raises(UserError, match="not a number"):
        robustness.degraded_predictions([TrainedModel(model.folder)], easy_data, images=4)
    assert not (model.folder / "metrics.json").exists()


# Examples, degraded images


def test_error_examples_are_mistakes_and_uncertain_images():
    table = pd.DataFrame({
        "path": list("abcdef"),
        "label": [0, 0, 1, 1, 1, 0],
        "score": [0.9, 0.51, 0.2, 0.95, 0.48, 0.05],
    })  # fmt: skip
    examples = select_error_examples(table, 2)
    assert examples["path"].tolist() == ["a", "c", "b", "e"]
    assert examples["kind"].tolist() == ["mistake"] * 2 + ["uncertain"] * 2
    correct = select_error_examples(table.iloc[[3, 5]], 2)
    assert correct["kind"].tolist() == ["uncertain"] * 2  # there is no mistake


def test_degraded_images_are_scored_once_for_all_models(run, easy_data, monkeypatch):
    models = find_models(run)
    tables = robustness.degraded_predictions(models, easy_data, severities=(5,), images=8)
    for model, frame in zip(models, tables, strict=True):
        clean = frame[frame["degradation"] == "none"].reset_index()
        scores = score_split(model, easy_data, "Validation").iloc[::2].reset_index()
        assert list(frame) == ["path", "label", "degradation", "severity", "score", "logit"]
        for column in ("score", "logit"):
            assert np.allclose(clean[column], scores[column], rtol=1e-5, atol=1e-6)
        assert (clean["path"] == scores["path"]).all()
        assert frame.groupby(["degradation", "severity"]).size().tolist() == [8] * (
            1 + len(robustness.STUDIED)
        )
        table = robustness.degradation_table(frame).set_index("degradation")
        blurred = frame[frame["degradation"] == "blur"]
        auc = roc_auc_score(blurred["label"], blurred["logit"])
        assert np.isclose(table.loc["blur", "auc"], auc)
        correct = ((blurred["score"] >= 0.5) == blurred["label"]).sum()
        interval = proportion_confint(correct, 8, method="wilson")
        assert np.allclose(table.loc["blur", ["accuracy_low", "accuracy_high"]].tolist(), interval)
        at_half = frame.assign(score=0.49 + 0.01 * frame["label"])
        assert (robustness.degradation_table(at_half)["accuracy"] == 1).all()
    monkeypatch.setattr(TrainedModel, "load", None)  # scoring would fail
    again = robustness.degraded_predictions(models, easy_data, severities=(5,), images=8)
    for one, other in zip(tables, again, strict=True):
        pd.testing.assert_frame_equal(one, other)
    with pytest.raises(TypeError):  # other images
        robustness.degraded_predictions(models, easy_data, severities=(5,), images=4)
