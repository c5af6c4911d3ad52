"""The style of all figures, how they are saved, and the figures of the data and the training.

A function takes data and returns a matplotlib Figure; none knows a torch model.
"""

import io
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from dfd_utils.config import CLASSES, FIGURES_DIR, write_whole

WIDTH = 7.0  # inches: the text width of the report's A4 page
# Okabe and Ito's palette, told apart by the colour-blind and in grey print.
CLASS_COLOURS = {"Real": "#0072B2", "Fake": "#D55E00"}
# Other colours than the classes', dark, light and between: told apart in grey, and by marker and
# line too.
MODEL_STYLES = {
    "ResNet50": {"color": "#332288", "marker": "o", "linestyle": "-"},
    "EfficientNet-B0": {"color": "#CC79A7", "marker": "s", "linestyle": (0, (5, 1))},
    "Average of both": {"color": "#117733", "marker": "D", "linestyle": (0, (3, 1, 1, 1))},
}
OTHER_MODEL = {"color": "#555555", "marker": "^", "linestyle": "-"}
REFERENCE = {"color": "#888888", "linestyle": ":", "linewidth": 1}  # chance, perfect calibration
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
    with mpl.rc_context({"svg.hashsalt": STYLE["svg.hashsalt"]}):
        figure.savefig(buffer, format=path.suffix[1:], dpi=200, metadata=metadata)
    return write_whole(path, buffer.getvalue())


def save_figure(figure: Figure, run: str, name: str) -> Figure:
    """Write `figures/<run>/<name>.png` and `.svg`; return the figure, so that a cell shows it."""
    for suffix in ("png", "svg"):
        write_figure(figure, FIGURES_DIR / run / f"{name}.{suffix}")
    return figure


def model_style(title: str) -> dict:
    """Return colour, marker and line style of a model, the same in every figure."""
    return MODEL_STYLES.get(title, OTHER_MODEL)


def axes_grid(columns: int = 1, rows: int = 1, height: float = 2.8, **options):
    """Return a figure of the page's width and its axes, row by row; height in inches."""
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes.ravel()


def class_counts(counts: pd.DataFrame) -> Figure:
    """Bars of images by split (index) and class (columns Real and Fake)."""
    figure, (axis,) = axes_grid(height=2.2)
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
    figure, axes = axes_grid(3, -(-len(statistics) // 3), 1.75 * -(-len(statistics) // 3))
    named = files.assign(label=files["label"].map(dict(enumerate(CLASSES))))
    for axis, statistic in zip(axes, statistics, strict=False):
        sns.boxplot(
            named, x="split", y=statistic, hue="label", palette=CLASS_COLOURS, ax=axis,
            showfliers=False, linewidth=0.8, width=0.7, hue_order=CLASSES,
        )  # fmt: skip
        title = statistic.replace("_", " ").replace("jpeg", "JPEG")
        axis.set(title=title, xlabel="", ylabel="")
        axis.grid(axis="x", visible=False)
        handles, labels = axis.get_legend_handles_labels()
        axis.get_legend().remove()
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    for axis in axes[len(statistics) :]:
        axis.axis("off")
    return figure


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
