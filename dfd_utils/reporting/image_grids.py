"""Grids of images: galleries, duplicates, and heat maps over images."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from PIL import Image

from dfd_utils.config import CLASSES
from dfd_utils.data.image_io import read_pixels
from dfd_utils.reporting.formatting import printable
from dfd_utils.reporting.style import WIDTH, axes_grid


def _image_grid(
    rows: int, columns: int, below: tuple = (0.0,), above: float = 0.0, gap_after: int = 0
) -> tuple[Figure, np.ndarray]:
    """Return a figure and its axes `[rows, columns]`, square and adjacent, with room for row names.

    Args:
        rows, columns: of the grid.
        below: space below the rows in inches, repeated from row to row.
        above: space above the grid in inches.
        gap_after: a number of columns after which a gap follows; 0: no gap.
    """
    gap = 0.12 if gap_after else 0.0
    side = (WIDTH - 0.3 - gap) / columns
    heights = [side + below[row % len(below)] for row in range(rows)]
    height = above + sum(heights)
    # Axes are placed explicitly: constrained layout would separate the images. After `savefig`,
    # matplotlib 3.11 takes "no engine" for "that of the style"; an engine that does nothing stays.
    nothing = PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=True)
    figure = Figure(figsize=(WIDTH, height), layout=nothing)
    axes = np.empty((rows, columns), object)
    for row, column in np.ndindex(rows, columns):
        bottom = height - above - sum(heights[:row]) - side
        left = 0.3 + column * side + gap * (column >= gap_after)
        box = left / WIDTH, bottom / height, side / WIDTH, side / height
        axes[row, column] = figure.add_axes(box)
        axes[row, column].axis("off")
    return figure, axes


def _show(axis: Axes, path: Path) -> None:
    # The limits leave a white border between neighbours.
    axis.imshow(Image.fromarray(read_pixels(path)).resize((160, 160)))
    axis.set(xlim=(-3, 163), ylim=(163, -3))


def _show_heat(axis: Axes, heat: np.ndarray) -> None:
    axis.imshow(heat, cmap="inferno", alpha=0.6, extent=(0, 160, 160, 0))
    axis.set(xlim=(-3, 163), ylim=(163, -3))


def _name_row(axis: Axes, title: str) -> None:
    label = {"rotation": 90, "ha": "right", "va": "center", "fontweight": "bold", "fontsize": 8}
    axis.text(-10, 80, title.replace("EfficientNet", "EffNet"), **label)


def gallery(rows: dict[str, list[Path]]) -> Figure:
    """Draw a row of image files per entry, with its name at the left."""
    columns = max(len(paths) for paths in rows.values())
    figure, axes = _image_grid(len(rows), columns)
    for row, (title, paths) in enumerate(rows.items()):
        for axis, path in zip(axes[row], paths, strict=False):
            _show(axis, path)
        if paths:
            _name_row(axes[row, 0], title)
    return figure


def worst_duplicates(folder: Path, pairs: pd.DataFrame, most: int = 6) -> Figure:
    """Draw the worst duplicates of an audit, each image above its copy.

    Pairs with two labels come first, then pairs in two splits, then the least similar pairs; of a
    cluster of duplicates, one pair is drawn.

    Args:
        folder: the folder of the data set.
        pairs: the content of duplicates.csv.
        most: the largest number of pairs.
    """
    order = ["across_labels", "across_splits", "difference"]
    worst = pairs.sort_values(order, ascending=False, kind="stable")
    worst = worst.drop_duplicates("cluster").head(most)
    if worst.empty:
        figure, (axis,) = axes_grid(height=0.5)
        axis.set_axis_off()
        axis.text(0.5, 0.5, "No duplicates were found.", ha="center", va="center")
        return figure
    figure, axes = _image_grid(2, max(len(worst), 4), (0.32,))
    for column, pair in enumerate(worst.itertuples()):
        for row, path in enumerate((pair.path_a, pair.path_b)):
            _show(axes[row, column], folder / path)
            split, name, *_, file = printable(path).split("/")
            text = f"{split} {name}\n{file if len(file) < 20 else '…' + file[-18:]}"
            axes[row, column].text(80, 166, text, ha="center", va="top", fontsize=6)
    _name_row(axes[0, 0], "image")
    _name_row(axes[1, 0], "copy")
    return figure


def heat_maps(paths: list[Path], maps: dict[str, np.ndarray], masks: list[Path] | None) -> Figure:
    """Draw images in the first row, and a model's heat maps over them in each row below.

    Args:
        paths: the files of `N` images.
        maps: by model title, heat maps `[N, S, S]`.
        masks: image files of the swapped regions, whose outlines are drawn; None: no outlines.
    """
    figure, axes = _image_grid(1 + len(maps), len(paths))
    for column, path in enumerate(paths):
        for row, title in enumerate(["image", *maps]):
            axis = axes[row, column]
            _show(axis, path)
            if row:
                _show_heat(axis, maps[title][column])
            if masks:
                mask = np.asarray(Image.open(masks[column]).resize((160, 160)))
                axis.contour(mask, [128], colors="white", linewidths=0.9)
            if column == 0:
                _name_row(axis, title)
    return figure


def error_gallery(
    chosen: dict[str, pd.DataFrame], maps: dict[str, np.ndarray], data: Path, images: int
) -> Figure:
    """Draw each model's most confident mistakes and most uncertain images above their heat maps.

    Args:
        chosen: by model title, the result of `select_error_examples`: kind, path, label, score.
        maps: by model title, heat maps `[N, S, S]` of those images.
        data: the folder of the data set.
        images: columns for each of the two kinds.
    """
    kinds = {"mistake": "most confident mistakes", "uncertain": "most uncertain"}
    figure, axes = _image_grid(2 * len(chosen), 2 * images, (0.17, 0.08), 0.22, images)
    for column, heading in zip((0, images), kinds.values(), strict=True):
        axes[0, column].text(0, -12, heading, fontweight="bold", fontsize=9, va="bottom")
    for index, (title, table) in enumerate(chosen.items()):
        for start, kind in zip((0, images), kinds, strict=True):
            for column, row in enumerate(np.flatnonzero(table["kind"] == kind), start=start):
                example = table.iloc[row]
                upper, lower = axes[2 * index : 2 * index + 2, column]
                for axis in (upper, lower):
                    _show(axis, data / example["path"])
                caption = f"{CLASSES[example['label']]}, {example['score']:.2f}"
                upper.text(80, 166, caption, ha="center", va="top", fontsize=7)
                _show_heat(lower, maps[title][row])
        _name_row(axes[2 * index, 0], title)
    return figure
