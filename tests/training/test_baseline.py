"""The baseline and its fusion with a network, from fitting to answers."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dfd_utils.config import UserError
from dfd_utils.data.folder import DataFolder
from dfd_utils.data.image_io import read_pixels
from dfd_utils.evaluation.cost import model_cost, scoring_cost, training_cost
from dfd_utils.evaluation.evaluate import evaluate
from dfd_utils.evaluation.robustness import STUDIED, degraded_predictions
from dfd_utils.evaluation.spectrum import spectrum_difference
from dfd_utils.inference.predict import iter_predictions, predict
from dfd_utils.models.linear_dct import block_dct_statistics
from dfd_utils.models.onnx_export import export_onnx
from dfd_utils.models.trained import TrainedModel, best_network, choose_model, find_models
from dfd_utils.training import baseline, train
from tests.conftest import quiet


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataFolder:
    """Real: noise; Fake: the same kind of noise, slightly smoother. Not separable at once."""
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("data") / "noisy", np.random.default_rng(0)
    for split, images in (("Train", 40), ("Validation", 20), ("Test", 20)):
        for name, share in (("Real", 0.0), ("Fake", 0.05)):
            (folder / split / name).mkdir(parents=True)
            for number in range(images):
                pixels = rng.normal(128, 30 + 8 * rng.random(), (48, 48, 3))
                pixels = (1 - share) * pixels + share * np.roll(pixels, 1, axis=1)
                image = Image.fromarray(pixels.clip(0, 255).astype("uint8"))
                image.save(folder / split / name / f"{number:03}.png")
    return DataFolder(folder)


@pytest.fixture(scope="module")
def run(data, quick, tmp_path_factory):
    """A run with an EfficientNet-B0, the baseline and their fusion."""
    run = tmp_path_factory.mktemp("runs") / "noisy"
    name = "efficientnet_b0+linear_dct"
    train.fit(name, data, run / name, quick, quiet)
    return run


def statistics(data: DataFolder, split: str) -> tuple[np.ndarray, np.ndarray]:
    dataset = data.split(split)
    paths = [dataset.path(index) for index in range(len(dataset))]
    return np.stack([block_dct_statistics(read_pixels(p)) for p in paths]), dataset.labels


def test_the_baseline_is_scikit_learns_logistic_regression(run, data):
    model = TrainedModel(run / "linear_dct")
    values, labels = statistics(data, "Train")
    candidates = []
    for strength in baseline.STRENGTHS:
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
        pipeline.fit(values, labels)
        validation, targets = statistics(data, "Validation")
        auc = roc_auc_score(targets, pipeline.decision_function(validation))
        candidates.append((auc, strength, pipeline))
    auc, _, pipeline = max(candidates, key=lambda entry: entry[0])
    evaluate([model], data, "Test", quiet, resamples=20)
    table = model.predictions(data, "Test")
    expected = pipeline.decision_function(statistics(data, "Test")[0])
    np.testing.assert_allclose(table["logit"], expected, atol=2e-3)
    assert model.history["auc"].item() == pytest.approx(auc)
    assert model.title == "DCT baseline"


def test_a_finished_baseline_is_read_and_never_mixed_with_other_data(run, easy_data, data, quick):
    lines = []
    before = (run / "linear_dct" / "model.safetensors").read_bytes()
    train.fit("linear_dct", data, run / "linear_dct", quick, lines.append)
    assert lines == ["linear_dct: already trained, nothing to do"]
    assert (run / "linear_dct" / "model.safetensors").read_bytes() == before
    with pytest.raises(UserError, match="other images"):
        train.fit("linear_dct", easy_data, run / "linear_dct", quick, quiet)


def test_the_fusion_ranks_validation_by_a_sum_of_both_logits(run, data):
    fused, network, linear = (
        TrainedModel(run / name)
        for name in ("efficientnet_b0+linear_dct", "efficientnet_b0", "linear_dct")
    )
    tables = [m.score(data.split("Validation", m.transform)) for m in (fused, network, linear)]
    values = torch.from_numpy(statistics(data, "Validation")[0])
    distance = linear.load().distance(values).numpy()
    has_say = distance <= np.quantile(distance, 0.95)
    assert has_say.sum() == 38  # of 40
    parts = [tables[1]["logit"], tables[2]["logit"] * has_say, np.ones(40)]
    solution, *_ = np.linalg.lstsq(np.column_stack(parts), tables[0]["logit"], rcond=None)
    np.testing.assert_allclose(np.column_stack(parts) @ solution, tables[0]["logit"], atol=1e-3)
    assert solution[1] > 0  # the baseline knows more than nothing, and is used
    assert fused.title == "EfficientNet-B0 + DCT"
    auc = roc_auc_score(tables[0]["label"], tables[0]["logit"])
    assert fused.history["auc"].item() == pytest.approx(auc)


def test_a_fusion_is_fitted_again_when_a_member_has_changed(run, data, quick, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    fused = copy / "efficientnet_b0+linear_dct"
    members = [TrainedModel(copy / name) for name in ("efficientnet_b0", "linear_dct")]
    lines = []
    baseline.fit_fusion(*members, data, fused, lines.append)
    assert lines == ["efficientnet_b0+linear_dct: already fitted, nothing to do"]
    before = TrainedModel(fused).fingerprint
    description = json.loads((copy / "efficientnet_b0" / "model.json").read_text())
    description["temperature"] *= 2
    (copy / "efficientnet_b0" / "model.json").write_text(json.dumps(description))
    members[0] = TrainedModel(copy / "efficientnet_b0")
    baseline.fit_fusion(*members, data, fused, lines.append)
    assert "Validation AUC" in lines[-1]
    assert TrainedModel(fused).config["members"] == [m.fingerprint for m in members]
    assert before != members[0].fingerprint


def test_only_a_network_is_fused_with_the_baseline(data, quick, tmp_path):
    for name, words in (("linear_dct+linear_dct", "name a network"), ("vgg+linear_dct", "'vgg'")):
        with pytest.raises(UserError, match=words):
            train.fit(name, data, tmp_path / name, quick, quiet)
    assert not any(tmp_path.iterdir())


def test_networks_of_other_images_are_not_fused(run, trained_run, data, tmp_path):
    with pytest.raises(UserError, match="trained on other images"):
        baseline.fit_fusion(
            TrainedModel(trained_run / "resnet50"), TrainedModel(run / "linear_dct"), data,
            tmp_path / "fused", quiet,
        )  # fmt: skip
    assert not (tmp_path / "fused").exists()


def test_a_run_gets_its_baseline_and_the_best_network_is_no_baseline(
    trained_run, easy_data, tmp_path
):
    run = shutil.copytree(trained_run, tmp_path / "run")
    models = baseline.add_baseline(run, easy_data, quiet)
    best = best_network(find_models(run))
    assert best.name in ("resnet50", "efficientnet_b0")
    names = [model.name for model in models]
    assert names == ["efficientnet_b0", "resnet50", "linear_dct", f"{best.name}+linear_dct"]
    lines = []
    baseline.add_baseline(run, easy_data, lines.append)
    assert all("already" in line for line in lines) and len(lines) == 2
    with pytest.raises(UserError, match="no trained network"):
        best_network([TrainedModel(run / "linear_dct")])


@pytest.mark.parametrize("name", ["linear_dct", "efficientnet_b0+linear_dct"])
def test_predict_answers_as_evaluate(run, data, name, tmp_path):
    model = TrainedModel(run / name)
    evaluate([model], data, "Test", quiet, resamples=20)
    table = model.predictions(data, "Test")
    files = [str(data.path / path) for path in table["path"][:6]]
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    rows = predict([*files, str(tmp_path / "broken.jpg")], model)
    np.testing.assert_allclose(rows["score"][:6].astype(float), table["score"][:6], atol=1e-4)
    assert rows["error"][6] and rows["label"][6] is None
    assert choose_model(run / name).name == name


def test_only_networks_have_heat_maps_and_onnx(run, data, tmp_path):
    file = str(next((data.path / "Test" / "Real").iterdir()))
    fused, linear = (
        TrainedModel(run / name) for name in ("efficientnet_b0+linear_dct", "linear_dct")
    )
    list(iter_predictions([file], fused, explanations=tmp_path))
    assert len(list(tmp_path.glob("*.png"))) == 1
    with pytest.raises(UserError, match="no heat maps"):
        list(iter_predictions([file], linear, explanations=tmp_path))
    pytest.importorskip("onnx")
    for model in (fused, linear):
        with pytest.raises(UserError, match="ONNX cannot compute"):
            export_onnx(model)


def test_costs_and_degradations_know_every_kind_of_model(run, data):
    models = find_models(run)
    assert [model.name for model in models] == [
        "efficientnet_b0", "efficientnet_b0+linear_dct", "linear_dct",
    ]  # fmt: skip
    network, fused, linear = ({**model_cost(m), **training_cost(m)} for m in models)
    assert linear["parameters (million)"] == pytest.approx(577e-6)
    parameters = network["parameters (million)"] + 580e-6
    assert fused["parameters (million)"] == pytest.approx(parameters)
    assert fused["training (min)"] > network["training (min)"] + linear["training (min)"]
    assert scoring_cost(models[2])["one image (ms)"] > 0.1  # the statistics count
    tables = degraded_predictions(models, data, severities=(5,), images=4)
    for table in tables:
        assert len(table) == 4 * (len(STUDIED) + 1)
        assert np.isfinite(table["logit"]).all()
    pd.testing.assert_series_equal(tables[0]["path"], tables[2]["path"])


def test_the_spectrum_shows_what_was_smoothed(data):
    difference = spectrum_difference(data)
    assert difference.shape == (3, 8, 8)
    # Mixed with itself, shifted by a column: the finest horizontal detail is weaker.
    assert difference[0, :, 7].mean() < difference[0, :, 1].mean() - 0.1
