"""Every figure: a function takes data and returns a matplotlib Figure. Knows no model."""

import io
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from dfd_utils import metrics
from dfd_utils.config import CLASSES, FIGURES_DIR, write_whole

WIDTH = 7.0  # inches: the text width of the report's A4 page
# Okabe and Ito's palette, told apart by the colour-blind and in grey print.
CLASS_COLOURS = {"Real": "#0072B2", "Fake": "#D55E00"}
MODEL_COLOURS = {"ResNet50": "#0072B2", "EfficientNet-B0": "#D55E00", "Average of both": "#009E73"}
MODEL_MARKERS = {"ResNet50": "o", "EfficientNet-B0": "s", "Average of both": "D"}
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "dfd",  # the same figure gives the same bytes
}


def use_style() -> None:
    """Set the one style of all figures, and crisp SVG where a notebook shows them."""
    mpl.rcParams.update(STYLE)
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg", metadata={"Date": None})
    except (ImportError, AttributeError):  # not in a notebook
        pass


def write_figure(figure: Figure, path: Path) -> Path:
    """Write a figure in the format of the path's suffix, whole or not at all."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(buffer, format=path.suffix[1:], dpi=200, metadata=metadata)
    return write_whole(path, buffer.getvalue())


def save_figure(figure: Figure, run: str, name: str) -> Figure:
    """Write `figures/<run>/<name>.png` and `.svg`; return the figure, so that a cell shows it."""
    for suffix in ("png", "svg"):
        write_figure(figure, FIGURES_DIR / run / f"{name}.{suffix}")
    return figure


def _axes(columns: int = 1, rows: int = 1, height: float = 2.8, **options):
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes.ravel()


def class_counts(counts: pd.DataFrame) -> Figure:
    """Bars of images by split (index) and class (columns Real and Fake)."""
    figure, (axis,) = _axes(height=2.2)
    position = np.arange(len(counts))
    for shift, name in ((-0.2, "Real"), (0.2, "Fake")):
        bars = axis.barh(
            position + shift, counts[name], 0.36, label=name, color=CLASS_COLOURS[name]
        )
        axis.bar_label(bars, [f"{name} {value:,}" for value in counts[name]], padding=3)
    axis.set_yticks(position, counts.index)
    axis.invert_yaxis()
    axis.set(xlabel="images", xlim=(0, counts.to_numpy().max() * 1.18))
    axis.grid(axis="y", visible=False)
    return figure


def distributions(files: pd.DataFrame, statistics: list[str]) -> Figure:
    """Boxes of each statistic by split and class (columns split, label 0 or 1, statistics)."""
    statistics = [name for name in statistics if files[name].notna().any()]
    figure, axes = _axes(3, -(-len(statistics) // 3), 1.9 * -(-len(statistics) // 3))
    named = files.assign(label=files["label"].map(dict(enumerate(CLASSES))))
    for axis, statistic in zip(axes, statistics, strict=False):
        sns.boxplot(
            named, x="split", y=statistic, hue="label", palette=CLASS_COLOURS, ax=axis,
            fliersize=0, linewidth=0.8, width=0.7, hue_order=CLASSES,
        )  # fmt: skip
        low, high = files[statistic].quantile([0.005, 0.995])
        title = statistic.replace("_", " ").replace("jpeg", "JPEG")
        axis.set(title=title, xlabel="", ylabel="")
        if low < high:
            margin = 0.05 * (high - low)
            axis.set_ylim(low - margin, high + margin)
        axis.grid(axis="x", visible=False)
        handles, labels = axis.get_legend_handles_labels()
        axis.get_legend().remove()
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    for axis in axes[len(statistics) :]:
        axis.axis("off")
    return figure


def training_curves(history: pd.DataFrame, best_epoch: int) -> Figure:
    """Loss and Validation metrics by epoch, the chosen epoch marked."""
    figure, (loss, judged) = _axes(2, height=2.5)
    _line(loss, history["epoch"], history["training_loss"], "training", "#000000", "o")
    _line(loss, history["epoch"], history["validation_loss"], "Validation", "#0072B2", "s")
    loss.set(title="cross-entropy", xlabel="epoch")
    lines = {"auc": "#009E73", "accuracy": "#000000", "recall": "#D55E00", "precision": "#0072B2"}
    for (name, colour), marker in zip(lines.items(), "^osD", strict=True):
        _line(judged, history["epoch"], history[name], name.replace("auc", "AUC"), colour, marker)
    judged.set(title="on Validation", xlabel="epoch")
    for axis in (loss, judged):
        axis.axvline(best_epoch, color="#bbbbbb", linewidth=4, zorder=0)
        axis.legend(fontsize=7)
        axis.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _line(axis, x, y, label: str, colour: str, marker: str, **options) -> None:
    axis.plot(x, y, label=label, color=colour, marker=marker, markersize=4, **options)


def confusion_matrices(matrices: dict[str, np.ndarray]) -> Figure:
    """Confusion matrices side by side: counts, and their share of the true class (the row)."""
    figure, axes = _axes(max(2, len(matrices)), height=2.6)
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


def roc_and_precision_recall(predictions: dict[str, pd.DataFrame]) -> Figure:
    """ROC and precision-recall curves of models (columns label and score), named at the lines."""
    figure, (roc, pr) = _axes(2, height=3.1)
    for title, table in predictions.items():
        colour, judged = MODEL_COLOURS.get(title), metrics.all_metrics(table.label, table.score)
        fpr, tpr, _ = roc_curve(table.label, table.score)
        roc.plot(fpr, tpr, color=colour, label=f"{title}, AUC {judged['auc']:.3f}")
        precision, recall, _ = precision_recall_curve(table.label, table.score)
        label = f"{title}, AP {judged['average_precision']:.3f}"
        pr.plot(recall, precision, color=colour, label=label)
    roc.plot([0, 1], [0, 1], color="#999999", linestyle=":", label="chance")
    roc.set(title="ROC", xlabel="Real called Fake (share)", ylabel="Fake found (recall)")
    pr.set(title="precision-recall", xlabel="Fake found (recall)", ylabel="precision")
    for axis in (roc, pr):
        axis.set(xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
        axis.legend(fontsize=7, loc="lower right" if axis is roc else "lower left")
    return figure


def reliability_diagram(predictions: dict[str, pd.DataFrame], bins: int = 10) -> Figure:
    """Observed share of Fake by predicted probability, and below how the scores are spread."""
    figure, axes = _axes(max(2, len(predictions)), 2, 3.4, height_ratios=[3, 1], sharex=True)
    columns = len(axes) // 2
    for column, (title, table) in enumerate(predictions.items()):
        upper, lower = axes[column], axes[columns + column]
        bars = metrics.reliability(table.label, table.score, bins)
        upper.plot([0, 1], [0, 1], color="#999999", linestyle=":")
        _line(upper, bars["mean_score"], bars["fraction_fake"], title,
              MODEL_COLOURS.get(title, "k"), MODEL_MARKERS.get(title, "o"))  # fmt: skip
        upper.set(title=title, ylabel="share that is Fake", ylim=(-0.03, 1.03))
        for label, name in enumerate(CLASSES):
            lower.hist(
                table.score[table.label == label], np.linspace(0, 1, 21), histtype="step",
                color=CLASS_COLOURS[name], label=name,
            )  # fmt: skip
        lower.set(xlabel="predicted probability of Fake", ylabel="images", xlim=(0, 1))
        lower.legend(fontsize=7, loc="upper center")
    return figure


def degradation_curves(tables: dict[str, pd.DataFrame]) -> Figure:
    """AUC by severity for each degradation, a panel each, a line a model."""
    names = [n for n in next(iter(tables.values()))["degradation"].unique() if n != "none"]
    figure, axes = _axes(
        4, -(-len(names) // 4), 1.65 * -(-len(names) // 4), sharex=True, sharey=True
    )
    for axis, name in zip(axes, names, strict=False):
        for title, table in tables.items():
            part = table[table["degradation"].isin([name, "none"])].sort_values("severity")
            _line(axis, part["severity"], part["auc"], title, MODEL_COLOURS.get(title, "k"),
                  MODEL_MARKERS.get(title, "o"))  # fmt: skip
        axis.axhline(0.5, color="#999999", linestyle=":")
        axis.set(title=name, xticks=[0, 1, 3, 5])
    for axis in axes[-4:]:
        axis.set_xlabel("severity")
    for axis in axes[::4]:
        axis.set_ylabel("AUC")
    axes[0].legend(fontsize=6)
    return figure


def epoch_curves(histories: dict[str, pd.DataFrame], published: pd.DataFrame) -> Figure:
    """Metrics by number of epochs: ours solid, the course project's published ones dotted."""
    names = ("training_loss", "accuracy", "precision", "recall", "f1score")
    figure, axes = _axes(3, 2, 3.9)
    for axis, name in zip(axes, names, strict=False):
        for title, history in histories.items():
            colour, marker = MODEL_COLOURS.get(title, "k"), MODEL_MARKERS.get(title, "o")
            _line(axis, history["epoch"], history[name], title, colour, marker)
            theirs = published[published["model"] == title]
            if name in theirs:
                _line(axis, theirs["epochs"], theirs[name], f"{title}, published", colour, marker,
                      linestyle=":", alpha=0.7, markerfacecolor="white")  # fmt: skip
        axis.set(title=name.replace("_", " ").replace("f1score", "F1"), xlabel="epochs")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[5].axis("off")
    handles, labels = axes[1].get_legend_handles_labels()
    axes[5].legend(handles, labels, fontsize=7, loc="center")
    return figure


def interval_plot(intervals: pd.DataFrame, names: list[str]) -> Figure:
    """Metrics with their 95 % intervals: index (model, metric), columns value, low, high."""
    models = intervals.index.get_level_values("model").unique()
    figure, (axis,) = _axes(height=0.35 + 0.16 * len(names) * (len(models) + 1))
    for place, name in enumerate(names):
        for row, title in enumerate(models):
            value, low, high = intervals.loc[(title, name), ["value", "low", "high"]]
            y, colour = place + (row - (len(models) - 1) / 2) * 0.25, MODEL_COLOURS.get(title, "k")
            axis.plot([low, high], [y, y], color=colour, linewidth=1.5)
            label = title if place == 0 else None
            axis.plot(
                value, y, MODEL_MARKERS.get(title, "o"), color=colour, markersize=5, label=label
            )
            axis.annotate(f" {value:.3f}", (high, y), va="center", fontsize=7)
    axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axis.invert_yaxis()
    axis.set(xlabel="value on Test, with 95 % interval")
    axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=len(models))
    return figure
