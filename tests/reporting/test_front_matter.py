"""The report's first page: what it says, and that it is the first page of both reports."""

import re
import shutil

import pytest
from nbformat.v4 import new_markdown_cell
from pypdf import PdfReader

from dfd_utils.evaluation.evaluate import evaluate
from dfd_utils.models.trained import TrainedModel, find_models
from dfd_utils.reporting import front_matter
from dfd_utils.reporting.export import export_report
from dfd_utils.stats.paired_tests import delong
from tests.reporting.test_export import write


@pytest.fixture
def run(trained_run, easy_data, tmp_path, monkeypatch):
    folder = tmp_path / "one"
    shutil.copytree(trained_run, folder, ignore=shutil.ignore_patterns("check*", "epochs"))
    monkeypatch.setattr(front_matter, "FIGURES_DIR", tmp_path / "figures")
    figure = tmp_path / "figures" / "one" / front_matter.FIGURE
    figure.parent.mkdir(parents=True)
    figure.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="200" height="80"><rect width="9" '
        'height="9"/></svg>'
    )
    evaluate(find_models(folder), easy_data, log=lambda line: None, resamples=20)
    return folder


def test_numbers_are_those_of_the_runs_files(run, easy_data):
    text, figure = front_matter.front_matter(front_matter.on_test(run, easy_data), easy_data)
    models = [TrainedModel(run / name) for name in ("resnet50", "efficientnet_b0")]
    for model in models:
        entry = model.metrics(easy_data, "Test")
        low, high = entry["intervals"]["auc"]
        assert f"| {model.title} | {entry['auc']:.3f} [{low:.3f}, {high:.3f}] |" in text
    tables = [model.predictions(easy_data, "Test") for model in models]
    test = delong(tables[0]["label"], *(table["logit"] for table in tables))
    sign = re.search(r"ResNet50 minus EfficientNet-B0: AUC (-?[\d.]+)", text)[1]
    assert abs(float(sign) - test["difference"]) < 6e-4
    assert text.index("| ResNet50 |") < text.index("| EfficientNet-B0 |")
    assert "data set `easy`" in text
    assert "evidence about real" not in text  # that note is for the sample
    assert figure.name in text


def test_without_results_of_both_networks_there_is_no_first_page(run, easy_data):
    (run / "resnet50" / "predictions_Test.csv").unlink()
    assert front_matter.front_matter(front_matter.on_test(run, easy_data), easy_data) is None


def test_it_stands_before_the_contents(run, easy_data, tmp_path):
    chapter = write(tmp_path, "01_one", new_markdown_cell("# 1. One\n\n## Section"))
    front = front_matter.front_matter(front_matter.on_test(run, easy_data), easy_data)
    page, pdf = export_report([chapter], tmp_path / "report", "Faces", "Ada L.", front=front)
    html = page.read_text()
    places = [html.index(text) for text in ("Question.", "Table 0.1.", "Contents", "1. One")]
    assert places == sorted(places)
    assert html.count("<img") == 1
    pages = [page.extract_text() for page in PdfReader(pdf).pages]
    assert "would change our mind" in " ".join(pages[0].split())
    assert "Contents" in pages[1]
