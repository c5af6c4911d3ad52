"""Figures of the evaluation: errors, ranking, calibration and robustness.

Predictions come as tables with the columns label (1 = Fake), score and, where it is known, logit,
by the title of the model.
"""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_curve, roc_curve

from dfd_utils.config import CLASSES
from dfd_utils.data.folder import DataFolder
from dfd_utils.evaluation.degradation_study import WITH, WITHOUT
from dfd_utils.models.linear_dct import CHANNELS
from dfd_utils.models.scoring import apply_temperature
from dfd_utils.models.trained import TrainedModel
from dfd_utils.reporting.style import (
    CLASS_COLOURS,
    REFERENCE,
    SMALL,
    axes_grid,
    model_style,
    write_figure,
)
from dfd_utils.stats import metrics

TRAINING_STYLES = {
    WITHOUT: {"color": "#000000", "marker": "o", "linestyle": ":"},
    WITH: {"color": "#009E73", "marker": "s", "linestyle": "-"},
}
PANELS = 6  # side by side, of a figure of many
NOTE = {"color": "#666666", "fontsize": SMALL}


def _line_style(title: str) -> dict:
    style = model_style(title)
    return {"color": style["color"], "linestyle": style["linestyle"], "linewidth": 1.5}


def confusion_matrices(matrices: dict[str, np.ndarray]) -> Figure:
    """Draw confusion matrices `[true, predicted]` by title: counts and shares of the true class."""
    figure, axes = axes_grid(max(2, len(matrices)), height=2.4)
    for axis in axes[len(matrices) :]:
        axis.axis("off")
    for axis, (title, matrix) in zip(axes, matrices.items(), strict=False):
        share = matrix / matrix.sum(axis=1, keepdims=True).clip(1)
        text = np.vectorize("{:,}\n{:.1%}".format)(matrix, share)
        sns.heatmap(
            share, vmin=0, vmax=1, cmap="Greys", annot=text, fmt="", cbar=False, square=True,
            xticklabels=CLASSES, yticklabels=CLASSES, ax=axis, linewidths=1, linecolor="white",
        )  # fmt: skip
        axis.set(title=title, xlabel="predicted", ylabel="true")
    return figure


def write_confusion_matrix(model: TrainedModel, data: DataFolder, split: str) -> Path:
    """Write the confusion matrix at the threshold 0.5 beside a model's predictions.

    The file is confusion_matrix.png for Test, and confusion_matrix_<split>.png for another split.
    """
    table = model.predictions(data, split)
    matrix = metrics.confusion(table["label"], table["score"])
    figure = confusion_matrices({f"{model.title} on {split}": matrix})
    name = "confusion_matrix.png" if split == "Test" else f"confusion_matrix_{split}.png"
    return write_figure(figure, model.results_folder(data) / name)


