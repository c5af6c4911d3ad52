"""Figures of a training."""

import pandas as pd
from matplotlib.figure import Figure

from dfd_utils.reporting.style import axes_grid


def training_curves(history: pd.DataFrame, best_epoch: int) -> Figure:
    """Loss and Validation metrics by epoch, the chosen epoch marked."""
    figure, (loss, judged) = axes_grid(2, height=2.5)
    _line(loss, history["epoch"], history["training_loss"], "training", "#000000", "o")
    _line(loss, history["epoch"], history["validation_loss"], "Validation", "#0072B2", "s")
    loss.set(title="cross-entropy", xlabel="epoch")
    lines = {
        "auc": ("AUC", "#009E73", "^"),
        "degraded_auc": ("AUC, degraded", "#CC79A7", "v"),
        "accuracy": ("accuracy", "#000000", "o"),
        "recall": ("recall", "#D55E00", "s"),
        "precision": ("precision", "#0072B2", "D"),
    }
    for name, style in lines.items():
        if name in history:
            _line(judged, history["epoch"], history[name], *style)
    judged.set(title="on Validation", xlabel="epoch", ylim=(-0.03, 1.03))
    for axis in (loss, judged):
        axis.axvline(best_epoch, color="#bbbbbb", linewidth=4, zorder=0)
        axis.legend(fontsize=7)
        axis.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _line(axis, x, y, label: str, colour: str, marker: str, **options) -> None:
    axis.plot(x, y, label=label, color=colour, marker=marker, markersize=4, **options)
