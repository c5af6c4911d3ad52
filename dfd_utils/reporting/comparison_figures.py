"""Figures of the comparison: intervals side by side, and accuracy against cost."""

import pandas as pd
from matplotlib.figure import Figure

from dfd_utils.reporting.formatting import metric_label
from dfd_utils.reporting.style import SMALL, axes_grid, model_style


def interval_plot(intervals: pd.DataFrame, names: list[str]) -> Figure:
    """Draw metrics of models with their 95 % intervals.

    Args:
        intervals: index (model, metric), columns value, low, high, as `bootstrap` returns them.
        names: the metrics, from top to bottom.
    """
    models = intervals.index.get_level_values("model").unique()
    figure, (axis,) = axes_grid(height=0.6 + 0.14 * len(names) * (len(models) + 1))
    step = min(0.25, 0.8 / len(models))
    for row, name in enumerate(names):
        for position, title in enumerate(models):
            value, low, high = intervals.loc[(title, name), ["value", "low", "high"]]
            style = model_style(title)
            y, colour = row + (position - (len(models) - 1) / 2) * step, style["color"]
            axis.plot([low, high], [y, y], color=colour, linewidth=1.5)
            label = title if row == 0 else None
            axis.plot(value, y, style["marker"], color=colour, markersize=5, label=label)
            axis.annotate(f" {value:.3f}", (high, y), va="center", fontsize=SMALL)
    axis.set_yticks(range(len(names)), [metric_label(name) for name in names])
    axis.invert_yaxis()
    axis.margins(x=0.08)  # room for the numbers
    axis.grid(axis="y", visible=False)
    axis.set(xlabel="value on Test, with 95 % interval")
    figure.legend(loc="outside upper center", ncols=len(models), fontsize=8)
    return figure


def cost_plot(intervals: pd.DataFrame, costs: dict[str, dict], names: list[str]) -> Figure:
    """Draw AUC on Test with its 95 % interval against each of the named costs.

    Args:
        intervals: index (model, metric), columns value, low, high, as `bootstrap` returns them.
        costs: by model title, the cost of each name.
        names: the costs, a panel each.
    """
    figure, axes = axes_grid(len(names), height=2.4, sharey=True)
    for axis, name in zip(axes, names, strict=True):
        largest = max(cost[name] for cost in costs.values())
        for title, cost in costs.items():
            value, low, high = intervals.loc[(title, "auc"), ["value", "low", "high"]]
            style = model_style(title)
            axis.plot([cost[name]] * 2, [low, high], color=style["color"], linewidth=1.5)
            axis.plot(cost[name], value, style["marker"], color=style["color"], markersize=6)
            right = cost[name] < 0.6 * largest  # keeps the title inside the axes
            axis.annotate(
                title, (cost[name], value), xytext=(8 if right else -8, 0), va="center",
                textcoords="offset points", ha="left" if right else "right", fontsize=8,
            )  # fmt: skip
        axis.set(xlabel=name, xlim=(0, 1.08 * largest))
    axes[0].set_ylabel("AUC on Test")
    return figure
