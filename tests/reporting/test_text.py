import json
from pathlib import Path

import pandas as pd
import pytest

from dfd_utils.config import UserError
from dfd_utils.evaluation.published import published_results
from dfd_utils.models import trained
from dfd_utils.models.trained import best_epoch
from dfd_utils.reporting import comparison_text, data_text, evaluation_text, training_text


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


def test_best_epoch_is_the_later_of_two_equal_ones(history):
    assert best_epoch(history) == 3


def test_degraded_images_have_their_part_in_the_best_epoch(history):
    history["degraded_auc"] = [0.5, 0.6, 0.6, 0.75]
    assert best_epoch(history) == 4
    assert best_epoch(history.drop(columns="degraded_auc")) == 3  # a run of an older version


def test_epoch_table_sets_ours_beside_the_published(history):
    table = training_text.epoch_table(history, "ResNet50")
    assert table.index.tolist() == [1, 3, 4]
    assert table.loc[3, "accuracy"] == "0.700 / 0.922"
    assert table.loc[4, "accuracy"].endswith(" / -")  # they published 1, 3, 5 and 8 epochs


def test_published_results_are_the_eight_of_the_course_project():
    table = published_results().set_index(["model", "epochs"])
    assert len(table) == 8
    # F1 follows from the published precision and recall, up to their rounding
    f1 = 2 * table["precision"] * table["recall"] / (table["precision"] + table["recall"])
    assert (f1 - table["f1score"]).abs().max() < 2e-4


def test_training_words_come_from_the_files(history):
    settings = {"image_size": 64, "seed": 5, "precision": "fp32"}
    told = {"settings": settings, "excluded_images": {"Train": 2, "Test": 1}, "device": "cpu"}
    text = training_text.summarize_training("ResNet50", history, told)
    for part in ("epoch 3 of 4", "AUC 0.800", "2.0 minutes", "25 images/s", "3 images were left"):
        assert part in text


def test_pointing_words_follow_from_the_interval():
    clear = evaluation_text.summarize_pointing_game(
        "M", {"images": 100, "hits": 60, "chance": 0.15}
    )
    unclear = evaluation_text.summarize_pointing_game(
        "M", {"images": 100, "hits": 20, "chance": 0.15}
    )
    assert "more often than chance" in clear
    assert "not clearly more often than chance" in unclear


def test_sample_is_always_named(tiny_sample, easy_data):
    assert "no evidence about real deepfakes" in data_text.data_note(tiny_sample)
    assert "`easy`" in data_text.data_note(easy_data)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match="no trained model"):
        trained.title_of(tmp_path)
    told = trained.describe("efficientnet_b0", 64, "fp32", temperature=1.0, threshold=0.5)
    (tmp_path / "model.json").write_text(json.dumps(told))
    assert trained.title_of(tmp_path) == "EfficientNet-B0"


def test_what_was_not_tested_is_not_called_absent():
    shift = {"split": "Test", "class": "All", "statistic": "noise", "size": "small"}
    found = {
        "images": 20, "unreadable": 0, "unreadable_files": [], "leakage": {}, "excluded": {},
        "duplicates": {"exact": {"pairs": 0}, "near": {"pairs": 0}}, "warnings": [],
        "shift": [shift | {"cliffs_delta": 0.2}],
    }  # fmt: skip
    assert "too few images to tell" in data_text.summarize_audit(
        found | {"shortcuts": [{"auc": None}]}
    )
    tested = data_text.summarize_audit(found | {"shortcuts": [{"auc": 0.5}, {"auc": None}]})
    assert "No file-level trait is shown" in tested
    warned = data_text.summarize_audit(found | {"shortcuts": [{"auc": 0.9}], "warnings": ["leaks"]})
    assert "**Warning:** leaks" in warned and "No file-level" not in warned


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
    table = data_text.shift_table({"shift": rows})
    assert table.loc["noise"].to_dict() == {
        "Test": "+0.60 (large)",
        "Test, Real": "+0.50",
        "Test, Fake": "-1.00",
    }


