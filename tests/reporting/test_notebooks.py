"""The notebooks as committed: clean, thin, and readable as a report."""

import ast
import re

import nbformat
import pytest

from dfd_utils.config import PROJECT_ROOT

PATHS = sorted((PROJECT_ROOT / "notebooks").glob("*.ipynb"))
NAMES = [
    "01_explore_data",
    "02_train_resnet50",
    "03_train_efficientnet",
    "04_evaluate",
    "05_compare",
]


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def with_tag(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def test_the_five_are_there():
    assert [path.stem for path in PATHS] == NAMES


def test_no_outputs_and_a_neutral_kernel(notebook):
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None


def test_cells_are_thin(notebook):
    for cell in code_cells(notebook):
        assert len(cell.source.splitlines()) <= 14
        assert "def " not in cell.source
    words = {"markdown": 0, "code": 0}
    for cell in notebook.cells:
        words[cell.cell_type] += len(cell.source.split())
    assert words["markdown"] > words["code"]


def test_one_parameters_cell_of_commented_literals(notebook):
    (cell,) = with_tag(notebook, "parameters")
    for statement in ast.parse(cell.source).body:
        assert isinstance(statement, ast.Assign)
        ast.literal_eval(statement.value)
    assert all("#" in line for line in cell.source.splitlines())


def test_order_of_the_parts(notebook):
    kinds = [cell.cell_type for cell in notebook.cells]
    assert notebook.cells[0].source.startswith("# ")
    assert "*" in notebook.cells[0].source.splitlines()[2]  # the question
    imports, parameters = code_cells(notebook)[:2]
    assert "import" in imports.source
    assert "parameters" in parameters.metadata.tags
    assert kinds[0] == "markdown"
    headings = [c.source.splitlines()[0] for c in notebook.cells if c.source.startswith("## ")]
    assert headings[-1] == "## Summary" or headings[-2:] == ["## Summary", "## Provenance"]


def test_every_figure_has_its_numbered_caption(notebook):
    number = notebook.cells[0].source[2]
    figures, tables = [], []
    for cell, after in zip(notebook.cells, notebook.cells[1:], strict=False):
        if "save_figure" in cell.source:
            assert after.source.startswith("**Figure ")
        figures += re.findall(r"^\*\*Figure (\d\.\d+)\.\*\*", after.source)
        tables += re.findall(r"^\*\*Table (\d\.\d+)\.\*\*", after.source)
    assert figures == [f"{number}.{count}" for count in range(1, len(figures) + 1)]
    assert tables == [f"{number}.{count}" for count in range(1, len(tables) + 1)]
    assert figures


def test_both_trainings_are_the_same_code():
    resnet, efficientnet = (nbformat.read(path, as_version=4) for path in PATHS[1:3])
    sources = [
        [
            cell.source
            for cell in code_cells(nb)
            if "parameters" not in cell.metadata.get("tags", [])
        ]
        for nb in (resnet, efficientnet)
    ]
    assert sources[0] == sources[1]
    values = [
        {s.targets[0].id: ast.literal_eval(s.value) for s in ast.parse(cell.source).body}
        for nb in (resnet, efficientnet)
        for cell in with_tag(nb, "parameters")
    ]
    differing = {name for name in values[0] if values[0][name] != values[1][name]}
    assert differing == {"model", "chapter"}


def test_test_is_read_by_04_and_05_alone():
    for path in PATHS[1:3]:
        assert '"Test"' not in path.read_text().replace("\\", "")
