"""Figures of the data set: counts and distributions."""

import math

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from dfd_utils.config import CLASSES
from dfd_utils.reporting.formatting import metric_label
from dfd_utils.reporting.style import CLASS_COLOURS, axes_grid


def class_counts(counts: pd.DataFrame) -> Figure:
    """Draw bars of the number of images by split (index) and class (columns Real and Fake)."""
    figure, (axis,) = axes_grid(height=2.2)
    position = np.arange(len(counts))
    for shift, name in zip((-0.2, 0.2), CLASSES, strict=True):
        bars = axis.barh(
            position + shift, counts[name], 0.36, label=name, color=CLASS_COLOURS[name]
        )
        axis.bar_label(bars, [f"{name} {value:,}" for value in counts[name]], padding=3)
    axis.set_yticks(position, counts.index)
    axis.invert_yaxis()
    axis.set(xlabel="number of images", xlim=(0, counts.to_numpy().max() * 1.18))
    axis.grid(axis="y", visible=False)
    return figure


def distributions(files: pd.DataFrame, statistics: list[str]) -> Figure:
    """Draw box plots of image statistics by split and class.

    Args:
        files: a row per image, with columns split, label (0 = Real, 1 = Fake) and the statistics.
        statistics: columns to draw; those without any value are left out.
    """
    statistics = [name for name in statistics if files[name].notna().any()]
    rows = math.ceil(len(statistics) / 3)
    figure, axes = axes_grid(3, rows, height=1.5 * rows)
    files = files.assign(label=files["label"].map(dict(enumerate(CLASSES))))
    for axis, statistic in zip(axes, statistics, strict=False):
        sns.boxplot(
            files, x="split", y=statistic, hue="label", palette=CLASS_COLOURS, ax=axis,
            showfliers=False, linewidth=0.8, width=0.7, hue_order=CLASSES,
        )  # fmt: skip
        axis.set(title=metric_label(statistic), xlabel="", ylabel="")
        axis.grid(axis="x", visible=False)
        handles, labels = axis.get_legend_handles_labels()
        axis.get_legend().remove()
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    for axis in axes[len(statistics) :]:
        axis.axis("off")
    return figure
