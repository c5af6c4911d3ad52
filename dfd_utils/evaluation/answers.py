"""What a model's answers are worth where it may also say that it is unsure."""

import numpy as np
import pandas as pd

from dfd_utils.data.folder import DataFolder
from dfd_utils.models.trained import TrainedModel, read_metrics_file
from dfd_utils.stats.abstention import answer_rates


def judge(model: TrainedModel, scores: np.ndarray) -> np.ndarray:
    """Return 0 (Real), 1 (Fake) or -1 (a close call, no answer) for each score."""
    answers = (np.asarray(scores) >= model.description.threshold).astype(int)
    return np.where(model.description.is_close_call(scores), -1, answers)


def answers_on_test(models: dict[str, TrainedModel], data_sets: list[DataFolder]) -> pd.DataFrame:
    """Return the rates of the answers on the Test of each data set that a model has results on.

    Columns: model (its title), images (the data set's name), and those of `answer_rates`, each a
    value and the ends of its exact 95 % interval. Data sets are never pooled.
    """
    rows = []
    for title, model in models.items():
        for data in data_sets:
            if data.is_audited and (table := model.find_table(data, "Test")) is not None:
                rates = answer_rates(table["label"], judge(model, table["score"]))
                rows.append({"model": title, "images": f"{data.name}, Test"} | rates)
    return pd.DataFrame(rows)


def answers_by_degradation(
    models: dict[str, TrainedModel], tables: list[pd.DataFrame]
) -> pd.DataFrame:
    """Return the same by degradation, over all severities.

    The tables are those of `robustness.degraded_predictions`, one per model.
    """
    rows = []
    for (title, model), table in zip(models.items(), tables, strict=True):
        for name, part in table.groupby("degradation", sort=False):
            rates = answer_rates(part["label"], judge(model, part["score"]))
            rows.append({"model": title, "images": name} | rates)
    return pd.DataFrame(rows)


def measured_on(model: TrainedModel) -> dict[str, dict]:
    """Return the entry in metrics.json of each Test that the model was evaluated on, by name.

    Those of the data set that it was trained on are first. `chosen` in an entry has the metrics at
    the model's own threshold.
    """
    if not model.is_calibrated:
        return {}
    own = model.config["data"] if (model.folder / "config.json").is_file() else "its own data set"
    folders = {own: model.folder}
    for path in sorted(model.folder.glob("on_*/metrics.json")):
        name, _, fingerprint = path.parent.name.removeprefix("on_").rpartition("-")
        folders[f"{name} ({fingerprint})" if name in folders else name] = path.parent
    found = {}
    for name, folder in folders.items():
        entry = read_metrics_file(folder).get("Test", {})
        # Not those of an earlier model in this folder.
        if model.fingerprint in entry.get("scored", ""):
            found[name] = entry | {"chosen": entry["at_validation_threshold"]}
    return found
