"""The common style of all figures, and how figures are saved."""

import io
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.text import Text

from dfd_utils.config import FIGURES_DIR
from dfd_utils.runtime.files import write_atomic

WIDTH = 7.0  # inches: the text width of the report's A4 page
SMALL = 7  # points: text inside the axes
# Okabe and Ito's palette, which the colour-blind and readers of grey prints can tell apart.
CLASS_COLOURS = {"Real": "#0072B2", "Fake": "#D55E00"}
# Other colours than the classes', with three levels of grey, three markers and three line styles.
MODEL_STYLES = {
    "ResNet50": {"color": "#332288", "marker": "o", "linestyle": "-"},
    "EfficientNet-B0": {"color": "#CC79A7", "marker": "s", "linestyle": (0, (5, 1))},
    "DCT baseline": {"color": "#999933", "marker": "v", "linestyle": (0, (1, 1))},
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
}
OUTPUT = {
    "svg.hashsalt": "dfd",  # the same figure gives the same bytes
    "text.parse_math": False,  # names may contain dollar signs
}


def use_style() -> None:
    """Set the common style of all figures, and SVG as their format in a notebook."""
    mpl.rcParams.update(STYLE | OUTPUT)
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg", metadata={"Date": None})
    except (ImportError, AttributeError):  # not in a notebook
        pass


def write_figure(figure: Figure, path: Path) -> Path:
    """Write a figure in the format of the path's suffix, whole or not at all."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if path.suffix == ".svg" else None
    for text in figure.findobj(Text):  # those made before or without `use_style`
        text.set_parse_math(False)
    with mpl.rc_context(OUTPUT):
        figure.savefig(buffer, format=path.suffix[1:], dpi=200, metadata=metadata)
    return write_atomic(path, buffer.getvalue())


def save_figure(figure: Figure, run: str, name: str) -> Figure:
    """Write `figures/<run>/<name>.png` and `.svg`; return the figure, which a notebook displays."""
    for suffix in ("png", "svg"):
        write_figure(figure, FIGURES_DIR / run / f"{name}.{suffix}")
    return figure


def model_style(title: str) -> dict:
    """Return colour, marker and line style of a model, the same in every figure."""
    return MODEL_STYLES.get(title, OTHER_MODEL)


def axes_grid(columns: int = 1, rows: int = 1, height: float = 2.8, **options):
    """Return a figure as wide as the page and its axes, row by row; height in inches."""
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes.ravel()
