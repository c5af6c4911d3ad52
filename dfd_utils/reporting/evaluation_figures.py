"""Figures of the evaluation: what models get wrong, how their scores rank, and how they hold up."""

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
from dfd_utils.models.trained import TrainedModel
from dfd_utils.reporting.style import CLASS_COLOURS, REFERENCE, axes_grid, model_style, write_figure
from dfd_utils.stats import metrics

STYLES = {
    WITHOUT: {"color": "#000000", "marker": "o", "linestyle": ":"},
    WITH: {"color": "#009E73", "marker": "s", "linestyle": "-"},
}


def degradation_study_curves(severities: pd.DataFrame, test: pd.DataFrame) -> Figure:
    """Mean AUC by severity on Validation, and AUC on Test, with 95 % intervals, by training."""
    figure, (curves, point) = axes_grid(2, height=2.4, sharey=True, width_ratios=[4, 1])
    for x, (training, style) in enumerate(STYLES.items()):
        part = severities[severities["training"] == training]
        curves.plot(part["severity"], part["auc"], label=training, markersize=4, **style)
        curves.fill_between(
            part["severity"], part["low"], part["high"], alpha=0.15, color=style["color"],
            linewidth=0,
        )  # fmt: skip
        row = test.loc[training]
        point.vlines(x, row["low"], row["high"], color=style["color"], linewidth=1)
        point.plot(x, row["auc"], color=style["color"], marker=style["marker"], markersize=4)
    curves.set(xlabel="severity (0: original)", ylabel="AUC", title="Validation, degraded")
    curves.set_xticks(sorted(severities["severity"].unique()))
    point.set(title="Test", xlim=(-0.7, 1.7), xticks=[0, 1], xticklabels=["without", "with"])
    curves.legend(fontsize=7, loc="lower left")
    return figure


SMALL = 7  # points: text inside the axes


def _line_style(title: str) -> dict:
    style = model_style(title)
    return {"color": style["color"], "linestyle": style["linestyle"], "linewidth": 1.5}


def confusion_matrices(matrices: dict[str, np.ndarray]) -> Figure:
    """Confusion matrices side by side: counts, and their share of the true class (the row)."""
    figure, axes = axes_grid(max(2, len(matrices)), height=2.4)
    for axis in axes[len(matrices) :]:
        axis.axis("off")
    for axis, (title, matrix) in zip(axes, matrices.items(), strict=False):
        share = matrix / matrix.sum(axis=1, keepdims=True).clip(1)
        text = np.array([[f"{n:,}\n{s:.1%}" for n, s in zip(*r, strict=True)]
                         for r in zip(matrix, share, strict=True)])  # fmt: skip
        sns.heatmap(
            share, vmin=0, vmax=1, cmap="Greys", annot=text, fmt="", cbar=False, square=True,
            xticklabels=CLASSES, yticklabels=CLASSES, ax=axis, linewidths=1, linecolor="white",
        )  # fmt: skip
        axis.set(title=title, xlabel="called", ylabel="true")
    return figure


def write_confusion_matrix(model: TrainedModel, data: DataFolder, split: str) -> Path:
    """Write confusion_matrix.png, at the threshold 0.5, beside a model's predictions."""
    table = model.predictions(data, split)
    matrix = metrics.confusion(table["label"], table["score"])
    figure = confusion_matrices({f"{model.title} on {split}": matrix})
    return write_figure(figure, model.results_folder(data) / "confusion_matrix.png")


