"""Tables and sentences about the evaluation, from the metrics of each model."""

import math

import pandas as pd
from scipy.stats import binomtest

from dfd_utils.config import SPLITS
from dfd_utils.data.folder import DataFolder
from dfd_utils.evaluation.degradation_study import DIFFERENCE, WITH, WITHOUT
from dfd_utils.models.trained import TrainedModel
from dfd_utils.reporting.formatting import (
    append_list,
    code_span,
    escape_markdown,
    format_entry,
    format_interval,
    metric_label,
)
from dfd_utils.stats.abstention import LIMIT

_ANSWER_LABELS = {
    "answered": "answered",
    "wrong": "wrong answers",
    "real_called_fake": "Real called Fake",
    "fake_called_real": "Fake called Real",
}
THRESHOLD_METRICS = ("balanced_accuracy", "recall", "real_called_fake", "f1")


def metrics_table(
    models: dict[str, TrainedModel], data: DataFolder, split: str, names: list[str]
) -> pd.DataFrame:
    """Return metrics (rows) of models (columns) on a split, each with its 95 % interval."""
    entries = {title: model.metrics(data, split) for title, model in models.items()}
    return pd.DataFrame({
        title: {metric_label(name): format_entry(entry, name) for name in names}
        for title, entry in entries.items()
    })  # fmt: skip


def threshold_table(models: dict[str, TrainedModel], data: DataFolder, split: str) -> pd.DataFrame:
    """Return metrics (columns) at the threshold chosen on Validation, and at the split's own best.

    Two rows per model: the first with 95 % intervals; the second is an oracle, without.
    """
    rows = {}
    for title, model in models.items():
        entry = model.metrics(data, split)
        chosen, oracle = entry["at_validation_threshold"], entry["oracle"]
        names = [name for name in THRESHOLD_METRICS if name in chosen["intervals"]]
        rows[f"{title} at {chosen['threshold']:.3f}"] = {
            metric_label(name): format_entry(chosen, name) for name in names
        }
        rows[f"{title}, oracle {oracle['threshold']:.3f}"] = {
            metric_label(name): f"{oracle[name]:.3f}" for name in names
        }
    return pd.DataFrame(rows).T


def calibration_table(
    models: dict[str, TrainedModel], data: DataFolder, split: str
) -> pd.DataFrame:
    """Return calibration metrics (columns) of models before and after temperature scaling (rows).

    The metrics are calibration error, Brier score and log loss, with 95 % intervals.
    """
    rows = []
    for title, model in models.items():
        after = model.metrics(data, split)
        before = after["before_temperature"]
        temperature = model.description.temperature
        for when, entry in (("before", before), (f"after, T = {temperature:.2f}", after)):
            metrics = {metric_label(n): format_entry(entry, n) for n in before["intervals"]}
            rows.append({"model": title, "temperature scaling": when} | metrics)
    return pd.DataFrame(rows).set_index("model").rename_axis(None)


