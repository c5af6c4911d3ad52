"""The report: what it refuses, contains and leaves out, and that it fetches nothing."""

import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pypandoc
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from pypdf import PdfReader

from dfd_utils.config import UserError
from dfd_utils.reporting import comparison_text, data_text, export
from tests.reporting.test_comparison_text import comparison
from tests.reporting.test_data_text import audit_summary

NAMES = [
    "0`<iframe src=x onload=alert(1)>`.jpg", "<script>alert(1)</script>", "<!-- a.jpg", "&lt;b.jpg",
    "[a](https://x.invalid/b.jpg)", "![a](x.png)", "https://x.invalid/a.jpg", "www.x.invalid",
    "a@x.invalid", "a | b.jpg", "*a*.jpg", "_a_ ~~b~~ :cat:", "# a", "$x^2$.jpg", "$\\input{a}$",
    "\\begin{align} a", "``", "a\nb.jpg", "#a[b] = @c", "a\udcff.jpg",
]  # fmt: skip
PIXEL = (  # a red PNG of one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJg"
    "gg=="
)
SVG = """<svg xmlns="http://www.w3.org/2000/svg" width="504pt" height="200pt">
<path d="M0 0h9v9z"/></svg>"""
TABLE = pd.DataFrame({"model": ["ResNet50"], "f1": [0.9437]}).to_html()
TABLE += '<script src="https://x.invalid/a.js"></script>'
WIDE = pd.DataFrame([[0.1234] * 14]).to_html()


def displayed(mime, data):
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


@pytest.fixture(scope="module", autouse=True)
def fixed_date():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1731542400")
        yield


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("notebooks")
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
            displayed("application/vnd.jupyter.widget-view+json", {"model_id": "w"}),
            new_output(
                "execute_result", {"text/plain": "<Figure size 700x500>"}, execution_count=1
            ),
            printed("\n"),
        ),
        code("many()", printed("".join(f"line {i} of many\n" for i in range(100)))),
        code("draw()", displayed("image/svg+xml", SVG)),
        new_markdown_cell("**Figure 1.1.** Faces of *Train*. Notice the border.\n\nMore prose."),
        new_markdown_cell("## Summary\n\nFirst summary.\n\n## Summary\n\nOnce more."),
    )
    second = write(
        tmp_path,
        "04_evaluate",
        new_markdown_cell("# 4. Evaluate\n\nBack to [the data](01_explore_data.ipynb)."),
        code("draw()", displayed("image/png", PIXEL)),
        code(
            "f()",
            displayed("text/markdown", "**Figure 4.1.** Written by *code*."),
            tags=["hide-input"],
        ),
        code("table", displayed("text/html", TABLE)),
        new_markdown_cell("**Table 4.1.** The metrics."),
        code("wide", displayed("text/html", WIDE), printed("z" * 300)),
        new_markdown_cell("## Summary\n\nSecond summary."),
    )
    return [first, second]


def export_both(notebooks, out, **options):
    return export.export_report(notebooks, out, "Deep Fakes & Faces", "Ada L., Bo K.", **options)


@pytest.fixture(scope="module")
def written(notebooks, tmp_path_factory):
    out = tmp_path_factory.mktemp("a") / "out" / "report.v1"
    return export_both(notebooks, out, subtitle="A subtitle")


@pytest.fixture
def html(written):
    return written[0].read_text(encoding="utf-8")


def fetched(html: str) -> list[str]:
    """Addresses that a browser would fetch by itself; links that a reader follows are none."""
    html = re.sub(r'data:[^"\')]*', "", re.sub(r"<a\s[^>]*>", "", html))
    addresses = re.findall(r'\s(?:src|href|data|action|poster)\s*=\s*["\']?([^"\'\s>]*)', html)
    addresses += re.findall(r'(?:url\(|@import)\s*["\']?([^"\')]*)', html)
    return [address for address in addresses if address and not address.startswith("#")]


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
        export_both([path], tmp_path / "report")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("report*"))


def test_other_unusable_input_is_refused(tmp_path, monkeypatch, notebooks):
    broken = tmp_path / "broken.ipynb"
    broken.write_text("{")
    for path in (broken, tmp_path / "absent.ipynb"):
        with pytest.raises(UserError, match=f"{path.name}.*run"):
            export.check_executed(path)
    with pytest.raises(UserError, match="no notebooks"):
        export_both([], tmp_path / "report")
    monkeypatch.setattr(pypandoc, "get_pandoc_version", lambda: "2.19.2")
    with pytest.raises(UserError, match=r"pandoc 3.*pip install"):
        export_both(notebooks, tmp_path / "report")


def test_html_fetches_nothing_and_contains_no_script(html, notebooks, tmp_path, caplog):
    export_both(notebooks, tmp_path / "report", pdf=False)
    assert not caplog.records  # no attempt to fetch the badge either
    assert fetched(html) == []
    assert "<script" not in html and "x.invalid" not in html
    assert 'href="https://example.org/d"' in html
    assert html.count("data:image/svg+xml") == 2  # the plan and figure 1.1


