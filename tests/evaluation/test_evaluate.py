import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
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
from torchvision.io import read_image

from dfd_utils.config import UserError
from dfd_utils.data import transforms
from dfd_utils.evaluation import evaluate, robustness
from dfd_utils.models import gradcam
from dfd_utils.models.trained import load_model
from dfd_utils.stats import metrics


@pytest.fixture(scope="module")
def judged(trained_run, easy_data):
    return evaluate.evaluate([trained_run], easy_data, "Test", log=lambda _: None, resamples=100)


def test_every_model_of_the_folder_is_judged(judged, trained_run):
    assert set(judged.index) == {"resnet50", "efficientnet_b0"}
    for name in judged.index:
        picture = (trained_run / name / "confusion_matrix.png").read_bytes()
        assert picture.startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "model.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "\xff"])
def test_a_damaged_file_is_named_and_kept(judged, trained_run, easy_data, tmp_path, name, content):
    large = shutil.ignore_patterns("checkpoint")
    model = shutil.copytree(trained_run / "efficientnet_b0", tmp_path / "model", ignore=large)
    (model / name).write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=rf"{name}: damaged; \w+"):
        evaluate.evaluate([model], easy_data, "Test", log=lambda _: None, resamples=10)
    assert (model / name).read_text(encoding="latin-1") == content


def test_metrics_are_those_of_the_predictions_file(judged, trained_run):
    for name, row in judged.iterrows():
        table = pd.read_csv(trained_run / name / "predictions_Test.csv")
        assert list(table.columns) == ["path", "label", "score"]
        assert all((table["label"] == 1) == table["path"].str.startswith("Test/Fake/"))
        entry = json.loads((trained_run / name / "metrics.json").read_text())
        assert entry["positive_class"] == "Fake"
        called = table["score"] >= 0.5
        assert np.isclose(entry["Test"]["auc"], roc_auc_score(table["label"], table["score"]))
        assert np.isclose(entry["Test"]["accuracy"], accuracy_score(table["label"], called))
        assert np.isclose(entry["Test"]["f1"], f1_score(table["label"], called, zero_division=0))
        low, high = entry["Test"]["intervals"]["auc"]
        assert low <= entry["Test"]["auc"] <= high
        assert row["auc"] == entry["Test"]["auc"]
        expected = confusion_matrix(table["label"], called, labels=[0, 1])
        assert (metrics.confusion(table["label"], table["score"]) == expected).all()


def test_scores_are_calibrated_by_the_models_temperature(judged, trained_run, easy_data):
    folder = trained_run / "resnet50"
    model, description = load_model(folder)
    table = pd.read_csv(folder / "predictions_Test.csv")
    resize = transforms.eval_transform(description["image_size"])
    images = torch.stack([resize(read_image(str(easy_data / path))) for path in table["path"]])
    with torch.inference_mode():
        logits = model(images).numpy().astype("float64")
    assert abs(description["temperature"] - 1) > 0.01
    expected = expit((logits[:, 1] - logits[:, 0]) / description["temperature"])
    assert table["score"].to_numpy() == pytest.approx(expected, abs=1e-4)


