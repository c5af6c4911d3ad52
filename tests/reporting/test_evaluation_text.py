from types import SimpleNamespace

import pandas as pd
import pytest

from dfd_utils.evaluation.degradation_study import DIFFERENCE, WITH, WITHOUT
from dfd_utils.reporting import evaluation_text


def model(**entries: dict):
    """A stand-in for a TrainedModel with the metrics of some splits."""
    return SimpleNamespace(
        metrics=lambda data, split: entries[split], description=SimpleNamespace(temperature=1.5)
    )


def test_metrics_have_labels_and_intervals():
    entry = {"auc": 0.9, "real_called_fake": 0.1}
    entry["intervals"] = {"auc": [0.8, 0.95], "real_called_fake": [0.05, 0.2]}
    table = evaluation_text.metrics_table({"M": model(Test=entry)}, None, "Test", list(entry)[:2])
    assert table["M"].to_dict() == {
        "AUC": "0.900 [0.800, 0.950]",
        "false-positive rate": "0.100 [0.050, 0.200]",
    }


def test_every_model_has_its_own_oracle():
    def entry(best: float) -> dict:  # both best at the same threshold
        chosen = {"threshold": 0.4, "f1": 0.7, "intervals": {"f1": [0.6, 0.75]}}
        return {"at_validation_threshold": chosen, "oracle": {"threshold": 0.795, "f1": best}}

    models = {"A": model(Test=entry(0.9)), "B": model(Test=entry(0.8))}
    table = evaluation_text.threshold_table(models, None, "Test")
    assert table["F1"].tolist() == [
        "0.700 [0.600, 0.750]", "0.900", "0.700 [0.600, 0.750]", "0.800",
    ]  # fmt: skip
    assert table.index[:2].tolist() == ["A at 0.400", "A, oracle 0.795"]


def test_calibration_is_given_before_and_after():
    before = {"brier": 0.2, "intervals": {"brier": [0.1, 0.3]}}
    entry = {"brier": 0.1, "intervals": {"brier": [0.05, 0.2]}, "before_temperature": before}
    table = evaluation_text.calibration_table({"M": model(Test=entry)}, None, "Test")
    assert table.index.tolist() == ["M", "M"]
    assert table["temperature scaling"].tolist() == ["before", "after, T = 1.50"]
    assert table["Brier score"].tolist() == ["0.200 [0.100, 0.300]", "0.100 [0.050, 0.200]"]


def test_the_drop_from_validation_to_test_has_an_interval():
    entries = {
        "Validation": {"auc": 0.9, "intervals": {"auc": [0.87, 0.93]}},
        "Test": {"auc": 0.8, "intervals": {"auc": [0.76, 0.84]}},
    }
    text = evaluation_text.summarize_evaluation({"M": model(**entries)}, None)
    assert "a drop of 0.100 [0.050, 0.150]" in text  # 0.03, 0.04, 0.05: a right triangle


@pytest.mark.parametrize(("hits", "words"), [(60, "is more"), (20, "is not clearly more")])
def test_the_pointing_game_is_compared_with_chance_by_its_interval(hits, words):
    game = {"images": 100, "hits": hits, "chance": 0.15}
    assert f"{words} often than chance" in evaluation_text.summarize_pointing_game("M", game)


def test_weakest_degradation_is_named():
    ends = {"auc_low": 0.1, "auc_high": 0.99, "severity": 5}
    table = pd.DataFrame([
        {"degradation": "none", "auc": 0.95} | ends | {"severity": 0},
        {"degradation": "jpeg", "auc": 0.9} | ends,
        {"degradation": "blur", "auc": 0.6} | ends,
    ])  # fmt: skip
    text = evaluation_text.summarize_degradations({"M": table})
    assert "M is weakest under blur at severity 5: AUC 0.600" in text
    assert text.endswith("0.950 [0.100, 0.990] on the original images.")


def test_degradation_study_compares_with_the_choice_of_images():
    rows = [
        (training, severity, 0.9, 0.8, 1.0, 0.1, low, 0.2)
        for training, low in ((WITHOUT, 0.05), (WITH, 0.05), (DIFFERENCE, 0.01))
        for severity in (0, 1, 3, 5)
    ]
    columns = ["training", "severity", "auc", "low", "high", "drop", "drop_low", "drop_high"]
    severities = pd.DataFrame(rows, columns=columns)
    test = pd.DataFrame(
        {WITHOUT: [0.8, 0.7, 0.9], WITH: [0.81, 0.7, 0.9], DIFFERENCE: [0.01, -0.02, 0.04]},
        index=["auc", "low", "high"],
    ).T
    table = evaluation_text.degradation_study_table(severities, test)
    assert list(table.index) == [WITHOUT, WITH, DIFFERENCE]
    assert list(table) == ["original", "severity 1", "severity 3", "severity 5", "Test"]
    drop, on_test = evaluation_text.summarize_degradation_study("M", severities, test).split("\n")
    assert "severity 3" in drop and drop.endswith("larger than what the choice of images explains.")
    assert "within what the choice of images explains" in on_test


def test_data_set_matrix_keeps_sets_apart_and_says_what_there_is():
    row = {"run": "r", "model": "resnet50", "trained_on": "a", "low": 0.5, "high": 0.9}
    one = pd.DataFrame([row | {"tested_on": "a", "auc": 0.8}])
    text = evaluation_text.summarize_data_sets(one, ["missing: r/resnet50"])
    assert "trained and tested on one data set, `a`" in text
    assert text.endswith("\n\n- missing&#58; r&#47;resnet50")
    two = pd.DataFrame([row | {"tested_on": "a", "auc": 0.8}, row | {"tested_on": "b", "auc": 0.6}])
    matrix = evaluation_text.data_set_matrix(two)
    assert matrix.loc["resnet50"].tolist()[2:] == ["0.800 [0.500, 0.900]", "0.600 [0.500, 0.900]"]
    assert list(matrix.columns) == ["trained on", "run", "on a", "on b"]
    assert "training: 1; for testing: 2" in evaluation_text.summarize_data_sets(two, [])