class Page(HTMLParser):
    """The tags, attributes and text of the body of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""
        self.feed(html[html.index("<main") :])

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.text += data


def test_names_from_data_are_text(tmp_path):
    computed = []
    for name in NAMES:
        data = SimpleNamespace(name=name, is_sample=False)
        summary = audit_summary(unreadable_files=[name], warnings=[f"file {name} is odd"])
        computed += [data_text.data_note(data), data_text.summarize_audit(summary)]
        computed += [comparison_text.conclusion(comparison(0.1, 0.05, 0.15, names=(name, "B")))]
    outputs = [displayed("text/markdown", text) for text in computed]
    table = pd.DataFrame({"path": NAMES[:-1]}).to_html()
    book = write(
        tmp_path,
        "01",
        new_markdown_cell("# Names"),
        code("f()", *outputs, displayed("text/html", table), tags=["remove-input"]),
    )
    html, pdf = export_both([book], tmp_path / "report")
    notebook = export.export_notebook_html(book, tmp_path / "01.html")
    harmless = {"main", "div", "h1", "p", "blockquote", "strong", "ul", "li", "code"}
    harmless |= {"table", "colgroup", "col", "thead", "tbody", "tr", "th", "td"}
    for path in (html, notebook):
        page = Page(path.read_text())
        assert page.tags - {"a"} <= harmless  # a: the heading's own link
        assert not {"onload", "src"} & page.attributes
        text = " ".join(page.text.split())
        for name in NAMES:
            literal = " ".join(re.sub("[\n\udcff]", "\ufffd", name).split())
            assert text.count(literal) >= 4, name
        assert "x.invalid" not in re.sub(r">[^<]*<", "", path.read_text())
    assert b"/URI" not in pdf.read_bytes()


def test_outputs_reach_no_other_file(tmp_path):
    secret = tmp_path / "secret.tex"
    secret.write_text("classified")
    outputs = [
        displayed("text/latex", f"\\input{{{secret}}}"),
        displayed("text/html", f'<p>a</p><iframe src="{secret}"></iframe>'),
        displayed("text/markdown", f'a <iframe src="{secret}"></iframe>'),
    ]
    book = write(tmp_path, "01", new_markdown_cell("# T"), code("f()", *outputs))
    (html,) = export_both([book], tmp_path / "report", pdf=False)
    assert "classified" not in html.read_text() and "<iframe" not in html.read_text()
    book = write(tmp_path, "02", code("f()", outputs[-1]))
    page = export.export_notebook_html(book, tmp_path / "02.html")
    assert "<iframe" not in page.read_text() and "&lt;iframe" in page.read_text()


def test_pages_have_a_content_policy(html, notebooks, tmp_path):
    page = export.export_notebook_html(notebooks[1], tmp_path / "04.html").read_text()
    for text in (html, page):
        (policy,) = re.findall("<meta[^>]*Content-Security-Policy[^>]*>", text)
        assert "default-src 'none'; img-src data:" in unescape(policy)
        assert text.index("Content-Security-Policy") < text.index("<style")


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
    assert "text-align: right" in re.search(r"<td[^>]*>(?=0\.9437)", table)[0]


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


def test_pdf_is_a4_and_exports_are_reproducible(written, notebooks, tmp_path):
    assert [path.name for path in written] == ["report.v1.html", "report.v1.pdf"]
    again = export_both(notebooks, tmp_path / "report.v1", subtitle="A subtitle")  # seconds later
    for one, two in zip(written, again, strict=True):
        assert one.read_bytes() == two.read_bytes()
    pdf = written[1].read_bytes()
    assert pdf.startswith(b"%PDF-") and len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 3
    boxes = re.findall(rb"/MediaBox\s*\[0 0 ([\d.]+) ([\d.]+)\]", pdf)
    assert {(round(float(w)), round(float(h))) for w, h in boxes} == {(595, 842)}
    assert sorted(path.name for path in written[0].parent.iterdir()) == [
        "report.v1.html",
        "report.v1.pdf",
    ]


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
        export_both(notebooks, out / "report")
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


def test_characters_without_a_font_are_shown_as_codes_in_the_pdf(tmp_path):
    """In the HTML they are as they are: a browser has fonts."""
    name = "照片_사진_しゃしん_😀_✅_é_ж.jpg"
    shown = r"\u{7167}\u{7247}_\u{C0AC}\u{C9C4}_\u{3057}\u{3083}\u{3057}\u{3093}_\u{1F600}_\u{2705}"
    shown += "_é_ж.jpg"
    book = write(
        tmp_path,
        "01",
        new_markdown_cell(f"# A {name}\n\nB {name}, `C {name}`, $D → x ≥ ∑$ ✓ ⚠"),
        code("# E " + name, printed("F " + name)),
        code("f()", displayed("text/html", pd.DataFrame({"path": ["G " + name]}).to_html())),
        code("f()", displayed("text/markdown", "H " + name)),
    )
    html, pdf = export_both([book], tmp_path / "report", with_code=True)
    notebook = export.export_notebook_html(book, tmp_path / "01.html")
    text = "".join(page.extract_text() for page in PdfReader(pdf).pages)
    text = re.sub(r"[\s\u200b\u2060]", "", text)
    for letter in "ABCEFGH":
        assert f"{letter}{shown}" in text, letter
        assert f"{letter} {name}" in Page(html.read_text()).text
        assert f"{letter} {name}" in Page(notebook.read_text()).text
    for kept in "→≥∑✓⚠":
        assert kept in text
    line = "print('" + "照" * 60 + "')"
    long = write(tmp_path, "02", new_markdown_cell("# L\n\n" + "照" * 60), code(line))
    _, pdf = export_both([long], tmp_path / "long")
    lines = [line for p in PdfReader(pdf).pages for line in p.extract_text().splitlines()]
    assert max(len(line) for line in lines if "7167" in line) < 150  # they break at the edge


def test_code_is_folded_in_the_html_and_only_on_request_in_the_pdf(tmp_path):
    book = write(
        tmp_path,
        "02_train",
        new_markdown_cell("# 2. Train"),
        code('epochs = 3  # passes | turns\nname = "a|b"', tags=["parameters"]),
        code("# Parameters\nepochs = 5", tags=["injected-parameters"]),
        code("call(1)", printed("an output")),
    )
    for with_code in (False, True):
        html, pdf = export_both([book], tmp_path / "report", with_code=with_code)
        page = html.read_text()
        assert page.count("<details") == 1
        assert re.search(r"<details[^>]*>\s*<summary>Code</summary>.*?</details>", page, re.DOTALL)
        rows = re.findall(r"<td[^>]*>(?:<code>)?([^<]*)", page)
        assert rows == ["epochs", "5", "passes | turns", "name", "&#39;a|b&#39;", ""]
        text = " ".join("".join(p.extract_text() for p in PdfReader(pdf).pages).split())
        assert ("call(1)" in text) == with_code
        assert ("notebooks/02_train.ipynb" in text.replace("\u200b", "")) != with_code
        assert "an output" in text
        assert "# Parameters" not in text + page


def structure(element):
    """The elements of a PDF's structure tree."""
    for child in element.get("/K", []) if isinstance(element.get("/K"), list) else []:
        child = child.get_object()
        if isinstance(child, dict):
            yield child
            yield from structure(child)


