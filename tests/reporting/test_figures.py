from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from IPython.core.pylabtools import print_figure
from matplotlib.figure import Figure
from PIL import Image
from scipy.special import logit

from dfd_utils.reporting import (
    comparison_figures,
    data_figures,
    evaluation_figures,
    image_grids,
    style,
    training_figures,
)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def test_class_counts_names_every_bar():
    counts = pd.DataFrame({"Real": [1200, 3], "Fake": [1000, 4]}, index=["Train", "Test"])
    assert set(texts(data_figures.class_counts(counts))) >= {
        "Real 1,200",
        "Fake 1,000",
        "Real 3",
        "Fake 4",
    }


def test_confusion_matrix_shows_counts_and_shares_of_the_row():
    figure = evaluation_figures.confusion_matrices({"M": np.array([[8, 2000], [1, 4]])})
    assert texts(figure) == ["8\n0.4%", "2,000\n99.6%", "1\n20.0%", "4\n80.0%"]


def test_curves_carry_their_auc():
    table = pd.DataFrame({"label": [0, 0, 1, 1], "score": [0.1, 0.6, 0.4, 0.9]})
    figure = evaluation_figures.roc_and_precision_recall({"ResNet50": table})
    assert "AUC 0.750" in figure.axes[0].get_legend().get_texts()[0].get_text()
    # The order is that of the logits, where there are any.
    rounded = table.assign(score=1.0, logit=[40, 41, 42, 43])
    figure = evaluation_figures.roc_and_precision_recall({"ResNet50": rounded})
    labels = [axis.get_legend().get_texts()[0].get_text() for axis in figure.axes]
    assert labels == ["ResNet50, AUC 1.000", "ResNet50, AP 1.000"]
    figure = evaluation_figures.risk_coverage_curves({"ResNet50": rounded})
    (label,) = figure.axes[0].get_legend().get_texts()
    assert label.get_text() == "ResNet50, area 0.208"  # of the risks 0, 0, 1/3 and 1/2


def test_a_model_has_one_colour_everywhere():
    history = pd.DataFrame({"epoch": [1, 2]})
    for name in ("training_loss", "accuracy", "precision", "recall", "f1score"):
        history[name] = [0.5, 0.6]
    published = pd.DataFrame({"model": [], "epochs": [], "accuracy": []})
    epochs = training_figures.epoch_curves({"ResNet50": history}, published)
    table = pd.DataFrame({"label": [0, 1], "score": [0.1, 0.9]})
    roc = evaluation_figures.roc_and_precision_recall({"ResNet50": table})
    colours = {epochs.axes[0].lines[0].get_color(), roc.axes[0].lines[0].get_color()}
    assert colours == {style.MODEL_STYLES["ResNet50"]["color"]}


def test_saved_figures_are_the_same_bytes_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr(style, "FIGURES_DIR", tmp_path)
    style.use_style()
    counts = pd.DataFrame({"Real": [2], "Fake": [3]}, index=["Train"])
    for run in ("one", "two"):
        style.save_figure(data_figures.class_counts(counts), run, "01_counts")
    for suffix in ("png", "svg"):
        one, two = ((tmp_path / run / f"01_counts.{suffix}").read_bytes() for run in ("one", "two"))
        assert one == two
        assert len(one) > 1000


def test_dollar_signs_in_names_are_text(tmp_path):
    plain, strange = "a$b", r"$\frac{$"  # the second ends matplotlib's parser of formulas
    titles = evaluation_figures.confusion_matrices(dict.fromkeys([plain, strange], np.eye(2)))
    counts = pd.DataFrame({"Real": [2], "Fake": [3]}, index=[strange])
    for number, figure in enumerate((titles, data_figures.class_counts(counts))):
        for suffix in ("png", "svg"):  # without `use_style`, as `dfd evaluate` draws
            with mpl.rc_context({"text.parse_math": True}):
                assert style.write_figure(figure, tmp_path / f"{number}.{suffix}").is_file()
        assert print_figure(figure, "svg"), "a notebook displays it"


def test_gallery_draws_and_names_every_row(tiny_sample):
    folder = tiny_sample.path / "Train"
    rows = {name: sorted((folder / name).iterdir())[:n] for name, n in (("Real", 3), ("Fake", 2))}
    figure = image_grids.gallery(rows | {"Empty": []})
    assert sum(len(axis.images) for axis in figure.axes) == 5
    assert texts(figure) == ["Real", "Fake"]


def test_worst_duplicates_come_first(tiny_sample):
    paths = [
        f"Train/Real/{p.name}" for p in sorted((tiny_sample.path / "Train" / "Real").iterdir())
    ]
    pairs = pd.DataFrame({"path_a": paths[:4], "path_b": paths[1:5], "difference": [0.1, 2, 1, 0]})
    pairs["cluster"] = [0, 1, 2, 3]
    pairs["across_splits"] = [True, False, True, False]
    pairs["across_labels"] = [False, False, False, True]
    labels = texts(image_grids.worst_duplicates(tiny_sample.path, pairs, most=3))
    names = [text.splitlines()[1] for text in labels if "\n" in text]
    expected = [Path(paths[i]).name[-18:] for i in (3, 2, 0, 4, 3, 1)]  # a row, then its copies
    assert [name.removeprefix("…") for name in names] == expected
    nothing = image_grids.worst_duplicates(tiny_sample.path, pairs[:0])
    assert texts(nothing) == ["No duplicates were found."]
    assert print_figure(nothing, "svg"), "a notebook displays it"


