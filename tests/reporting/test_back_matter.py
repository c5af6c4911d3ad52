"""The report's last chapters: their numbers, and that their links lead somewhere."""

import re
import shutil
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell

from dfd_utils.config import PROJECT_ROOT
from dfd_utils.evaluation.evaluate import evaluate
from dfd_utils.models.trained import find_models
from dfd_utils.reporting.back_matter import BASE_RATES, back_matter, base_rate_table
from dfd_utils.reporting.export import export_report
from dfd_utils.reporting.front_matter import on_test
from tests.reporting.test_export import write


@pytest.fixture(scope="module")
def models(trained_run, easy_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("back") / "one"
    shutil.copytree(trained_run, folder, ignore=shutil.ignore_patterns("check*", "epochs"))
    evaluate(find_models(folder), easy_data, log=lambda line: None, resamples=20)
    return on_test(folder, easy_data)


@pytest.fixture(scope="module")
def chapters(models, easy_data):
    return back_matter(models, easy_data)


def test_base_rates_are_those_of_counted_images(models, easy_data):
    table = base_rate_table(models, easy_data)
    for title, model in models.items():
        scored = model.predictions(easy_data, "Test")
        called = scored["score"] >= model.description.threshold
        fakes = scored["label"] == 1
        for rate, column in zip(BASE_RATES, table.columns[1:], strict=True):
            # As if there were 1 / rate images, of which one is fake.
            found, false = called[fakes].mean(), (1 / rate - 1) * called[~fakes].mean()
            shown = float(table.loc[title, column].split("%")[0])
            assert shown == pytest.approx(100 * found / (found + false), abs=0.051)
            value, low, high = (
                float(n) for n in re.findall(r"([\d.]+)%", table.loc[title, column])
            )
            assert low <= value <= high


def test_a_model_that_calls_nothing_fake_has_no_such_share(easy_data):
    rates = {"recall": 0.0, "real_called_fake": 0.0, "threshold": 0.9}
    rates["intervals"] = {"recall": [0.0, 0.1], "real_called_fake": [0.0, 0.1]}
    model = SimpleNamespace(metrics=lambda data, split: {"at_validation_threshold": rates})
    assert set(base_rate_table({"M": model}, easy_data).loc["M"][1:]) == {"none is called Fake"}


def test_the_checklist_has_all_items_with_an_answer(chapters, easy_data):
    (text,) = (t for t in chapters if t.startswith("# Reporting checklist"))
    rows = re.findall(r"^\| (\d\w) \| (.+?) \| (.+?) \|", text, flags=re.MULTILINE)
    items = {1: "abc", 2: "abcde", 3: "abcdefg", 4: "abc", 5: "abcdef", 6: "abc", 7: "abc", 8: "ab"}
    assert [row[0] for row in rows] == [f"{n}{a}" for n, letters in items.items() for a in letters]
    assert all(len(row[2]) > 3 for row in rows if row[0] not in ("6b",))
    images = easy_data.images
    train = [((images["split"] == "Train") & (images["label"] == n)).sum() for n in (0, 1)]
    assert f"Train {train[0]} + {train[1]}, Validation" in text
    assert "`easy`" in text
    assert "drawn" not in text  # that is the sample's


def test_links_lead_to_headings_of_the_notebooks(chapters):
    links = re.findall(r"\]\((\w+)\.ipynb#?([^)]*)\)", "\n".join(chapters))
    assert len(links) > 20
    for name, section in links:
        book = nbformat.read(PROJECT_ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        headings = re.findall(r"^#+ (.+)$", "\n".join(c.source for c in book.cells), re.MULTILINE)
        slugs = {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", h.lower())) for h in headings}
        assert not section or section in slugs, (name, section)


def test_they_are_chapters_of_the_report(chapters, tmp_path):
    first = write(tmp_path, "01_explore_data", new_markdown_cell("# 1. Explore\n\n## The data set"))
    (page,) = export_report([first], tmp_path / "report", "F", "A", pdf=False, back=chapters)
    html = page.read_text()
    titles = ("1. Explore", "Limits and ethics", "Reporting checklist", "Glossary")
    places = [html.rindex(f">{title}</h1>") for title in titles]
    assert places == sorted(places)
    assert 'href="#01_explore_data-the-data-set"' in html
    assert html.count('href="#limits-and-ethics-limits"') == 3  # the contents and two items