def test_the_pdf_is_accessible(tmp_path, capsys):
    chapter = write(
        tmp_path,
        "01_one",
        new_markdown_cell("# 1. One\n\nInline $a_1$ and\n\n$$ b \\geq \\frac{1}{2} $$"),
        code("figure", displayed("image/png", PIXEL)),
        new_markdown_cell('**Figure 1.1.** A "red" square.'),
    )
    _, pdf = export.export_report([chapter], tmp_path / "report", "Faces", "Ada L.")
    root = PdfReader(pdf).trailer["/Root"]
    assert b"pdfuaid:part>1<" in root["/Metadata"].get_data()
    assert (root["/Lang"], root["/MarkInfo"]["/Marked"]) == ("en", True)
    described = [e["/Alt"] for e in structure(root["/StructTreeRoot"]) if "/Alt" in e]
    assert [" ".join(text.split()) for text in described] == [
        "a_1", "b \\geq \\frac{1}{2}", 'Figure 1.1. A "red" square.',
    ]  # fmt: skip
    assert "PDF/UA" not in capsys.readouterr().out


def test_a_pdf_that_cannot_be_accessible_is_written_and_says_so(tmp_path, capsys):
    chapter = write(tmp_path, "01_one", new_markdown_cell("# 1. One\n\n#### Skips two levels"))
    _, pdf = export.export_report([chapter], tmp_path / "report", "Faces", "Ada L.")
    assert "Skips two levels" in PdfReader(pdf).pages[-1].extract_text()
    assert "not PDF/UA" in capsys.readouterr().out


def test_badges_are_left_out(tmp_path):
    badge = "[![Open it](https://x.invalid/badge.svg)](https://x.invalid/open)"
    chapter = write(tmp_path, "01_one", new_markdown_cell(f"# 1. One\n\nText.\n\n{badge}"))
    (page,) = export.export_report([chapter], tmp_path / "report", "F", "A", pdf=False)
    assert "Text." in page.read_text() and "Open it" not in page.read_text()


def test_outputs_that_are_for_the_notebook_alone_are_left_out(tmp_path):
    chapter = write(
        tmp_path,
        "01_one",
        new_markdown_cell("# 1. One"),
        code("shown = 1", printed("a long log"), tags=["remove-output"]),
    )
    (page,) = export.export_report([chapter], tmp_path / "report", "F", "A", pdf=False)
    html = unescape(re.sub(r"<[^>]+>", "", page.read_text()))
    assert "shown = 1" in html and "a long log" not in html
