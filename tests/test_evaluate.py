import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, roc_auc_score

from dfd_utils import evaluate, explain, metrics
from dfd_utils.config import UserError


@pytest.fixture(scope="module")
def judged(trained_run, easy_data):
    return evaluate.evaluate([trained_run], easy_data, "Test", log=lambda _: None, resamples=100)


def test_every_model_of_the_folder_is_judged(judged, trained_run):
    assert set(judged.index) == {"resnet50", "efficientnet_b0"}
    for name in judged.index:
        picture = (trained_run / name / "confusion_matrix.png").read_bytes()
        assert picture.startswith(b"\x89PNG")


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


def test_degradation_table(trained_run, easy_data):
    folder = trained_run / "resnet50"
    table = evaluate.degradation_table(folder, easy_data, "Validation", (5,), images=8)
    clean = table[table["degradation"] == "none"]["auc"].item()
    scores = evaluate.score_split(folder, easy_data, "Validation").iloc[::2]
    assert np.isclose(clean, roc_auc_score(scores["label"], scores["score"]))
    assert len(table) == 1 + 8
    assert table["images"].eq(8).all()


def test_a_split_not_judged_is_named(trained_run):
    with pytest.raises(UserError, match="Train was not judged"):
        evaluate.read_metrics(trained_run / "resnet50", "Train")


def test_grad_cam_is_a_map_of_the_image_size(trained_run, easy_data):
    files = sorted((easy_data / "Test" / "Fake").iterdir())[:3]
    for name in ("resnet50", "efficientnet_b0"):
        maps = explain.grad_cam(trained_run / name, files)
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
    game = explain.pointing_game(
        np.stack([inside, inside, outside, flat]), [tmp_path / "mask.png"] * 4
    )
    assert game == {"images": 4, "hits": 2, "chance": 9 / 64}
