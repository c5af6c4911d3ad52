"""The report: what is refused, what is shown, what is left out, and that nothing is fetched."""

import re
import time
from pathlib import Path

import nbformat
import pandas as pd
import pypandoc
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from dfd_utils.config import UserError
from dfd_utils.reporting import export

PIXEL = (  # a red PNG of one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJg"
    "gg=="
)
SVG = """<svg xmlns="http://www.w3.org/2000/svg" width="504pt" height="200pt">
<path d="M0 0h9v9z"/></svg>"""
STYLED = """<style type="text/css">
#T_1_row0_col1 { background-color: #fff3c4; font-weight: bold; }
</style><div><table id="T_1" class="dataframe"><thead><tr><th>&nbsp;</th><th>model</th><th>f1</th>
</tr></thead><tbody><tr><th>0</th><td id="T_1_row0_col0">ResNet50</td>
<td id="T_1_row0_col1">0.9437</td></tr></tbody></table></div><script src="https://x.invalid/a.js">
</script>"""
WIDE = pd.DataFrame([[0.1234] * 14]).to_html()


def shown(mime, data):
    return new_output("display_data", {mime: data, "text/plain": "<fallback>"})


def printed(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def code(source, *outputs, tags=(), count=1):
    metadata = {"tags": list(tags)}
    return new_code_cell(source, execution_count=count, outputs=list(outputs), metadata=metadata)


def write(folder: Path, name: str, *cells) -> Path:
    path = folder / f"{name}.ipynb"
    for number, cell in enumerate(cells):
        cell.id = f"c{number}"
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


@pytest.fixture(autouse=True)
def fixed_date(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1731542400")


@pytest.fixture
def notebooks(tmp_path):
    (tmp_path / "plan.svg").write_text(SVG)
    first = write(
        tmp_path,
        "01_explore_data",
        new_markdown_cell(
            "# 1. Explore the data\n\nNext: [the evaluation](04_evaluate.ipynb), [its end]"
            "(04_evaluate.ipynb#Summary), [nowhere](09_none.ipynb), [docs](https://example.org/d).\n"
            "\n![the plan](plan.svg)\n\n![badge](https://x.invalid/badge.svg)\n\n"
            '<script src="https://x.invalid/b.js"></script>\n\nAn inline $x^2$ and\n\n'
            "\\begin{align}\na &= b\n\\end{align}"
        ),
        code("epochs = 3  # passes", tags=["parameters"]),
        code("secret_cell = 1", printed("secret_output"), tags=["remove-cell"]),
        code("hidden_code = 1", printed("kept_output"), tags=["remove-input"]),
        code(
            "noisy()",
            printed("  0%|          | 0/5 [00:00<?, ?it/s]\r100%|##########| 5/5 [00:01<00:00]\n"),
            printed("a UserWarning", name="stderr"),
            printed("\x1b[31mepoch 1\x1b[0m done\n"),
            shown("application/vnd.jupyter.widget-view+json", {"model_id": "w"}),
            new_output(
                "execute_result", {"text/plain": "<Figure size 700x500>"}, execution_count=1
            ),
            printed("\n"),
        ),
        code("many()", printed("".join(f"line {i} of many\n" for i in range(100)))),
        code("draw()", shown("image/svg+xml", SVG)),
        new_markdown_cell("**Figure 1.1.** Faces of *Train*. Notice the border.\n\nMore prose."),
        new_markdown_cell("## Summary\n\nFirst summary.\n\n## Summary\n\nOnce more."),
    )
    second = write(
        tmp_path,
        "04_evaluate",
        new_markdown_cell("# 4. Evaluate\n\nBack to [the data](01_explore_data.ipynb)."),
        code("draw()", shown("image/png", PIXEL)),
        code(
            "f()", shown("text/markdown", "**Figure 4.1.** Written by *code*."), tags=["hide-input"]
        ),
        code("table", shown("text/html", STYLED)),
        new_markdown_cell("**Table 4.1.** The metrics."),
        code("wide", shown("text/html", WIDE), printed("z" * 300)),
        new_markdown_cell("## Summary\n\nSecond summary."),
    )
    return [first, second]


def export(notebooks, out, **options):
    return export.export_report(notebooks, out, "Deep Fakes & Faces", "Ada L., Bo K.", **options)


@pytest.fixture
def html(notebooks, tmp_path):
    (page,) = export(notebooks, tmp_path / "out" / "report", pdf=False, subtitle="A subtitle")
    return page.read_text(encoding="utf-8")


def fetched(html: str) -> list[str]:
    """Addresses that a browser would fetch by itself; links that a reader follows are none."""
    html = re.sub(r'data:[^"\')]*', "", re.sub(r"<a\s[^>]*>", "", html))
    found = re.findall(r'\s(?:src|href|data|action|poster)\s*=\s*["\']?([^"\'\s>]*)', html)
    found += re.findall(r'(?:url\(|@import)\s*["\']?([^"\')]*)', html)
    return [address for address in found if address and not address.startswith("#")]


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (code("fit()", count=None), "was not executed"),
        (
            code("fit()", new_output("error", ename="KeyError", evalue="x", traceback=[])),
            "ended in KeyError",
        ),
    ],
)
def test_unfinished_notebook_is_refused(tmp_path, cell, words):
    path = write(tmp_path, "02_train", new_markdown_cell("# T"), code("", count=None), cell)
    with pytest.raises(UserError, match=rf"02_train.*cell 3.*fit\(\).*{words}.*run") as caught:
        export([path], tmp_path / "report")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("report*"))