def test_kept_predictions_are_not_made_again(judged, trained_run, easy_data):
    lines = []
    evaluate.evaluate([trained_run], easy_data, "Test", log=lines.append, resamples=100)
    assert lines == []
    place = trained_run / "resnet50" / "predictions_Test.csv"
    whole = place.read_text()
    place.write_text(whole[: len(whole) // 2] + "x")
    evaluate.evaluate([trained_run], easy_data, "Test", log=lines.append, resamples=100)
    assert len(lines) == 1
    assert place.read_text() == whole


def test_other_data_do_not_replace_a_models_own_predictions(judged, trained_run, tiny_sample):
    own = (trained_run / "resnet50" / "predictions_Test.csv").read_text()
    folder = trained_run / "resnet50"
    evaluate.evaluate([folder], tiny_sample, "Test", log=lambda _: None, resamples=50)
    assert (folder / "predictions_Test.csv").read_text() == own
    assert len(pd.read_csv(folder / "on_tiny" / "predictions_Test.csv")) == 8


def test_what_is_kept_of_a_model_is_in_its_metrics(judged, trained_run):
    folder = trained_run / "resnet50"
    entry = evaluate.read_metrics(folder, "Test")
    table = pd.read_csv(folder / "predictions_Test.csv")
    told = json.loads((folder / "model.json").read_text())
    raw = metrics.remove_temperature(table["score"], told["temperature"])
    before = entry["before_temperature"]
    assert np.isclose(before["log_loss"], log_loss(table["label"], raw, labels=[0, 1]))
    called = table["score"] >= told["threshold"]
    chosen = entry["at_validation_threshold"]
    assert chosen["threshold"] == told["threshold"]
    assert np.isclose(chosen["accuracy"], accuracy_score(table["label"], called))
    best = [balanced_accuracy_score(table["label"], table["score"] >= cut)
            for cut in np.linspace(0, 1, 201)]  # fmt: skip
    assert entry["oracle"]["balanced_accuracy"] >= max(best) - 1e-12
    assert "intervals" not in entry["oracle"]  # a bound, no result
    for part in (entry, before, chosen):
        for name, (low, high) in part["intervals"].items():
            assert low <= part[name] <= high or name == "expected_calibration_error"


def test_telling_images_are_mistakes_and_doubts():
    table = pd.DataFrame({
        "path": list("abcdef"),
        "label": [0, 0, 1, 1, 1, 0],
        "score": [0.9, 0.51, 0.2, 0.95, 0.48, 0.05],
    })  # fmt: skip
    told = evaluate.select_error_examples(table, 2)
    assert told["path"].tolist() == ["a", "c", "b", "e"]
    assert told["kind"].tolist() == ["mistake"] * 2 + ["doubtful"] * 2
    right = evaluate.select_error_examples(table.iloc[[3, 5]], 2)
    assert right["kind"].tolist() == ["doubtful"] * 2  # no mistakes to show


def test_degraded_images_are_scored_once_for_all_models(trained_run, easy_data, monkeypatch):
    folders = [trained_run / "resnet50", trained_run / "efficientnet_b0"]
    found = robustness.degraded_predictions(folders, easy_data, "Validation", (5,), images=8)
    for folder, frame in found.items():
        clean = frame[frame["degradation"] == "none"].reset_index()
        scores = evaluate.score_split(folder, easy_data, "Validation").iloc[::2].reset_index()
        assert np.allclose(clean["score"], scores["score"], atol=1e-6)
        assert (clean["path"] == scores["path"]).all()
        assert frame.groupby(["degradation", "severity"]).size().tolist() == [8] * 9
        table = robustness.degradation_table(frame).set_index("degradation")
        blurred = frame[frame["degradation"] == "blur"]
        assert np.isclose(
            table.loc["blur", "auc"], roc_auc_score(blurred["label"], blurred["score"])
        )
        right = ((blurred["score"] >= 0.5) == blurred["label"]).sum()
        ends = proportion_confint(right, 8, method="wilson")
        assert np.allclose(table.loc["blur", ["accuracy_low", "accuracy_high"]].tolist(), ends)
        at_half = frame.assign(score=0.49 + 0.01 * frame["label"])
        assert (robustness.degradation_table(at_half)["accuracy"] == 1).all()
    monkeypatch.setattr(robustness, "load_model", None)  # would fail if it were scored again
    again = robustness.degraded_predictions(folders, easy_data, "Validation", (5,), images=8)
    for folder in folders:
        pd.testing.assert_frame_equal(again[folder], found[folder])


def test_two_evaluations_are_the_same_bytes(trained_run, easy_data, tmp_path):
    made = []
    for name in ("one", "two"):
        folder = tmp_path / name / "resnet50"
        folder.mkdir(parents=True)
        for file in ("model.json", "model.safetensors", "config.json"):
            shutil.copy(trained_run / "resnet50" / file, folder)
        evaluate.evaluate([folder], easy_data, "Test", log=lambda _: None, resamples=50)
        robustness.degraded_predictions([folder], easy_data, "Validation", (5,), images=4)
        files = ("predictions_Test.csv", "degraded_Validation.csv", "metrics.json",
                 "confusion_matrix.png")  # fmt: skip
        made.append([(folder / file).read_bytes() for file in files])
    assert made[0] == made[1]


def test_a_split_not_judged_is_named(trained_run):
    with pytest.raises(UserError, match="Train was not judged"):
        evaluate.read_metrics(trained_run / "resnet50", "Train")


def test_grad_cam_is_a_map_of_the_image_size(trained_run, easy_data):
    files = sorted((easy_data / "Test" / "Fake").iterdir())[:3]
    for name in ("resnet50", "efficientnet_b0"):
        maps = gradcam.grad_cam(trained_run / name, files)
        assert maps.shape == (3, 32, 32)
        assert maps.min() >= 0
        assert maps.max() <= 1


def test_pointing_game_counts_peaks_inside_the_mask(tmp_path):
    from PIL import Image

    mask = np.zeros((8, 8), "uint8")
    mask[2:4, 2:6] = 255  # 8 of 64 pixels
    mask[0, 0] = 255  # where the peak of a map without one would be taken to lie
    Image.fromarray(mask).save(tmp_path / "mask.png")
    inside, outside, flat = np.zeros((3, 8, 8))
    inside[3, 5] = outside[6, 1] = 1
    Image.fromarray(mask.T).save(tmp_path / "turned.png")  # holds neither peak
    masks = [tmp_path / f"{name}.png" for name in ("mask", "turned", "mask", "mask")]
    game = gradcam.pointing_game(np.stack([inside, inside, outside, flat]), masks)
    # Of the three other masks the first peak lies in two, the second in all.
    assert game == {"images": 4, "hits": 1, "chance": 5 / 12}
