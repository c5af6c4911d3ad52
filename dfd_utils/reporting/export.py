"""Executed notebooks → one self-contained HTML and one A4 PDF, by pandoc and Typst."""

import ast
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import pypandoc
from nbconvert import HTMLExporter
from nbconvert.filters import strip_ansi
from nbconvert.preprocessors import CoalesceStreamsPreprocessor, TagRemovePreprocessor
from nbformat import NotebookNode

from dfd_utils.config import PROJECT_ROOT, UserError
from dfd_utils.reporting.formatting import code_span, escape_markdown
from dfd_utils.runtime.files import write_atomic

ASSETS = Path(__file__).resolve().parent / "assets"
SOURCES = PROJECT_ROOT / "notebooks"  # images in the text are named relative to here
MAX_OUTPUT_LINES = 40
# No script runs and nothing is fetched, even if markup from data got into a page.
CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; font-src data:"
# The best form of an output for print comes first; widgets and scripts have no form here.
FORMS = (
    *("image/svg+xml", "image/png", "image/jpeg"),
    *("text/markdown", "text/html", "text/latex", "text/plain"),
)
ACCESSIBLE = "ua-1"  # PDF/UA-1, ISO 14289-1: tagged for screen readers
WIDGET = "application/vnd.jupyter.widget-view+json"
_OPTIONS = [f"--lua-filter={ASSETS / 'report.lua'}", "--ipynb-output=all", "--wrap=none"]
_OPTIONS += ["--syntax-highlighting=monochrome"]  # readable in the dark and in grey print
_FORMAT = "ipynb+raw_tex"  # raw_tex: Jupyter shows a bare \begin{align} as a formula
_PROGRESS_BAR = re.compile(r"\d%\|.*\|.*\[|^\s*\d+it \[")  # what tqdm prints
_COMMENT = re.compile(r"^(\w+) = .*?  # (.*)$", re.MULTILINE)  # of a parameter
_OBJECT_NAME = re.compile(r"^\[?<(Figure|Axes|matplotlib|seaborn)|^\(?array\(\[<Axes")
_TAGS = TagRemovePreprocessor(
    remove_cell_tags={"remove-cell"},
    remove_input_tags={"remove-input", "hide-input"},
    remove_all_outputs_tags={"remove-output"},
)
# The JupyterLab look with a content policy instead of its scripts, which come from the network.
_JUPYTER_LOOK = f"""{{%- extends 'index.html.j2' -%}}
{{%- block html_head_js -%}}
<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">
{{%- endblock -%}}
{{%- block html_head_js_mathjax -%}}{{%- endblock -%}}
{{%- block html_head_js_mermaidjs -%}}{{%- endblock -%}}"""


