from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dfd_utils import config, galleries, plots


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def test_class_counts_names_every_bar():
    counts = pd.DataFrame({"Real": [1200, 3], "Fake": [1000, 4]}, index=["Train", "Test"])
    assert set(texts(plots.class_counts(counts))) >= {
        "Real 1,200",
        "Fake 1,000",
        "Real 3",
        "Fake 4",
    }


def test_confusion_matrix_shows_counts_and_shares_of_the_row():
    shown = texts(plots.confusion_matrices({"M": np.array([[8, 2], [1, 4]])}))
    assert shown == ["8\n80.0%", "2\n20.0%", "1\n20.0%", "4\n80.0%"]


def test_curves_carry_their_auc():
    table = pd.DataFrame({"label": [0, 0, 1, 1], "score": [0.1, 0.6, 0.4, 0.9]})
    figure = plots.roc_and_precision_recall({"ResNet50": table})
    assert "AUC 0.750" in figure.axes[0].get_legend().get_texts()[0].get_text()


def test_a_model_has_one_colour_everywhere():
    history = pd.DataFrame({"epoch": [1, 2]})
    for name in ("training_loss", "accuracy", "precision", "recall", "f1score"):
        history[name] = [0.5, 0.6]
    published = pd.DataFrame({"model": [], "epochs": [], "accuracy": []})
    epochs = plots.epoch_curves({"ResNet50": history}, published)
    table = pd.DataFrame({"label": [0, 1], "score": [0.1, 0.9]})
    roc = plots.roc_and_precision_recall({"ResNet50": table})
    colours = {epochs.axes[0].lines[0].get_color(), roc.axes[0].lines[0].get_color()}
    assert colours == {plots.MODEL_COLOURS["ResNet50"]}


def test_saved_figures_are_the_same_bytes_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "FIGURES_DIR", tmp_path)
    plots.use_style()
    counts = pd.DataFrame({"Real": [2], "Fake": [3]}, index=["Train"])
    for run in ("one", "two"):
        plots.save_figure(plots.class_counts(counts), run, "01_counts")
    for suffix in ("png", "svg"):
        one, two = ((tmp_path / run / f"01_counts.{suffix}").read_bytes() for run in ("one", "two"))
        assert one == two
        assert len(one) > 1000


def test_gallery_places_every_picture_and_caption(tiny_sample):
    folder = tiny_sample / "Train"
    rows = {name: sorted((folder / name).iterdir())[:3] for name in config.CLASSES}
    figure = galleries.gallery(rows, [f"picture {number}" for number in range(6)])
    assert sum(len(axis.images) for axis in figure.axes) == 6
    assert {f"picture {number}" for number in range(6)} | {"Real", "Fake"} == set(texts(figure))


def test_worst_duplicates_come_first(tiny_sample):
    paths = [f"Train/Real/{p.name}" for p in sorted((tiny_sample / "Train" / "Real").iterdir())]
    pairs = pd.DataFrame({"path_a": paths[:4], "path_b": paths[1:5], "difference": [0.1, 2, 1, 0]})
    pairs["cluster"] = [0, 1, 2, 3]
    pairs["across_splits"] = [True, False, True, False]
    pairs["across_labels"] = [False, False, False, True]
    shown = texts(galleries.worst_duplicates(tiny_sample, pairs, most=3))
    names = [text.splitlines()[1] for text in shown if "\n" in text]
    expected = [Path(paths[i]).name[-18:] for i in (3, 2, 0, 4, 3, 1)]  # a row, then its copies
    assert [name.removeprefix("…") for name in names] == expected
    nothing = galleries.worst_duplicates(tiny_sample, pairs[:0])
    assert nothing.texts[0].get_text() == "No duplicates were found."


def test_distributions_bear_a_statistic_without_values_or_spread():
    files = pd.DataFrame({"split": ["Train", "Test"] * 4, "label": [0, 0, 1, 1] * 2})
    files = files.assign(jpeg_quality=np.nan, noise=2.0, sharpness=np.arange(8.0))
    figure = plots.distributions(files, ["jpeg_quality", "noise", "sharpness"])
    assert [axis.get_title() for axis in figure.axes] == ["noise", "sharpness", ""]