def test_other_unusable_input_is_refused(tmp_path, monkeypatch, notebooks):
    broken = tmp_path / "broken.ipynb"
    broken.write_text("{")
    for path in (broken, tmp_path / "absent.ipynb"):
        with pytest.raises(UserError, match=f"{path.name}.*run"):
            export.check_executed(path)
    with pytest.raises(UserError, match="no notebooks"):
        export([], tmp_path / "report")
    monkeypatch.setattr(pypandoc, "get_pandoc_version", lambda: "2.19.2")
    with pytest.raises(UserError, match=r"pandoc 3.*pip install"):
        export(notebooks, tmp_path / "report")


def test_html_fetches_nothing_and_holds_no_script(html, caplog):
    assert not caplog.get_records("setup")  # no try to fetch the badge either
    assert fetched(html) == []
    assert "<script" not in html and "x.invalid" not in html
    assert 'href="https://example.org/d"' in html
    assert html.count("data:image/svg+xml") == 2  # the plan and figure 1.1


def test_contents_and_links_lead_to_unique_ids(html):
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)
    contents = html[html.index("<nav") : html.index("</nav>")]
    for target, title in [
        ("01_explore_data", "1. Explore the data"),
        ("01_explore_data-summary", "Summary"),
        ("01_explore_data-summary-2", "Summary"),
        ("04_evaluate", "4. Evaluate"),
        ("04_evaluate-summary", "Summary"),
    ]:
        assert re.search(rf'href="#{target}"[^>]*>{title}<', contents)
    body = html[html.index("<main") :]
    assert '<a href="#04_evaluate">the evaluation</a>' in body
    assert '<a href="#04_evaluate-summary">its end</a>' in body
    assert '<a href="#01_explore_data">the data</a>' in body
    assert ".ipynb" not in html and "nowhere" in body


def test_title_block(html):
    for words in ("Deep Fakes &amp; Faces", "Ada L., Bo K.", "A subtitle", "14 November 2024"):
        assert words in re.sub(r"\s+", " ", html[: html.index("<main")])