def check_executed(notebook: Path) -> None:
    """Check that every code cell of a notebook was executed without an error.

    The cells count: papermill's metadata can say "completed" although no kernel has started.

    Raises:
        UserError: a missing or unreadable notebook, or a cell that was not executed or ended in an
            error; names the cell.
    """
    try:
        book = nbformat.read(notebook, as_version=4)
        nbformat.validate(book)
    except OSError as error:
        raise UserError(f"{notebook}: {error.strerror}; run the notebooks first") from None
    except Exception:  # nbformat's are of many kinds
        raise UserError(f"{notebook} is not a notebook; run it again") from None
    for number, cell in enumerate(book.cells, start=1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        problems = [f"ended in {o.ename}" for o in cell.outputs if o.output_type == "error"]
        if cell.execution_count is None:
            problems.append("was not executed")
        if problems:
            where = f"cell {number} ({cell.source.strip().splitlines()[0]!r})"
            raise UserError(f"{notebook}: {where} {problems[0]}; run this notebook again")


def export_report(
    notebooks: list[Path],
    out: Path,
    title: str,
    author: str,
    subtitle: str = "",
    pdf: bool = True,
    front: tuple[str, Path] | None = None,
    back: Iterable[str] = (),
    with_code: bool = False,
) -> list[Path]:
    """Write `out`.html and, with `pdf`, `out`.pdf from executed notebooks, a chapter each.

    Neither needs the network, a browser or LaTeX. Both replace an earlier report at the end, so
    that a failure leaves it unchanged. The date is that of SOURCE_DATE_EPOCH if it is set (the same
    notebooks then give the same bytes), else today. `front` is Markdown for the first page, above
    the contents, and a figure that it names; see `front_matter`. `back` is Markdown of further
    chapters, each beginning with its title; see `back_matter`. The HTML has the code of each cell
    folded; the PDF has it only `with_code`. Parameters are a table in both.

    Raises:
        UserError: no notebooks, one that was not executed to its end, or a pandoc older than 3.
    """
    if not notebooks:
        raise UserError("no notebooks to report on; run the notebooks first")
    _check_pandoc()
    merged = _merge(notebooks)
    day = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH") or time.time()), UTC)
    fields = dict(title=title, author=author, subtitle=subtitle, date=f"{day.day} {day:%B %Y}")
    fields |= dict(year=str(day.year), month=str(day.month), day=str(day.day))
    resources = _resources(notebooks)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".report-") as name:
        folder = Path(name).resolve()
        if front:
            text, figure = front
            cell = nbformat.v4.new_markdown_cell(text, id="front", metadata={"front": "yes"})
            merged.cells.insert(0, cell)
            shutil.copy(figure, folder / figure.name)
        for text in back:
            metadata = {"chapter": text.split("\n", 1)[0].removeprefix("# ")}
            cell = nbformat.v4.new_markdown_cell(text, metadata=metadata)
            cell.id = f"cell-{len(merged.cells)}"
            merged.cells.append(cell)
        nbformat.write(merged, folder / "report.ipynb")
        metadata = [f"--metadata={key}={value}" for key, value in fields.items() if value]
        code = ["--metadata=with-code"] if with_code else []
        shutil.copy(ASSETS / "report.css", folder)  # pandoc ends a path at a quote
        look = ["--toc", "--toc-depth=2", "--mathml", "--css=report.css"]
        look += ["--embed-resources", f"--variable=content-policy={CONTENT_POLICY}"]
        _pandoc(folder, "report.html", resources, *look, *metadata)
        if pdf:
            _write_pdf(folder, fields, resources, *code)
        written = []
        for suffix in [".html", ".pdf"] if pdf else [".html"]:
            written.append(out.with_name(out.name + suffix))
            os.replace(folder / f"report{suffix}", written[-1])
    return written


def export_notebook_html(notebook: Path, out: Path) -> Path:
    """Write an executed notebook as HTML in the Jupyter look, without scripts or network.

    Links to other notebooks lead to the HTML files beside it.

    Raises:
        UserError: as `export_report`.
    """
    _check_pandoc()
    options = [*_OPTIONS, _resources([notebook]), "--mathml", "--embed-resources"]
    options += [f"--template={ASSETS / 'fragment.html'}", "--metadata=pagetitle=fragment"]

    def to_html(cell: NotebookNode) -> str:
        text = nbformat.writes(nbformat.v4.new_notebook(cells=[cell]))
        return pypandoc.convert_text(text, "html5", _FORMAT, options)

    book = _tidy(notebook)
    for cell in book.cells:
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                computed = nbformat.v4.new_code_cell("", outputs=[output], id="cell")
                output.data = {"text/html": to_html(computed)}
    exporter = HTMLExporter(raw_template=_JUPYTER_LOOK)
    exporter.register_filter(
        "markdown2html", lambda text: to_html(nbformat.v4.new_markdown_cell(text, id="cell"))
    )
    html, _ = exporter.from_notebook_node(book, {"metadata": {"name": notebook.stem}})
    return write_atomic(out, html)


def _tidy(notebook: Path) -> NotebookNode:
    """Read an executed notebook, without hidden cells and with tidy outputs."""
    check_executed(notebook)
    book, _ = _TAGS.preprocess(nbformat.read(notebook, as_version=4), {})
    for cell in book.cells:
        if cell.cell_type == "code":
            _tidy_outputs(cell)
    book.metadata.pop("widgets", None)
    return book


def _tidy_outputs(cell: NotebookNode) -> None:
    """Keep one form of each output; drop stderr, widgets, progress bars and empty outputs."""
    outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    cell.outputs = [out for out in outputs if WIDGET not in out.get("data", {})]
    CoalesceStreamsPreprocessor().preprocess_cell(cell, {}, 0)  # also carriage returns
    kept = []
    for out in cell.outputs:
        if out.output_type == "stream":
            out.text = text = _tidy_text(out.text)
        else:
            form = next((form for form in FORMS if form in out.data), None)
            out.data = {form: out.data[form]} if form else {}
            text = out.data.get(form, "")
            if form == "text/plain":
                out.data[form] = text = _tidy_text("" if _OBJECT_NAME.match(text) else text)
        if text.strip():
            kept.append(out)
    cell.outputs = kept


