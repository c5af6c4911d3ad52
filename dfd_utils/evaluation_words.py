"""The evaluation in tables and sentences, from the metrics.json of each model."""

import math
from pathlib import Path

import pandas as pd
from scipy.stats import binomtest

from dfd_utils.config import SPLITS
from dfd_utils.evaluate import read_metrics
from dfd_utils.models import MODELS, read_description
from dfd_utils.words import interval, title_of

NAMES = {
    "auc": "AUC",
    "f1": "F1",
    "eer": "equal error rate (EER)",
    "aurc": "area under risk-coverage",
    "real_called_fake": "Real called Fake (share)",
    "fake_called_real": "Fake called Real (share)",
    "recall_at_1_percent_fpr": "recall at 1 % false alarms",
    "recall_at_5_percent_fpr": "recall at 5 % false alarms",
    "expected_calibration_error": "calibration error (ECE)",
    "brier": "Brier score",
}


def printed(name: str) -> str:
    """Return a metric's name as it is printed."""
    return NAMES.get(name, name.replace("_", " "))


def _shown(entry: dict, name: str) -> str:
    return interval(entry[name], *entry["intervals"][name])


def metrics_table(folders: list[Path], split: str, names: list[str]) -> pd.DataFrame:
    """Return metrics (rows) of models (columns) on a split, each with its 95 % interval."""
    entries = {title_of(folder): read_metrics(folder, split) for folder in folders}
    return pd.DataFrame(
        {t: {printed(n): _shown(entry, n) for n in names} for t, entry in entries.items()}
    )


def threshold_table(folders: list[Path], split: str) -> pd.DataFrame:
    """Return metrics (rows) at the threshold chosen on Validation, and at the split's own best.

    Two columns a model: the first with 95 % intervals; the second is an oracle, without.
    """
    columns = {}
    for folder in folders:
        entry, title = read_metrics(folder, split), title_of(folder)
        chosen, oracle = entry["at_validation_threshold"], entry["oracle"]
        names = chosen["intervals"]
        columns[f"{title} at {chosen['threshold']:.3f}"] = {
            printed(name): _shown(chosen, name) for name in names
        }
        columns[f"{title}, oracle {oracle['threshold']:.3f}"] = {
            printed(name): f"{oracle[name]:.3f}" for name in names
        }
    return pd.DataFrame(columns)


def calibration_table(folders: list[Path], split: str) -> pd.DataFrame:
    """Return calibration error, Brier score and log loss before and after temperature scaling."""
    rows = []
    for folder in folders:
        after = read_metrics(folder, split)
        before = after["before_temperature"]
        temperature = read_description(folder)["temperature"]
        for when, entry in (("before", before), (f"after, T = {temperature:.2f}", after)):
            shown = {printed(name): _shown(entry, name) for name in before["intervals"]}
            rows.append({"model": title_of(folder), "temperature": when} | shown)
    return pd.DataFrame(rows).set_index("model").rename_axis(None)


def data_set_matrix(table: pd.DataFrame) -> pd.DataFrame:
    """Return `runs.across_data_sets` as AUC [95 % interval]: a row a model, a column a set."""
    shown = table.assign(
        auc=[interval(row.auc, row.low, row.high) for row in table.itertuples()],
        model=[MODELS[name].title for name in table["model"]],
        tested_on="on " + table["tested_on"],
    ).rename(columns={"trained_on": "trained on"})
    wide = shown.pivot(index=["trained on", "run", "model"], columns="tested_on", values="auc")
    wide = wide[shown["tested_on"].unique()].rename_axis(None, axis=1)
    return wide.reset_index().set_index("model").rename_axis(None)


def data_set_words(table: pd.DataFrame) -> str:
    """Say how much of a matrix trained-on x tested-on there is."""
    sets, trained = table["tested_on"].nunique(), table["trained_on"].nunique()
    if sets == 1 and trained == 1:
        return (
            f"One data set is looked at, `{table['tested_on'].iloc[0]}`, and models trained on it: "
            "nothing is known here about other data. Put further sets under `data/` and runs "
            "beside this one, and the table grows by itself."
        )
    return f"{sets} data sets to test on and models of {trained} to train on are at hand."


def degradation_words(tables: dict[str, pd.DataFrame]) -> str:
    """Say which degradation costs each model most AUC, as a Markdown list."""
    lines = []
    for title, table in tables.items():
        clean, worst = table.iloc[0], table.loc[table["auc"].iloc[1:].idxmin()]
        lines.append(
            f"- {title} is weakest under {worst['degradation']} at severity {worst['severity']}: "
            f"AUC {interval(worst['auc'], worst['auc_low'], worst['auc_high'])}, as against "
            f"{interval(clean['auc'], clean['auc_low'], clean['auc_high'])} on the same images as "
            "they are."
        )
    return "\n".join(lines)


def evaluation_words(folders: list[Path]) -> str:
    """Say how each model did on Validation and on Test, as a Markdown list.

    The interval of the difference is put together from those of both (Zou & Donner 2008).
    """
    lines = []
    for folder in folders:
        validation, test = (read_metrics(folder, split) for split in SPLITS[1:])
        drop = validation["auc"] - test["auc"]
        (low, high), (test_low, test_high) = (e["intervals"]["auc"] for e in (validation, test))
        least = drop - math.hypot(validation["auc"] - low, test_high - test["auc"])
        most = drop + math.hypot(high - validation["auc"], test["auc"] - test_low)
        lines.append(
            f"- {title_of(folder)}: AUC {_shown(test, 'auc')} on Test against "
            f"{_shown(validation, 'auc')} on Validation, a difference of "
            f"{interval(drop, least, most)}."
        )
    return "\n".join(lines)


def pointing_words(title: str, game: dict) -> str:
    """Say how often Grad-CAM's peak fell on the swapped region, against chance.

    With the exact 95 % interval of Clopper & Pearson 1934.
    """
    ends = binomtest(game["hits"], game["images"]).proportion_ci(0.95, "exact")
    beats = "more often than" if ends.low > game["chance"] else "not clearly more often than"
    share = interval(game["hits"] / game["images"], ends.low, ends.high)
    return (
        f"- {title}: the peak lies on the swapped region in {game['hits']} of {game['images']} "
        f"fakes, {share}, {beats} chance ({game['chance']:.2f}, the same peaks on the other "
        "fakes' regions)."
    )
