"""What history.csv tells of a training, a row an epoch."""

from pathlib import Path

import pandas as pd


def best_epoch(history: pd.DataFrame) -> int:
    """Return the epoch that did best on Validation, the later of two equal ones.

    That is the highest mean of two AUCs: of the images as they are, and degraded.
    """
    judged = history["auc"] + history.get("degraded_auc", history["auc"])
    return int(history["epoch"][judged[::-1].idxmax()])


def validation_auc(folder: Path) -> float:
    """Return the AUC on Validation of the model in `folder`; -1 where its history is missing."""
    path = folder / "history.csv"
    if not path.is_file():
        return -1.0
    history = pd.read_csv(path)
    return float(history.set_index("epoch")["auc"][best_epoch(history)])