def test_a_control_character_in_a_name_does_not_break_the_figure(tmp_path):
    (tmp_path / "Train" / "Real").mkdir(parents=True)
    paths = ["Train/Real/a\x1b\n.jpg", "Train/Real/b.jpg"]
    for path in paths:
        Image.new("RGB", (40, 40)).save(tmp_path / path)
    pair = {"path_a": paths[:1], "path_b": paths[1:], "difference": 0, "cluster": 0}
    pairs = pd.DataFrame(pair | {"across_splits": False, "across_labels": False})
    figure = image_grids.worst_duplicates(tmp_path, pairs)
    svg = style.write_figure(figure, tmp_path / "a.svg")
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert "Train Real\na\ufffd\ufffd.jpg" in texts(figure)


def test_distributions_accept_a_statistic_without_values_or_spread():
    files = pd.DataFrame({"split": ["Train", "Test"] * 4, "label": [0, 0, 1, 1] * 2})
    files = files.assign(jpeg_quality=np.nan, noise=2.0, sharpness=np.arange(8.0))
    figure = data_figures.distributions(files, ["jpeg_quality", "noise", "sharpness"])
    assert [axis.get_title() for axis in figure.axes] == ["noise", "sharpness", ""]


def degraded(auc: float) -> pd.DataFrame:
    rows = [("none", 0, 0.99), *(("blur", severity, auc) for severity in (1, 3, 5))]
    table = pd.DataFrame(rows, columns=["degradation", "severity", "auc"])
    table["accuracy"] = table["auc"] - 0.05
    for name in ("auc", "accuracy"):
        table[f"{name}_low"], table[f"{name}_high"] = table[name] - 0.02, table[name] + 0.01
    return table


def test_degradations_show_auc_and_accuracy_of_both_models():
    tables = {"ResNet50": degraded(0.75), "EfficientNet-B0": degraded(0.65)}
    auc, accuracy = evaluation_figures.degradation_curves(tables).axes
    assert auc.lines[0].get_ydata().tolist() == [0.99, 0.75, 0.75, 0.75]
    assert np.allclose(accuracy.lines[1].get_ydata(), [0.94, 0.60, 0.60, 0.60])
    band = auc.collections[0].get_paths()[0].vertices[:, 1]
    assert np.isclose(band.min(), 0.73) and np.isclose(band.max(), 1.0)


def test_many_degradations_are_drawn_in_blocks_of_two_rows():
    parts = [degraded(0.75)]
    parts += [degraded(0.7)[1:].assign(degradation=f"kind {number}") for number in range(7)]
    figure = evaluation_figures.degradation_curves({"ResNet50": pd.concat(parts)})
    shown = [axis for axis in figure.axes if axis.get_visible()]
    titles = [axis.get_title() for axis in shown]
    assert titles[:6] == ["blur", *(f"kind {number}" for number in range(5))]
    assert titles[12:14] == ["kind 5", "kind 6"]
    assert len(shown) == 2 * 8
    assert all(axis.lines for axis in shown)


def test_spectra_are_drawn_by_channel_around_zero():
    difference = np.zeros((3, 8, 8))
    difference[0, 7, 7] = -2
    *panels, bar = evaluation_figures.spectrum_heat_maps(difference).axes
    assert [axis.get_title() for axis in panels] == ["Y", "Cb", "Cr"]
    assert panels[0].collections[0].get_array().ravel()[-1] == -2
    assert bar.get_ylim() == (-2, 2)


def test_cost_is_drawn_with_the_interval_of_the_auc():
    index = pd.MultiIndex.from_tuples([("A", "auc"), ("B", "auc")], names=["model", "metric"])
    intervals = pd.DataFrame({"value": [0.9, 0.8], "low": 0.7, "high": 0.95}, index)
    figure = comparison_figures.cost_plot(intervals, {"A": {"x": 1.0}, "B": {"x": 2.0}}, ["x"])
    (axis,) = figure.axes
    assert list(axis.lines[0].get_ydata()) == [0.7, 0.95]
    assert [line.get_xdata()[0] for line in axis.lines] == [1, 1, 2, 2]
    assert texts(figure) == ["A", "B"]


def test_reliability_is_drawn_before_and_after():
    before = [0.1, 0.7, 0.95]
    table = pd.DataFrame({"label": [0, 1, 1], "score": [0.2, 0.6, 0.9], "logit": logit(before)})
    axis = evaluation_figures.reliability_diagram({"M": table}).axes[0]
    assert axis.lines[1].get_xdata() == pytest.approx(before)
    assert axis.lines[2].get_xdata().tolist() == [0.2, 0.6, 0.9]