def seeds(first: list[float], second: list[float]) -> pd.DataFrame:
    rows = [("A", n, x) for n, x in enumerate(first)] + [("B", n, x) for n, x in enumerate(second)]
    table = pd.DataFrame(rows, columns=["model", "seed", "auc"])
    return table.assign(accuracy=table["auc"], f1=table["auc"])


def test_one_seed_says_nothing_of_the_architecture():
    text = comparison_text.summarize_seeds(seeds([0.95], [0.93]))
    assert "ignore the variance of training" in text
    assert "about 36 seeds of each" in text  # 2 * (2.8016 * 0.03 / 0.02)^2 = 35.3
    assert "better" not in text
    assert comparison_text.seed_table(seeds([0.95], [0.93])).loc["A", "AUC"] == "0.950 (one seed)"


def test_several_seeds_are_compared_by_welch():
    clear = comparison_text.summarize_seeds(seeds([0.90, 0.91, 0.92], [0.95, 0.96, 0.97]))
    assert "`B` is the better architecture than `A`" in clear
    assert "-0.0500, 95 % interval -0.0727 to -0.0273" in clear  # t(4) = 2.7764, s = 0.01
    unclear = comparison_text.summarize_seeds(seeds([0.90, 0.92, 0.94], [0.91, 0.93, 0.95]))
    assert "no difference between `A` and `B` is shown" in unclear
    assert "about 63 seeds of each" in unclear  # 2 * (2.8016 * 0.02 / 0.01)^2 = 62.8
    table = comparison_text.seed_table(seeds([0.90, 0.92], [0.91, 0.93]))
    assert table.loc["A", "AUC"] == "0.910 ± 0.014"


def test_weakest_degradation_is_named():
    ends = {"auc_low": 0.1, "auc_high": 0.99, "severity": 5}
    table = pd.DataFrame([
        {"degradation": "none", "auc": 0.95} | ends | {"severity": 0},
        {"degradation": "jpeg", "auc": 0.9} | ends,
        {"degradation": "blur", "auc": 0.6} | ends,
    ])  # fmt: skip
    text = evaluation_text.summarize_degradations({"M": table})
    assert "M is weakest under blur at severity 5: AUC 0.600" in text


def test_data_set_matrix_keeps_sets_apart_and_says_what_there_is():
    row = {"run": "r", "model": "resnet50", "trained_on": "a", "low": 0.5, "high": 0.9}
    one = pd.DataFrame([row | {"tested_on": "a", "auc": 0.8}])
    assert "One data set is looked at, `a`" in evaluation_text.summarize_data_sets(one)
    two = pd.DataFrame([row | {"tested_on": "a", "auc": 0.8}, row | {"tested_on": "b", "auc": 0.6}])
    matrix = evaluation_text.data_set_matrix(two)
    assert matrix.loc["ResNet50"].tolist()[2:] == ["0.800 [0.500, 0.900]", "0.600 [0.500, 0.900]"]
    assert list(matrix.columns) == ["trained on", "run", "on a", "on b"]
    assert "2 data sets to test on" in evaluation_text.summarize_data_sets(two)


def test_every_model_has_its_own_oracle(monkeypatch):
    folders = [Path("resnet50"), Path("efficientnet_b0")]

    def entry(folder, split):  # both best at the same threshold
        value = 0.9 if folder.name == "resnet50" else 0.8
        chosen = {"threshold": 0.4, "f1": 0.7, "intervals": {"f1": [0.6, 0.75]}}
        return {"at_validation_threshold": chosen, "oracle": {"threshold": 0.795, "f1": value}}

    monkeypatch.setattr(evaluation_text, "read_metrics", entry)
    monkeypatch.setattr(evaluation_text, "title_of", lambda folder: folder.name)
    table = evaluation_text.threshold_table(folders, "Test")
    assert table.loc["F1"].tolist() == [
        "0.700 [0.600, 0.750]", "0.900", "0.700 [0.600, 0.750]", "0.800",
    ]  # fmt: skip