def _tidy_text(text: str) -> str:
    lines = [line.rstrip() for line in strip_ansi(text).strip("\n").split("\n")]
    lines = [line for line in lines if not _PROGRESS_BAR.search(line)]
    if len(lines) > MAX_OUTPUT_LINES:
        head, tail = MAX_OUTPUT_LINES * 2 // 3, MAX_OUTPUT_LINES // 3
        lines[head:-tail] = [f"… {len(lines) - head - tail} lines left out …"]
    return "\n".join(lines).strip("\n")


def _merge(notebooks: list[Path]) -> NotebookNode:
    """Return all cells in one notebook, the first of each marked with the attribute `chapter`."""
    merged = nbformat.v4.new_notebook(metadata={"language_info": {"name": "python"}})
    for notebook in notebooks:
        cells = _tabulate_parameters(_tidy(notebook).cells)
        if not any(c.cell_type == "markdown" and c.source.startswith("# ") for c in cells):
            cells.insert(0, nbformat.v4.new_markdown_cell(f"# {notebook.stem}"))
        for number, cell in enumerate(cells):
            if cell.metadata.get("transient", {}).get("remove_source"):
                cell.source = ""
            cell.id = f"cell-{len(merged.cells) + number}"
            cell.metadata = {} if number else {"chapter": notebook.stem, "notebook": notebook.name}
        merged.cells += cells
    return merged


def _tabulate_parameters(cells: list[NotebookNode]) -> list[NotebookNode]:
    """Return the cells with a table of the values in place of the cells that set the parameters."""
    values, kept, place = {}, [], 0
    for cell in cells:
        tags = cell.metadata.get("tags", ())
        if "parameters" in tags:
            place, meanings = len(kept), dict(_COMMENT.findall(cell.source))
        if "parameters" in tags or "injected-parameters" in tags:  # the latter by papermill
            values |= {
                node.targets[0].id: ast.unparse(node.value) for node in ast.parse(cell.source).body
            }
        else:
            kept.append(cell)
    if values:
        rows = []
        for name, value in values.items():
            meaning = escape_markdown(meanings.get(name, ""))
            rows.append(f"| {code_span(name)} | {code_span(value)} | {meaning} |")
        text = "\n".join(["| parameter | value | meaning |", "|:---|:---|:---|", *rows])
        kept.insert(place, nbformat.v4.new_markdown_cell(text))
    return kept


def _check_pandoc() -> None:
    try:
        version = pypandoc.get_pandoc_version()
    except OSError:
        version = "0"
    if int(version.split(".")[0]) < 3:
        raise UserError("the report needs pandoc 3 or newer: pip install -U pypandoc_binary")


def _resources(notebooks: list[Path]) -> str:
    folders = [SOURCES, *(path.parent for path in notebooks)]
    return "--resource-path=" + os.pathsep.join([".", *(str(f.resolve()) for f in folders)])


def _pandoc(folder: Path, name: str, *options: str) -> None:
    template = ASSETS / ("report" + Path(name).suffix)
    pypandoc.convert_file(
        str(folder / "report.ipynb"),
        "typst" if name.endswith(".typ") else "html5",
        format=_FORMAT,
        extra_args=[*_OPTIONS, *options, f"--template={template}"],
        outputfile=name,
        cworkdir=str(folder),
    )


def _write_pdf(folder: Path, fields: dict[str, str], *options: str) -> None:
    import typst

    _pandoc(folder, "report.typ", "--extract-media=media", *options)

    def to_pdf(standards: list[str]) -> None:
        typst.compile(
            str(folder / "report.typ"),
            output=str(folder / "report.pdf"),
            root=str(folder),
            ignore_system_fonts=True,  # the same pages on every machine
            sys_inputs=fields,
            pdf_standards=standards,
        )

    try:
        to_pdf([ACCESSIBLE])
    except typst.TypstError as error:  # for example, headings that skip a level
        to_pdf([])
        print(f"report: the PDF is tagged, but not PDF/UA: {error.message}")
