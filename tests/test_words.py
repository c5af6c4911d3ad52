import json

import pandas as pd
import pytest

from dfd_utils import words
from dfd_utils.config import UserError
from dfd_utils.published import published_results


@pytest.fixture
def history():
    return pd.DataFrame({
        "epoch": [1, 2, 3, 4],
        "accuracy": [0.5, 0.6, 0.7, 0.65],
        "precision": [0.5, 0.6, 0.7, 0.6],
        "recall": [0.5, 0.6, 0.7, 0.6],
        "f1score": [0.5, 0.6, 0.7, 0.6],
        "auc": [0.5, 0.8, 0.8, 0.7],
        "seconds": [30, 30, 30, 30],
        "images_per_second": [10, 20, 30, 40],
    })  # fmt: skip


def test_best_epoch_is_the_later_of_two_equal_ones(history):
    assert words.best_epoch(history) == 3


def test_epoch_table_sets_ours_beside_the_published(history):
    table = words.epoch_table(history, "ResNet50")
    assert table.index.tolist() == [1, 3, 4]
    assert table.loc[3, "accuracy (here)"] == "0.700"
    assert table.loc[3, "accuracy (published)"] == "0.922"
    assert table.loc[4, "accuracy (published)"] == ""  # they published 1, 3, 5 and 8 epochs


def test_published_results_are_the_eight_of_the_course_project():
    table = published_results().set_index(["model", "epochs"])
    assert len(table) == 8
    # F1 follows from the published precision and recall, up to their rounding
    f1 = 2 * table["precision"] * table["recall"] / (table["precision"] + table["recall"])
    assert (f1 - table["f1score"]).abs().max() < 2e-4


def test_training_words_come_from_the_files(history):
    settings = {"image_size": 64, "seed": 5, "precision": "fp32"}
    told = {"settings": settings, "excluded_images": {"Train": 2, "Test": 1}, "device": "cpu"}
    text = words.training_words("ResNet50", history, told)
    for part in ("epoch 3 of 4", "AUC 0.800", "2.0 minutes", "25 images/s", "3 images were left"):
        assert part in text


def test_pointing_words_follow_from_the_interval():
    clear = words.pointing_words("M", {"images": 100, "hits": 60, "chance": 0.15})
    unclear = words.pointing_words("M", {"images": 100, "hits": 20, "chance": 0.15})
    assert "more often than chance" in clear
    assert "not clearly more often than chance" in unclear


def test_sample_is_always_named(tiny_sample, easy_data):
    assert "no evidence about real deepfakes" in words.data_note(tiny_sample)
    assert "`easy`" in words.data_note(easy_data)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match="no trained model"):
        words.title_of(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps({"architecture": "efficientnet_b0"}))
    assert words.title_of(tmp_path) == "EfficientNet-B0"


def test_shift_is_told_for_all_images_and_by_class():
    rows = [
        {
            "split": split,
            "class": name,
            "statistic": "noise",
            "cliffs_delta": delta,
            "size": "large",
        }
        for split, name, delta in [
            ("Test", "All", 0.6),
            ("Test", "Real", 0.5),
            ("Test", "Fake", -1),
        ]
    ]
    table = words.shift_table({"shift": rows})
    assert table.loc["noise"].to_dict() == {
        "Test": "+0.60 (large)",
        "Test, Real": "+0.50",
        "Test, Fake": "-1.00",
    }