def test_figures_have_captions_and_alternative_texts(html):
    figures = re.findall(r"<figure.*?</figure>", html, re.S)
    first, second, table = [re.sub(r"\s+", " ", figure) for figure in figures]
    assert 'alt="Figure 1.1. Faces of Train. Notice the border."' in first
    assert "<strong>Figure 1.1.</strong> Faces of <em>Train</em>" in first
    assert "More prose" not in first and "More prose" in html
    assert 'alt="Figure 4.1. Written by code."' in second  # a caption that a cell computed
    assert "<strong>Table 4.1.</strong> The metrics." in table and "<table" in table


def test_tables_are_tables_with_numbers_to_the_right(html):
    table = html[html.index("ResNet50") - 600 : html.index("0.9437") + 60]
    assert re.search(r"text-align: left;?[^>]*>ResNet50", table)
    number = re.search(r"<td[^>]*>(?=0\.9437)", table)[0]
    assert "text-align: right" in number and "#fff3c4" in number  # and the Styler's colour


def test_formulas_become_mathml(html):
    assert html.count("<math") == 2 and "<mtable" in html


def test_tags_and_debris(html):
    text = re.sub(r"<[^>]+>", "", html[html.index("<main") :])
    for gone in ("secret_", "hidden_code", "0/5", "5/5", "UserWarning", "\x1b", "[31m", "\r"):
        assert gone not in text
    assert not re.search(r"<pre[^>]*>(<code[^>]*>)?\s*</", html)  # empty outputs
    assert "fallback" not in text and "Figure size" not in text
    for kept in ("kept_output", "epoch 1 done", "epochs", "line 0 of", "line 99 of"):
        assert kept in text
    assert "… 61 lines left out …" in text and text.count("of many") == 39


def test_pdf_is_a4_and_exports_are_reproducible(notebooks, tmp_path):
    kept = {}
    written = export(notebooks, tmp_path / "a" / "report.v1")
    assert [path.name for path in written] == ["report.v1.html", "report.v1.pdf"]
    time.sleep(1.1)  # the clock leaves no trace either
    for first, second in zip(written, export(notebooks, tmp_path / "b" / "report.v1"), strict=True):
        kept[first.suffix] = first.read_bytes()
        assert kept[first.suffix] == second.read_bytes()
    pdf = kept[".pdf"]
    assert pdf.startswith(b"%PDF-") and len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 3
    boxes = re.findall(rb"/MediaBox\s*\[0 0 ([\d.]+) ([\d.]+)\]", pdf)
    assert {(round(float(w)), round(float(h))) for w, h in boxes} == {(595, 842)}
    assert not list(tmp_path.glob("a/.*"))


@pytest.mark.parametrize("fails", ["_write_pdf", "_pandoc"])
def test_failed_export_leaves_the_earlier_report(notebooks, tmp_path, monkeypatch, fails):
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("earlier")
    (out / "report.pdf").write_text("earlier")

    def fail(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(export, fails, fail)
    with pytest.raises(RuntimeError, match="broken"):
        export(notebooks, out / "report")
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        "report.html": "earlier",
        "report.pdf": "earlier",
    }


def test_notebook_html_has_the_jupyter_look_without_network(notebooks, tmp_path):
    page = export.export_notebook_html(notebooks[0], tmp_path / "out" / "01.html")
    html = page.read_text(encoding="utf-8")
    assert fetched(html) == [] and "<script" not in html and "jp-Notebook" in html
    assert html.count("<math") == 2 and 'href="04_evaluate.html#summary"' in html
    assert "secret_" not in html and "hidden_code" not in html and "kept_output" in html
    assert "5/5" not in html and "UserWarning" not in html
    assert html[html.index("<main") :].count("data:image/svg+xml") == 2
    with pytest.raises(UserError, match="was not executed"):
        bad = write(tmp_path, "bad", code("x", count=None))
        export.export_notebook_html(bad, tmp_path / "out" / "bad.html")
    assert [path.name for path in page.parent.iterdir()] == ["01.html"]
