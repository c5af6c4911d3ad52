"""Figures of the comparison: intervals side by side, learning by epochs, accuracy against cost."""

import pandas as pd
from matplotlib.figure import Figure

from dfd_utils.reporting.style import axes_grid, model_style

SMALL = 7  # points: text inside the axes


def interval_plot(intervals: pd.DataFrame, names: list[str]) -> Figure:
    """Metrics with their 95 % intervals: index (model, metric), columns value, low, high."""
    models = intervals.index.get_level_values("model").unique()
    figure, (axis,) = axes_grid(height=0.6 + 0.14 * len(names) * (len(models) + 1))
    for place, name in enumerate(names):
        for row, title in enumerate(models):
            value, low, high = intervals.loc[(title, name), ["value", "low", "high"]]
            style = model_style(title)
            y, colour = place + (row - (len(models) - 1) / 2) * 0.25, style["color"]
            axis.plot([low, high], [y, y], color=colour, linewidth=1.5)
            label = title if place == 0 else None
            axis.plot(value, y, style["marker"], color=colour, markersize=5, label=label)
            axis.annotate(f" {value:.3f}", (high, y), va="center", fontsize=SMALL)
    axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axis.set_yticklabels([{"auc": "AUC", "f1": "F1"}.get(name, name) for name in names])
    axis.invert_yaxis()
    axis.margins(x=0.08)  # room for the numbers
    axis.grid(axis="y", visible=False)
    axis.set(xlabel="value on Test, with 95 % interval")
    figure.legend(loc="outside upper center", ncols=len(models), fontsize=8)
    return figure


def epoch_curves(histories: dict[str, pd.DataFrame], published: pd.DataFrame) -> Figure:
    """Metrics by number of epochs: ours solid, the course project's published ones dotted."""
    names = ("training_loss", "accuracy", "precision", "recall", "f1score")
    figure, axes = axes_grid(3, 2, 3.9)
    for axis, name in zip(axes, names, strict=False):
        for title, history in histories.items():
            style = model_style(title) | {"linestyle": "-", "markersize": 4}
            axis.plot(history["epoch"], history[name], label=f"{title}, here", **style)
            theirs = published[published["model"] == title]
            if name in theirs:
                style |= {"linestyle": ":", "markerfacecolor": "white"}
                label = f"{title}, course project"
                axis.plot(theirs["epochs"], theirs[name], label=label, **style)
        axis.set(title=name.replace("_", " ").replace("f1score", "F1"), xlabel="epochs")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[5].axis("off")
    handles, labels = axes[1].get_legend_handles_labels()
    axes[5].legend(handles, labels, fontsize=8, loc="center left")
    return figure


def cost_plot(intervals: pd.DataFrame, costs: dict[str, dict], names: list[str]) -> Figure:
    """AUC on Test with its 95 % interval against each of the named costs, the models named there.

    Args:
        intervals: index (model, metric), columns value, low, high.
        costs: by model title, the cost of each name.
    """
    figure, axes = axes_grid(len(names), height=2.4, sharey=True)
    for axis, name in zip(axes, names, strict=True):
        largest = max(cost[name] for cost in costs.values())
        for title, cost in costs.items():
            value, low, high = intervals.loc[(title, "auc"), ["value", "low", "high"]]
            style = model_style(title)
            axis.plot([cost[name]] * 2, [low, high], color=style["color"], linewidth=1.5)
            axis.plot(cost[name], value, style["marker"], color=style["color"], markersize=6)
            right = cost[name] < 0.6 * largest  # a name stays inside the axes
            axis.annotate(
                title, (cost[name], value), xytext=(8 if right else -8, 0), va="center",
                textcoords="offset points", ha="left" if right else "right", fontsize=8,
            )  # fmt: skip
        axis.set(xlabel=name, xlim=(0, 1.08 * largest))
    axes[0].set_ylabel("AUC on Test")
    return figure