def roc_and_precision_recall(predictions: dict[str, pd.DataFrame]) -> Figure:
    """ROC and precision-recall curves of models (columns label and score), named at the lines."""
    figure, (roc, pr) = axes_grid(2, height=3.3)
    for title, table in predictions.items():
        judged = metrics.ranking_metrics(table.label, table.score)
        fpr, tpr, _ = roc_curve(table.label, table.score)
        roc.plot(fpr, tpr, label=f"{title}, AUC {judged['auc']:.3f}", **_line_style(title))
        precision, recall, _ = precision_recall_curve(table.label, table.score)
        label = f"{title}, AP {judged['average_precision']:.3f}"
        pr.plot(recall, precision, label=label, **_line_style(title))
        share_fake = table.label.mean()
    roc.plot([0, 1], [0, 1], **REFERENCE)
    roc.text(0.62, 0.58, "chance", color="#666666", fontsize=SMALL, ha="left", va="top")
    pr.axhline(share_fake, **REFERENCE)
    pr.text(0.02, share_fake - 0.02, "chance", color="#666666", fontsize=SMALL, va="top")
    for limit in (0.01, 0.05):
        roc.axvline(limit, color="#bbbbbb", linewidth=0.8, zorder=0)
    roc.text(0.07, 0.38, "1 % and 5 %\nfalse positives", color="#666666", fontsize=SMALL)
    roc.set(title="ROC", xlabel="false-positive rate", ylabel="recall (true-positive rate)")
    pr.set(title="precision-recall", xlabel="recall", ylabel="precision")
    for axis in (roc, pr):
        axis.set(xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
    roc.legend(fontsize=SMALL, loc="lower right", bbox_to_anchor=(1, 0.14))
    pr.legend(fontsize=SMALL, loc="lower left")
    return figure


def reliability_diagram(
    before: dict[str, pd.DataFrame], after: dict[str, pd.DataFrame], bins: int = 10
) -> Figure:
    """Observed share of Fake by predicted probability, before and after calibration, by model.

    Tables have columns label and score. Bars: 95 % intervals of the shares after it (Wilson 1927);
    below, how the calibrated scores are spread.
    """
    figure, axes = axes_grid(
        max(2, len(after)), 2, 3.6, height_ratios=[3, 1], sharex=True, sharey="row"
    )
    columns = len(axes) // 2
    for column, title in enumerate(after):
        upper, lower = axes[column], axes[columns + column]
        upper.plot([0, 1], [0, 1], **REFERENCE)
        style = model_style(title)
        for name, table, options in (
            ("before temperature scaling", before[title], {"alpha": 0.6, "linestyle": ":"}),
            ("after", after[title], {"linestyle": "-"}),
        ):
            points = metrics.reliability(table.label, table.score, bins).dropna()
            face = "white" if name != "after" else style["color"]
            upper.plot(
                points["mean_score"], points["fraction_fake"], label=name, color=style["color"],
                marker=style["marker"], markersize=4, markerfacecolor=face, **options,
            )  # fmt: skip
        low, high = _wilson(points["fraction_fake"], points["count"])
        upper.vlines(points["mean_score"], low, high, color=style["color"], linewidth=0.8)
        upper.set(title=title, ylim=(-0.03, 1.03))
        upper.legend(fontsize=SMALL, loc="upper left")
        table = after[title]
        for label, (name, line) in enumerate(zip(CLASSES, ("-", "--"), strict=True)):
            lower.hist(
                table.score[table.label == label], np.linspace(0, 1, 21), histtype="step",
                color=CLASS_COLOURS[name], linestyle=line, label=name,
            )  # fmt: skip
        lower.set(xlabel="predicted probability of Fake", xlim=(0, 1))
        lower.legend(fontsize=SMALL, loc="upper center", ncols=2)
    axes[0].set_ylabel("share that is Fake")
    axes[columns].set_ylabel("images")
    return figure


def _wilson(shares: pd.Series, counts: pd.Series) -> tuple[list[float], list[float]]:
    found = [
        binomtest(round(share * count), int(count)).proportion_ci(0.95, "wilson")
        for share, count in zip(shares, counts, strict=True)
    ]
    return [ends.low for ends in found], [ends.high for ends in found]


def risk_coverage_curves(predictions: dict[str, pd.DataFrame]) -> Figure:
    """Share of errors among the most confident images, by the share of images that is answered."""
    figure, (axis,) = axes_grid(height=2.3)
    for title, table in predictions.items():
        curve = metrics.risk_coverage(table.label, table.score)
        area = metrics.aurc(table.label, table.score)
        axis.step(
            [0, *curve["coverage"]], [curve["risk"].iloc[0], *curve["risk"]], where="pre",
            label=f"{title}, area {area:.3f}", **_line_style(title),
        )  # fmt: skip
        risk = curve["risk"].iloc[-1]
        axis.plot(1, risk, "o", color=model_style(title)["color"], markersize=4, clip_on=False)
    axis.set(xlabel="coverage: share of images answered, the surest first", xlim=(0, 1))
    axis.set(ylabel="risk: share of errors", ylim=(0, None))
    axis.legend(fontsize=SMALL, loc="upper left")
    return figure


def degradation_heat_map(tables: dict[str, pd.DataFrame]) -> Figure:
    """AUC and accuracy of each model by degradation (rows) and severity (columns)."""
    figure, axes = axes_grid(2 * len(tables), height=2.7)
    panels = [(title, metric) for title in tables for metric in ("auc", "accuracy")]
    for axis, (title, metric) in zip(axes, panels, strict=True):
        table = tables[title]
        clean = table.loc[table["degradation"] == "none", metric].item()
        grid = table[table["degradation"] != "none"].pivot(
            index="degradation", columns="severity", values=metric
        )
        grid = grid.loc[[name for name in table["degradation"].unique() if name != "none"]]
        grid.insert(0, 0, clean)
        sns.heatmap(
            grid, vmin=0.5, vmax=1, cmap="Greys_r", annot=True, fmt=".2f", cbar=False, ax=axis,
            linewidths=0.5, linecolor="white", annot_kws={"fontsize": SMALL},
        )  # fmt: skip
        if axis is not axes[0]:
            axis.set_yticks([])
        name = "AUC" if metric == "auc" else "accuracy"
        axis.set(title=f"{title}\n{name}", xlabel="severity", ylabel="")
        axis.tick_params(length=0)
        axis.tick_params(axis="y", rotation=0)
    return figure


def degradation_curves(tables: dict[str, pd.DataFrame]) -> Figure:
    """AUC and accuracy by severity with 95 % bands: a column a degradation, a line a model."""
    names = [n for n in next(iter(tables.values()))["degradation"].unique() if n != "none"]
    figure, axes = axes_grid(len(names), 2, 3.0, sharex=True, sharey=True)
    for place, axis in enumerate(axes):
        metric, name = ("auc", "accuracy")[place // len(names)], names[place % len(names)]
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
    axes[0].set_ylabel("AUC")
    axes[len(names)].set_ylabel("accuracy")
    figure.supxlabel("severity (0: original)", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(tables), fontsize=8)
    return figure
