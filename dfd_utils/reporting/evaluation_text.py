"""Tables and sentences about the evaluation, from the metrics of each model."""

import math

import pandas as pd
from scipy.stats import binomtest

from dfd_utils.config import SPLITS
from dfd_utils.data.folder import DataFolder
from dfd_utils.evaluation.degradation_study import DIFFERENCE, WITH, WITHOUT
from dfd_utils.models.trained import TrainedModel
from dfd_utils.reporting.formatting import format_entry, format_interval, metric_label


def degradation_study_table(severities: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """Return the AUC of both trainings and their difference (rows), by severity and on Test."""
    formatted = severities.assign(
        auc=[format_interval(row.auc, row.low, row.high) for row in severities.itertuples()],
        column=[f"severity {s}" if s else "original" for s in severities["severity"]],
    )
    wide = formatted.pivot(index="training", columns="column", values="auc")
    wide = wide[formatted["column"].unique()].loc[list(test.index)]
    wide["Test"] = [format_interval(row.auc, row.low, row.high) for row in test.itertuples()]
    return wide.rename_axis(None).rename_axis(None, axis=1)


def summarize_degradation_study(title: str, severities: pd.DataFrame, test: pd.DataFrame) -> str:
    """Return what training on degraded images has changed, as a Markdown list."""
    known = sorted(severities["severity"].unique())
    severity = known[len(known) // 2]
    rows = severities[severities["severity"] == severity].set_index("training")
    drops = {
        t: format_interval(*rows.loc[t, ["drop", "drop_low", "drop_high"]]) for t in rows.index
    }
    auc = {t: format_interval(*test.loc[t]) for t in test.index}
    return (
        f"- Degradation at severity {severity} costs {title} {drops[WITHOUT]} of its AUC when it "
        f"was trained without degraded images, and {drops[WITH]} when it was trained with them; "
        f"the difference, {drops[DIFFERENCE]}, is "
        f"{_clear(*rows.loc[DIFFERENCE, ['drop_low', 'drop_high']])}.\n"
        f"- On Test its AUC is {auc[WITHOUT]} without and {auc[WITH]} with them; the difference, "
        f"{auc[DIFFERENCE]}, is {_clear(*test.loc[DIFFERENCE, ['low', 'high']])}. "
        "There is one training of each: another seed may change either."
    )


def _clear(low: float, high: float) -> str:
    within = low <= 0 <= high
    return f"{'within' if within else 'more than'} what the choice of images explains"


def metrics_table(
    models: dict[str, TrainedModel], data: DataFolder, split: str, names: list[str]
) -> pd.DataFrame:
    """Return metrics (rows) of models (columns) on a split, each with its 95 % interval."""
    entries = {title: model.metrics(data, split) for title, model in models.items()}
    return pd.DataFrame(
        {
            t: {metric_label(n): format_entry(entry, n) for n in names}
            for t, entry in entries.items()
        }
    )


def threshold_table(models: dict[str, TrainedModel], data: DataFolder, split: str) -> pd.DataFrame:
    """Return metrics (rows) at the threshold chosen on Validation, and at the split's own best.

    Two columns per model: the first with 95 % intervals; the second is an oracle, without.
    """
    columns = {}
    for title, model in models.items():
        entry = model.metrics(data, split)
        chosen, oracle = entry["at_validation_threshold"], entry["oracle"]
        names = chosen["intervals"]
        columns[f"{title} at {chosen['threshold']:.3f}"] = {
            metric_label(name): format_entry(chosen, name) for name in names
        }
        columns[f"{title}, oracle {oracle['threshold']:.3f}"] = {
            metric_label(name): f"{oracle[name]:.3f}" for name in names
        }
    return pd.DataFrame(columns)


def calibration_table(
    models: dict[str, TrainedModel], data: DataFolder, split: str
) -> pd.DataFrame:
    """Return calibration error, Brier score and log loss before and after temperature scaling."""
    rows = []
    for title, model in models.items():
        after = model.metrics(data, split)
        before = after["before_temperature"]
        temperature = model.description.temperature
        for when, entry in (("before", before), (f"after, T = {temperature:.2f}", after)):
            metrics = {metric_label(n): format_entry(entry, n) for n in before["intervals"]}
            rows.append({"model": title, "temperature": when} | metrics)
    return pd.DataFrame(rows).set_index("model").rename_axis(None)


def data_set_matrix(table: pd.DataFrame) -> pd.DataFrame:
    """Return `across_data_sets` as AUC [95 % interval]: a row per model, a column per data set."""
    formatted = table.assign(
        auc=[format_interval(row.auc, row.low, row.high) for row in table.itertuples()],
        tested_on="on " + table["tested_on"],
    ).rename(columns={"trained_on": "trained on"})
    wide = formatted.pivot(index=["trained on", "run", "model"], columns="tested_on", values="auc")
    wide = wide[formatted["tested_on"].unique()].fillna("not evaluated").rename_axis(None, axis=1)
    return wide.reset_index().set_index("model").rename_axis(None)


def summarize_data_sets(table: pd.DataFrame, missing: list[str]) -> str:
    """Return how much of the matrix trained-on x tested-on there is, and what is missing."""
    sets, trained = table["tested_on"].nunique(), table["trained_on"].nunique()
    if sets == 1 and trained == 1:
        text = (
            f"The only data set here is `{table['tested_on'].iloc[0]}`, with models trained on it: "
            "these results say nothing about other data. Put further data sets under `data/` and "
            "set the parameter `other_data_sets`, and the table grows."
        )
    else:
        text = f"The table has models of {trained} data sets, tested on {sets}."
    return "\n".join([text, "", *(f"- {line}" for line in missing)]).strip()


def summarize_degradations(tables: dict[str, pd.DataFrame]) -> str:
    """Return which degradation costs each model most AUC, as a Markdown list."""
    lines = []
    for title, table in tables.items():
        original, worst = table.iloc[0], table.loc[table["auc"].iloc[1:].idxmin()]
        ends = ["auc", "auc_low", "auc_high"]
        lines.append(
            f"- {title} is weakest under {worst['degradation']} at severity {worst['severity']}: "
            f"AUC {format_interval(*worst[ends])}, compared with "
            f"{format_interval(*original[ends])} on the original images."
        )
    return "\n".join(lines)


def summarize_evaluation(models: dict[str, TrainedModel], data: DataFolder) -> str:
    """Return each model's results on Validation and on Test, as a Markdown list.

    The interval of the difference is composed of those of both (Zou & Donner 2008).
    """
    lines = []
    for title, model in models.items():
        validation, test = (model.metrics(data, split) for split in SPLITS[1:])
        drop = validation["auc"] - test["auc"]
        (low, high), (test_low, test_high) = (e["intervals"]["auc"] for e in (validation, test))
        least = drop - math.hypot(validation["auc"] - low, test_high - test["auc"])
        most = drop + math.hypot(high - validation["auc"], test["auc"] - test_low)
        lines.append(
            f"- {title}: AUC {format_entry(test, 'auc')} on Test against "
            f"{format_entry(validation, 'auc')} on Validation, a difference of "
            f"{format_interval(drop, least, most)}."
        )
    return "\n".join(lines)


def summarize_pointing_game(title: str, game: dict) -> str:
    """Return how often Grad-CAM's peak is inside the swapped region, compared with chance.

    With the exact 95 % interval of Clopper & Pearson 1934.
    """
    ends = binomtest(game["hits"], game["images"]).proportion_ci(0.95, "exact")
    beats = "more often than" if ends.low > game["chance"] else "not clearly more often than"
    share = format_interval(game["hits"] / game["images"], ends.low, ends.high)
    return (
        f"- {title}: the peak is inside the swapped region in {game['hits']} of {game['images']} "
        f"fakes, {share}, {beats} chance ({game['chance']:.2f}, the same peaks on the other "
        "fakes' regions)."
    )