def roc_and_precision_recall(predictions: dict[str, pd.DataFrame]) -> Figure:
    """Draw the ROC and precision-recall curves of models, by title, on the same images."""
    figure, (roc, pr) = axes_grid(2, height=3.3)
    for title, table in predictions.items():
        ranked = table["label"], table.get("logit", table["score"])
        ranking = metrics.ranking_metrics(*ranked)
        fpr, tpr, _ = roc_curve(*ranked)
        roc.plot(fpr, tpr, label=f"{title}, AUC {ranking['auc']:.3f}", **_line_style(title))
        precision, recall, _ = precision_recall_curve(*ranked)
        label = f"{title}, AP {ranking['average_precision']:.3f}"
        pr.plot(recall, precision, label=label, **_line_style(title))
        share_fake = table["label"].mean()
    roc.plot([0, 1], [0, 1], **REFERENCE)
    roc.text(0.62, 0.58, "chance", ha="left", va="top", **NOTE)
    pr.axhline(share_fake, **REFERENCE)
    pr.text(0.02, share_fake - 0.02, "chance", va="top", **NOTE)
    for limit in (0.01, 0.05):
        roc.axvline(limit, color="#bbbbbb", linewidth=0.8, zorder=0)
    roc.text(0.07, 0.46, "1 % and 5 %\nfalse positives", **NOTE)
    roc.set(title="ROC", xlabel="false-positive rate", ylabel="recall (true-positive rate)")
    pr.set(title="precision-recall", xlabel="recall", ylabel="precision")
    for axis in (roc, pr):
        axis.set(xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
    roc.legend(fontsize=SMALL, loc="lower right", bbox_to_anchor=(1, 0.14))
    pr.legend(fontsize=SMALL, loc="lower left")
    return figure


def reliability_diagram(predictions: dict[str, pd.DataFrame]) -> Figure:
    """Draw the share of fakes by predicted probability, before and after calibration, by title.

    The tables need the logits. Bars are 95 % intervals of the shares after calibration (Wilson
    1927). Histograms below show the distribution of the calibrated scores.
    """
    figure, axes = axes_grid(
        max(2, len(predictions)), 2, 3.6, height_ratios=[3, 1], sharex=True, sharey="row"
    )
    columns = len(axes) // 2
    for column, (title, table) in enumerate(predictions.items()):
        upper, lower = axes[column], axes[columns + column]
        upper.plot([0, 1], [0, 1], **REFERENCE)
        colour, marker = (model_style(title)[key] for key in ("color", "marker"))
        uncalibrated = {"markerfacecolor": "white", "alpha": 0.6, "linestyle": ":"}
        for label, scores, style in (
            ("before temperature scaling", apply_temperature(table["logit"]), uncalibrated),
            ("after", table["score"], {"linestyle": "-"}),
        ):
            points = metrics.reliability(table["label"], scores).dropna()
            upper.plot(
                points["mean_score"], points["fraction_fake"], label=label, color=colour,
                marker=marker, markersize=4, **style,
            )  # fmt: skip
        low, high = _wilson_intervals(points["fraction_fake"], points["count"])
        upper.vlines(points["mean_score"], low, high, color=colour, linewidth=0.8)
        upper.set(title=title, ylim=(-0.03, 1.03))
        for label, (name, line) in enumerate(zip(CLASSES, ("-", "--"), strict=True)):
            lower.hist(
                table["score"][table["label"] == label], np.linspace(0, 1, 21), histtype="step",
                color=CLASS_COLOURS[name], linestyle=line, label=name,
            )  # fmt: skip
        lower.set(xlim=(0, 1))
    handles = [line for axis in (upper, lower) for line in axis.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=8)
    figure.supxlabel("predicted probability of Fake", fontsize=9)
    axes[0].set_ylabel("share of fakes")
    axes[columns].set_ylabel("images")
    return figure


def _wilson_intervals(shares: pd.Series, counts: pd.Series) -> tuple[list[float], list[float]]:
    intervals = [
        binomtest(round(share * count), int(count)).proportion_ci(0.95, "wilson")
        for share, count in zip(shares, counts, strict=True)
    ]
    return [interval.low for interval in intervals], [interval.high for interval in intervals]


def risk_coverage_curves(predictions: dict[str, pd.DataFrame]) -> Figure:
    """Draw the error rate among the most confident images by the share of images answered."""
    figure, (axis,) = axes_grid(height=2.3)
    for title, table in predictions.items():
        ranked = table["label"], table["score"], table.get("logit")
        curve, area = metrics.risk_coverage(*ranked), metrics.aurc(*ranked)
        axis.step(
            [0, *curve["coverage"]], [curve["risk"].iloc[0], *curve["risk"]], where="pre",
            label=f"{title}, area {area:.3f}", **_line_style(title),
        )  # fmt: skip
        risk = curve["risk"].iloc[-1]
        axis.plot(1, risk, "o", color=model_style(title)["color"], markersize=4, clip_on=False)
    axis.set(xlabel="coverage: share of images answered, most confident first", xlim=(0, 1))
    axis.set(ylabel="risk: error rate", ylim=(0, None))
    axis.legend(fontsize=SMALL, loc="upper left")
    return figure


def spectrum_heat_maps(difference: np.ndarray) -> Figure:
    """Draw the result of `spectrum.spectrum_difference`, a panel per channel."""
    figure, axes = axes_grid(len(CHANNELS), height=2.5)
    limit = max(np.abs(difference).max(), 0.1)
    for axis, channel, values in zip(axes, CHANNELS, difference, strict=True):
        last = axis is axes[-1]
        sns.heatmap(
            values, vmin=-limit, vmax=limit, cmap="PuOr_r", square=True, ax=axis, cbar=last,
            cbar_kws={"label": "Fake minus Real\n(standard deviations)"},
        )  # fmt: skip
        axis.set(title=channel, xlabel="horizontal frequency")
    axes[0].set_ylabel("vertical frequency")
    return figure


def degradation_curves(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw results of `robustness.degradation_table`, by model title, with 95 % bands."""
    names = [n for n in next(iter(tables.values()))["degradation"].unique() if n != "none"]
    columns = min(PANELS, len(names))
    blocks = math.ceil(len(names) / columns)
    figure, axes = axes_grid(columns, 2 * blocks, 0.4 + 2.4 * blocks, sharex=True, sharey=True)
    panels = [
        (axes[(2 * (index // columns) + row) * columns + index % columns], metric, name)
        for row, metric in enumerate(("auc", "accuracy"))
        for index, name in enumerate(names)
    ]
    used = {id(axis) for axis, *_ in panels}
    for axis in axes:
        axis.set_visible(id(axis) in used)
    for axis, metric, name in panels:
        for title, table in tables.items():
            part = table[table["degradation"].isin([name, "none"])].sort_values("severity")
            style = model_style(title)
            axis.fill_between(
                part["severity"], part[f"{metric}_low"], part[f"{metric}_high"],
                color=style["color"], alpha=0.2, linewidth=0,
            )  # fmt: skip
            axis.plot(part["severity"], part[metric], label=title, markersize=3, **style)
        axis.axhline(0.5, **REFERENCE)
        if metric == "auc":
            axis.set_title(name, fontsize=8)
        axis.set_xticks(sorted(part["severity"]))
        axis.tick_params(labelsize=SMALL)
    for row in range(2 * blocks):
        axes[row * columns].set_ylabel("accuracy" if row % 2 else "AUC")
    figure.supxlabel("severity (0: original)", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(tables), fontsize=8)
    return figure


def degradation_study_curves(severities: pd.DataFrame, test: pd.DataFrame) -> Figure:
    """Draw the results of `degradation_study.severity_auc` and `auc_on_test` with 95 % bands."""
    figure, (curves, points) = axes_grid(2, height=2.4, sharey=True, width_ratios=[4, 1])
    for x, (training, style) in enumerate(TRAINING_STYLES.items()):
        part, colour = severities[severities["training"] == training], style["color"]
        curves.plot(part["severity"], part["auc"], label=training, markersize=4, **style)
        curves.fill_between(
            part["severity"], part["low"], part["high"], alpha=0.15, color=colour, linewidth=0
        )
        row = test.loc[training]
        points.vlines(x, row["low"], row["high"], color=colour, linewidth=1)
        points.plot(x, row["auc"], color=colour, marker=style["marker"], markersize=4)
    curves.set(xlabel="severity (0: original)", ylabel="AUC", title="Validation, degraded")
    curves.set_xticks(sorted(severities["severity"].unique()))
    points.set(title="Test", xlim=(-0.7, 1.7), xticks=[0, 1], xticklabels=["without", "with"])
    curves.legend(fontsize=SMALL, loc="lower left")
    return figure
