from types import SimpleNamespace

import pandas as pd
import pytest

from dfd_utils.evaluation.published import published_results
from dfd_utils.reporting import training_text


@pytest.fixture
def history():
    return pd.DataFrame({
        "epoch": [1, 2, 3, 4],
        "accuracy": [0.5, 0.6, 0.7, 0.65],
        "precision": [0.5, 0.6, 0.7, 0.6],
        "recall": [0.5, 0.6, 0.7, 0.6],
        "f1score": [0.5, 0.6, 0.7, 0.6],
        "auc": [0.5, 0.8, 0.8, 0.7],
        "degraded_auc": [0.5, 0.7, 0.7, 0.7],
        "seconds": [30, 30, 30, 30],
        "images_per_second": [10, 20, 30, 40],
    })  # fmt: skip


def test_epoch_table_sets_ours_beside_the_published(history):
    table = training_text.epoch_table(history, "ResNet50")
    assert table.index.tolist() == [1, 3, 4]
    assert table.columns.tolist() == ["accuracy", "precision", "recall", "F1"]
    assert table.loc[3, "accuracy"] == "0.700 / 0.922"
    assert table.loc[4, "accuracy"].endswith(" / -")  # they published 1, 3, 5 and 8 epochs


def test_published_results_are_the_eight_of_the_course_project():
    table = published_results().set_index(["model", "epochs"])
    assert len(table) == 8
    # F1 follows from the published precision and recall, up to their rounding
    f1 = 2 * table["precision"] * table["recall"] / (table["precision"] + table["recall"])
    assert (f1 - table["f1score"]).abs().max() < 2e-4


def test_training_is_summarized_from_its_files(history):
    config = {
        "settings": {"image_size": 64, "seed": 5, "precision": "fp32"},
        "excluded_images": {"Train": 2, "Validation": 1, "Test": 9},
        "device": "cpu",
    }
    model = SimpleNamespace(title="ResNet50", history=history, config=config)
    text = training_text.summarize_training(model)
    for part in ("epoch 3 of 4", "AUC of 0.800", "0.700 on degraded", "2.0 minutes on cpu in fp32",
                 "25 images/s", "excluded 3 images"):  # fmt: skip
        assert part in text


def test_provenance_names_weights_that_could_not_be_downloaded():
    config = {
        "data": "faces", "data_fingerprint": "0123", "device": "cpu", "versions": {"torch": "2.10"},
        "git_commit": "abc", "requested_weights": "imagenet",
        "settings": {"name": "sample", "seed": 5, "weights": "none"},
    }  # fmt: skip
    table = training_text.provenance_table({"M": SimpleNamespace(config=config)})
    assert table["M"].to_dict() == {
        "data set": "faces", "data fingerprint": "0123", "profile": "sample", "seed": "5",
        "weights": "none (imagenet could not be downloaded)", "device": "cpu",
        "version of torch": "2.10", "git commit": "abc",
    }  # fmt: skip
