"""How metrics, their intervals and their names are printed."""

import pandas as pd

METRIC_LABELS = {
    "auc": "AUC",
    "f1": "F1",
    "eer": "equal error rate (EER)",
    "aurc": "area under risk-coverage",
    "real_called_fake": "false-positive rate",
    "fake_called_real": "false-negative rate",
    "recall_at_1_percent_fpr": "recall at 1 % false positives",
    "recall_at_5_percent_fpr": "recall at 5 % false positives",
    "expected_calibration_error": "calibration error (ECE)",
    "brier": "Brier score",
}


def format_interval(value: float | None, low: float | None, high: float | None) -> str:
    """Return "value [low, high]" as printed in tables and sentences."""
    if value is None or pd.isna(value):
        return "too few images"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def metric_label(name: str) -> str:
    """Return a metric's name as it is printed."""
    return METRIC_LABELS.get(name, name.replace("_", " "))


def format_entry(entry: dict, name: str) -> str:
    """Return a metric of an entry of metrics.json with its interval."""
    return format_interval(entry[name], *entry["intervals"][name])