def degradation_study_table(severities: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """Return the AUC by severity and on Test (columns) of both trainings and their difference.

    The arguments are the results of `degradation_study.severity_auc` and `auc_on_test`.
    """
    formatted = severities.assign(
        auc=[format_interval(row.auc, row.low, row.high) for row in severities.itertuples()],
        column=[f"severity {s}" if s else "original" for s in severities["severity"]],
    )
    wide = formatted.pivot(index="training", columns="column", values="auc")
    wide = wide[formatted["column"].unique()].loc[list(test.index)]
    wide["Test"] = [format_interval(row.auc, row.low, row.high) for row in test.itertuples()]
    return wide.rename_axis(index=None, columns=None)


def summarize_degradation_study(title: str, severities: pd.DataFrame, test: pd.DataFrame) -> str:
    """Return the effect of training a model on degraded images, as a Markdown list."""
    known = sorted(severities["severity"].unique())
    severity = known[len(known) // 2]
    rows = severities[severities["severity"] == severity].set_index("training")
    drops = {
        t: format_interval(*rows.loc[t, ["drop", "drop_low", "drop_high"]]) for t in rows.index
    }
    auc = {t: format_interval(*test.loc[t]) for t in test.index}
    return (
        f"- Degradation at severity {severity} lowers the AUC of {escape_markdown(title)} by "
        f"{drops[WITHOUT]} after training without degraded images, and by {drops[WITH]} after "
        f"training with them. The difference, {drops[DIFFERENCE]}, is "
        f"{_compared_with_sampling(*rows.loc[DIFFERENCE, ['drop_low', 'drop_high']])}.\n"
        f"- On Test, the AUC is {auc[WITHOUT]} without and {auc[WITH]} with degraded images in "
        f"training. The difference, {auc[DIFFERENCE]}, is "
        f"{_compared_with_sampling(*test.loc[DIFFERENCE, ['low', 'high']])}. "
        "Each is a single training: another seed may change either."
    )


def _compared_with_sampling(low: float, high: float) -> str:
    within = low <= 0 <= high
    return f"{'within' if within else 'larger than'} what the choice of images explains"


def summarize_degradations(tables: dict[str, pd.DataFrame]) -> str:
    """Return which degradation lowers each model's AUC most, as a Markdown list.

    The tables are the results of `robustness.degradation_table` by model title.
    """
    lines = []
    for title, table in tables.items():
        original, worst = table.iloc[0], table.loc[table["auc"].iloc[1:].idxmin()]
        ends = ["auc", "auc_low", "auc_high"]
        lines.append(
            f"- {escape_markdown(title)} is weakest under {worst['degradation']} at severity "
            f"{worst['severity']}: AUC {format_interval(*worst[ends])}, compared with "
            f"{format_interval(*original[ends])} on the original images."
        )
    return "\n".join(lines)


def answers_table(table: pd.DataFrame, models: dict[str, TrainedModel]) -> pd.DataFrame:
    """Return the rates of `answers.answers_on_test` with their intervals, and each model's band."""
    rows = []
    for row in table.to_dict("records"):
        described = models[row["model"]].description
        low, high = described.unsure_from, described.unsure_to
        band = "none found" if low is None else f"{low:.2f} to {high:.2f}"
        rates = {_ANSWER_LABELS[name]: format_interval(*row[name]) for name in _ANSWER_LABELS}
        rows.append({"model": row["model"], "images": row["images"], "Unsure": band} | rates)
    return pd.DataFrame(rows).set_index("model").rename_axis(None)


def degraded_answers_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return wrong answers and the share answered of `answers_by_degradation`, a column a model."""
    cells = [
        f"{row['wrong'][0]:.3f} of {row['answered'][0]:.2f}" if row["answered"][0] else "no answer"
        for row in table.to_dict("records")
    ]
    wide = table.assign(cell=cells).pivot(index="images", columns="model", values="cell")
    return wide.loc[table["images"].unique(), table["model"].unique()].rename_axis(
        index=None, columns=None
    )


def summarize_answers(table: pd.DataFrame, models: dict[str, TrainedModel]) -> str:
    """Return whether the promise of each model's band was kept on Test, as a Markdown list.

    The table is that of `answers.answers_on_test`; the first row of each model is its own Test.
    """
    lines = []
    for title, part in table.groupby("model", sort=False):
        row = part.iloc[0]
        wrong = format_interval(*row["wrong"])
        if models[title].description.unsure_from is None:
            text = f"no band on Validation keeps wrong answers to {LIMIT:.2f}, so it always answers"
        elif not row["answered"][0]:
            text = "no image is answered"
        elif row["wrong"][1] > LIMIT:
            text = f"the promise of at most {LIMIT:.2f} wrong answers was broken"
        else:
            kept = row["wrong"][2] <= LIMIT
            text = f"the promise of at most {LIMIT:.2f} wrong answers " + (
                "was kept" if kept else "is neither proven nor refuted"
            )
        lines.append(
            f"- {escape_markdown(title)}: {text}; it answers {format_interval(*row['answered'])} "
            f"of the images, and {wrong} of the answers are wrong."
        )
    return "\n".join(lines)


def data_set_matrix(table: pd.DataFrame) -> pd.DataFrame:
    """Return the AUC of each model (rows) on each data set (columns), from `across_data_sets`."""
    formatted = table.assign(
        auc=[format_interval(row.auc, row.low, row.high) for row in table.itertuples()],
        tested_on="on " + table["tested_on"],
    ).rename(columns={"trained_on": "trained on"})
    wide = formatted.pivot(index=["trained on", "run", "model"], columns="tested_on", values="auc")
    wide = wide[formatted["tested_on"].unique()].fillna("not evaluated").rename_axis(columns=None)
    return wide.reset_index().set_index("model").rename_axis(None)


def summarize_data_sets(table: pd.DataFrame, missing: list[str]) -> str:
    """Return what the table of `across_data_sets` covers, and the lines it logged as a list."""
    tested, trained = table["tested_on"].nunique(), table["trained_on"].nunique()
    if tested == trained == 1:
        text = (
            f"All models were trained and tested on one data set, "
            f"{code_span(table['tested_on'].iloc[0])}; these results say nothing about other data. "
            "To extend the table, put further data sets under `data/` and set the parameter "
            "`other_data_sets`."
        )
    else:
        text = f"Data sets used for training: {trained}; for testing: {tested}."
    return append_list(text, missing)


def summarize_evaluation(models: dict[str, TrainedModel], data: DataFolder) -> str:
    """Return each model's AUC on Validation and on Test, as a Markdown list.

    The interval of the difference is composed of those of both (Zou & Donner 2008).
    """
    lines = []
    for title, model in models.items():
        validation, test = (model.metrics(data, split) for split in SPLITS[1:])
        drop = validation["auc"] - test["auc"]
        (low, high), (test_low, test_high) = (e["intervals"]["auc"] for e in (validation, test))
        drop_low = drop - math.hypot(validation["auc"] - low, test_high - test["auc"])
        drop_high = drop + math.hypot(high - validation["auc"], test["auc"] - test_low)
        lines.append(
            f"- {escape_markdown(title)}: AUC {format_entry(test, 'auc')} on Test and "
            f"{format_entry(validation, 'auc')} on Validation, a drop of "
            f"{format_interval(drop, drop_low, drop_high)}."
        )
    return "\n".join(lines)


def summarize_pointing_game(title: str, game: dict) -> str:
    """Return how often Grad-CAM's peak is inside the swapped region, compared with chance.

    With the exact 95 % interval of Clopper & Pearson 1934.
    """
    ends = binomtest(game["hits"], game["images"]).proportion_ci(0.95, "exact")
    clearly = "" if ends.low > game["chance"] else "not clearly "
    share = format_interval(game["hits"] / game["images"], ends.low, ends.high)
    return (
        f"- {escape_markdown(title)}: the peak is inside the swapped region in {game['hits']} of "
        f"{game['images']} fakes, a share of {share}; this is {clearly}more often than chance "
        f"({game['chance']:.2f}, the share of the same peaks inside the other fakes' regions)."
    )
