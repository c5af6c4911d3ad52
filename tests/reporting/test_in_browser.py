"""In headless Chromium: the report is accessible, and the notebooks run in JupyterLab."""

import ast
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell

from dfd_utils.config import PROJECT_ROOT
from dfd_utils.reporting.export import export_report
from tests.reporting.test_export import PIXEL, TABLE, WIDE, code, displayed, printed, write

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
PARAMETERS = "epochs = 1  # passes over Train\nimage_size = 32  # pixels"
TRAINING = {"epochs": 1, "image_size": 32, "batch_size": 8, "precision": "fp32"}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    chapter = write(
        folder,
        "01_one",
        new_markdown_cell("# 1. One\n\n*A question?* See [two](#two). $x^2$"),
        code(PARAMETERS, tags=["parameters"]),
        code("print('hello')  # " + "a long comment " * 20, printed("hello")),
        code("figure", displayed("image/png", PIXEL)),
        new_markdown_cell("**Figure 1.1.** A red square."),
        code("table", displayed("text/html", TABLE), displayed("text/html", WIDE)),
        new_markdown_cell(
            "**Table 1.1.** A wide table.\n\n## Two\n\n> A note.\n\n`code`\n\n"
            "$$ " + " + ".join(f"x_{{{n}}}" for n in range(40)) + " $$"
        ),
    )
    (page,) = export_report([chapter], folder / "report", "Faces", "Ada L.", pdf=False)
    return page


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 380)])
def test_the_report_is_accessible(browser, report, scheme, width):
    """axe-core, with all code unfolded; the policy that forbids scripts is off for it."""
    context = browser.new_context(
        color_scheme=scheme, viewport={"width": width, "height": 800}, bypass_csp=True
    )
    page = context.new_page()
    page.goto(report.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    found = axe.Axe().run(page).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] != "minor"] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    context.close()


@contextmanager
def jupyterlab(folder, output):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "r",
    }
    environment = os.environ | {name: str(output / path) for name, path in places.items()}
    environment |= {"DFD_OUTPUT_DIR": str(output), "JUPYTERLAB_WORKSPACES_DIR": str(output / "w")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}", "--allow-root"]
    command += ["--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"]
    command += ["--expose-app-in-browser"]
    with open(output / "log.txt", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/lab"
    finally:
        server.terminate()
        server.wait(30)


def set_parameters(notebook, values):
    book = nbformat.read(notebook, as_version=4)
    (cell,) = [c for c in book.cells if "parameters" in c.metadata.get("tags", [])]
    names = [line.targets[0].id for line in ast.parse(cell.source).body]
    cell.source += "".join(f"\n{n} = {v!r}  # test" for n, v in values.items() if n in names)
    nbformat.write(book, notebook)


def test_notebooks_run_in_jupyterlab(browser, tiny_sample, tmp_path):
    """Audit and training, as a reader runs them: nothing red, every figure, one progress bar."""
    folder, output = tmp_path / "notebooks", tmp_path / "output"
    output.mkdir()
    shutil.copytree(PROJECT_ROOT / "notebooks", folder)
    names = ["01_explore_data", "02_train_resnet50"]
    for name in names:
        values = {"run": "browser", "data": str(tiny_sample.path)} | TRAINING
        set_parameters(folder / f"{name}.ipynb", values)
    with jupyterlab(folder, output) as address:
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        for name in names:
            page.goto(f"{address}/tree/{name}.ipynb?reset")
            page.wait_for_function(
                "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel",
                timeout=60_000,
            )
            page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
            book = page.evaluate("jupyterapp.shell.currentWidget.content.model.toJSON()")
            cells = [c for c in book["cells"] if c["cell_type"] == "code"]
            assert all(cell["execution_count"] for cell in cells)
            outputs = [out for cell in cells for out in cell["outputs"]]
            assert [out for out in outputs if out["output_type"] == "error"] == []
            assert [out for out in outputs if out.get("name") == "stderr"] == []
            figures = [out for out in outputs if "image/svg+xml" in out.get("data", {})]
            assert len(figures) == sum("save_figure" in "".join(c["source"]) for c in cells)
            bars = [out for out in outputs if "%|" in str(out) or "widget-view" in str(out)]
            assert len(bars) == name.startswith("02")
            if shots := os.environ.get("DFD_SCREENSHOT"):
                page.screenshot(path=f"{shots}/{name}.png")
        page.close()
