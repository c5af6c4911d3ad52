"""Figures of training: loss and metrics by epoch."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfd_utils.reporting.formatting import metric_label
from dfd_utils.reporting.style import SMALL, axes_grid, model_style

# Columns of the history that are drawn: label, colour and marker.
LOSSES = {
    "training_loss": ("training", "#000000", "o"),
    "validation_loss": ("Validation", "#0072B2", "s"),
}
VALIDATION_METRICS = {
    "auc": ("AUC", "#009E73", "^"),
    "degraded_auc": ("AUC, degraded", "#CC79A7", "v"),
    "accuracy": ("accuracy", "#000000", "o"),
    "recall": ("recall", "#D55E00", "s"),
    "precision": ("precision", "#0072B2", "D"),
}


def training_curves(history: pd.DataFrame, best_epoch: int) -> Figure:
    """Draw the losses and the Validation metrics of one training by epoch.

    Args:
        history: the content of history.csv, a row per epoch.
        best_epoch: the selected epoch, which a grey bar marks.
    """
    figure, (loss, metrics) = axes_grid(2, height=2.5)
    _draw_columns(loss, history, LOSSES)
    _draw_columns(metrics, history, VALIDATION_METRICS)
    loss.set(title="cross-entropy", xlabel="epoch")
    metrics.set(title="metrics on Validation", xlabel="epoch", ylim=(-0.03, 1.03))
    for axis in (loss, metrics):
        axis.axvline(best_epoch, color="#bbbbbb", linewidth=4, zorder=0)
        axis.legend(fontsize=SMALL)
        axis.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _draw_columns(axis: Axes, history: pd.DataFrame, columns: dict) -> None:
    for name, (label, colour, marker) in columns.items():
        if name in history:
            axis.plot(
                history["epoch"], history[name], label=label, color=colour, marker=marker,
                markersize=4,
            )  # fmt: skip


def epoch_curves(histories: dict[str, pd.DataFrame], published: pd.DataFrame) -> Figure:
    """Draw metrics by epoch: of trainings, by title (solid), and the published ones (dotted)."""
    names = ("training_loss", "accuracy", "precision", "recall", "f1score")
    figure, axes = axes_grid(3, 2, 3.9)
    for axis, name in zip(axes, names, strict=False):
        for title, history in histories.items():
            style = model_style(title) | {"linestyle": "-", "markersize": 4}
            axis.plot(history["epoch"], history[name], label=f"{title}, here", **style)
            results = published[published["model"] == title]
            if name in results:
                style |= {"linestyle": ":", "markerfacecolor": "white"}
                label = f"{title}, course project"
                axis.plot(results["epochs"], results[name], label=label, **style)
        axis.set(title=metric_label(name), xlabel="epochs")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[5].axis("off")
    handles, labels = axes[1].get_legend_handles_labels()
    axes[5].legend(handles, labels, fontsize=8, loc="center left")
    return figure
