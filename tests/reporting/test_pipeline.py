"""The whole run through run_all.sh on a tiny sample, and its decisions through small calls."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from dfd_utils import cli, config
from dfd_utils.config import PROJECT_ROOT
from dfd_utils.data.folder import DataFolder
from dfd_utils.evaluation.evaluate import score_split
from dfd_utils.models.trained import TrainedModel
from dfd_utils.reporting import export, pipeline
from dfd_utils.reporting.notebook_runner import execute
from dfd_utils.training.train import fit
from tests.conftest import quiet

SMALL = {"epochs": 1, "image_size": 32, "batch_size": 8, "precision": "fp32"}
SMALL |= {"resamples": 50, "degraded_images": 8, "examples": 4}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def run_all(output, tiny_sample):
    def call(*arguments):
        # The environment of the tests is the active one, whatever its kind. The output folder is
        # relative, although the kernels have another working directory.
        environment = os.environ | {"VIRTUAL_ENV": sys.prefix, "DFD_OUTPUT_DIR": output.name}
        environment.pop("CONDA_PREFIX", None)
        command = [PROJECT_ROOT / "run_all.sh", "--data", str(tiny_sample.path), *arguments]
        for name, value in SMALL.items():
            command += ["-p", name, str(value)]
        return subprocess.run(
            command, env=environment, cwd=output.parent, capture_output=True, text=True
        )

    return call


@pytest.fixture(scope="module")
def first_run(run_all):
    done = run_all()
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_is_there(first_run, output):
    for name in ("report.html", "report.pdf"):
        assert (output / "build" / name).stat().st_size > 50_000
        assert (output / "build" / "runs" / "tiny" / name).is_file()
    executed = sorted((output / "build" / "notebooks" / "tiny").glob("*.html"))
    assert len(executed) == 5
    figures = sorted((output / "figures" / "tiny").iterdir())
    assert {path.suffix for path in figures} == {".png", ".svg"}
    for number in ("01", "02", "03", "04", "05"):
        assert any(path.name.startswith(number) for path in figures)
    for name in ("resnet50", "efficientnet_b0"):
        folder = output / "build" / "runs" / "tiny" / name
        metrics = json.loads((folder / "metrics.json").read_text())
        assert 0 <= metrics["Validation"]["auc"] <= 1
        for file in ("history.csv", "predictions_Test.csv", "confusion_matrix.png", "model.json"):
            assert (folder / file).is_file()
    assert list(output.rglob("*.partial")) + list(output.rglob("*.running.ipynb")) == []


def test_the_output_names_each_step_and_the_report(first_run):
    for step in ("[1/5] 01_explore_data", "[5/5] 05_compare", "report"):
        assert re.search(rf"^{re.escape(step)}: done in \d+ ", first_run, re.M)
    assert "report.html" in first_run.splitlines()[-1]


def test_the_end_says_where_the_time_went(first_run):
    *steps, _ = first_run.partition("Where the time went:\n")[2].splitlines()
    names = [re.split(r"\s{2,}", line.strip())[0] for line in steps]
    notebooks = ("explore_data", "train_resnet50", "train_efficientnet", "evaluate", "compare")
    expected = [f"[{n}/5] {n:02}_{name}" for n, name in enumerate(notebooks, start=1)]
    assert names == [*expected, "report", "checks, and what was done already"]


def test_the_report_says_that_it_is_the_sample(first_run, output):
    html = (output / "build" / "report.html").read_text()
    assert html.count("Embedded sample.") >= 5
    fingerprint = json.loads(
        (output / "build" / "runs" / "tiny" / "resnet50" / "config.json").read_text()
    )["data_fingerprint"]
    assert fingerprint in html  # the provenance table
    assert "Traceback" not in html


def test_a_second_call_does_nothing(first_run, run_all):
    again = run_all()
    assert again.returncode == 0
    assert again.stdout.count(": done already\n") == 6
    assert "Where the time went" not in again.stdout


def test_a_lost_notebook_alone_is_made_again(first_run, run_all, output):
    (output / "build" / "notebooks" / "tiny" / "05_compare.ipynb").unlink()
    again = run_all()
    assert again.returncode == 0
    assert again.stdout.count(": done already\n") == 4  # and not the report
    assert "05_compare: done in" in again.stdout
    assert (output / "build" / "notebooks" / "tiny" / "05_compare.ipynb").is_file()


def test_a_failing_notebook_gets_one_line(first_run, run_all):
    # other settings in a finished run: refused by the training, through papermill
    failed = run_all("-p", "seed", "3", "--only", "02")
    assert failed.returncode == 2
    line = failed.stderr.rstrip("\n")
    assert "\n" not in line
    assert "02_train_resnet50" in line
    assert "seed" in line


def executing(error: str):
    """A stand-in for papermill.execute_notebook whose first cell raises an error."""

    def execute(*_, **__):
        raise PapermillExecutionError(0, 1, "f()", error, "the reason", [])

    return execute


@pytest.mark.parametrize(
    ("error", "code"),
    [("UserError", 2), ("TimeLimitReached", 75), ("RunInterrupted", 143), ("KeyError", 1)],
)
def test_errors_of_a_cell_become_exit_codes(error, code, easy_data, monkeypatch, capsys):
    monkeypatch.setattr(papermill, "execute_notebook", executing(error))
    assert cli.main(["run", "--data", str(easy_data.path), "--only", "01"]) == code
    message = capsys.readouterr().err
    assert "01_explore_data.ipynb" in message and "the reason" in message
    assert message.count("\n") == 1


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """The folder of a run with both models, beside an empty data folder."""
    monkeypatch.setattr(config, "DATA_DIR", tmp_path / "data")
    for name in ("resnet50", "efficientnet_b0"):
        folder = tmp_path / "runs" / "p" / name
        folder.mkdir(parents=True)
        for file in ("config.json", "model.json", "model.safetensors", "metrics.json"):
            (folder / file).write_text(name)
    return tmp_path / "runs" / "p"


def keys(run_folder, **parameters) -> dict[str, str]:
    """The keys of all notebooks, by number."""
    result = {}
    for path in pipeline._all_notebooks():
        known = pipeline._parameters_of(path)
        chosen = {name: value for name, value in parameters.items() if name in known}
        result[path.name[:2]] = pipeline._key(path, known | chosen, run_folder, ["images"])
    return result


def changed(before: dict, after: dict) -> list[str]:
    return [number for number in before if before[number] != after[number]]


def test_a_notebook_is_stale_when_what_it_reads_has_changed(run_folder, tmp_path):
    before = keys(run_folder)
    assert changed(before, keys(run_folder)) == []
    (run_folder / "resnet50" / "model.safetensors").unlink()
    assert changed(before, keys(run_folder)) == ["02", "04", "05"]

    before = keys(run_folder)
    shutil.copytree(run_folder / "efficientnet_b0", tmp_path / "runs" / "p1" / "efficientnet_b0")
    assert changed(before, keys(run_folder)) == ["05"]  # compares seeds

    before = keys(run_folder)
    (tmp_path / "data" / "other" / "Test" / "Real").mkdir(parents=True)
    assert changed(before, keys(run_folder)) == ["04"]  # looks at other data sets


def test_a_notebook_is_stale_when_its_parameters_have_changed(run_folder, tmp_path):
    before = keys(run_folder)
    assert changed(before, keys(run_folder, max_hours=2)) == []  # does not change the result
    assert changed(before, keys(run_folder, resamples=10)) == ["04", "05"]
    weights = tmp_path / "w[1].pth"
    weights.write_text("old")
    before = keys(run_folder, weights=str(weights))
    weights.write_text("new")
    assert changed(before, keys(run_folder, weights=str(weights))) == ["02", "03"]


def test_every_source_file_counts(tmp_path, monkeypatch):
    package = Path(config.__file__).parent
    copy = shutil.copytree(package, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__"))
    expected = pipeline._sources_key()
    monkeypatch.setattr(config, "__file__", str(copy / "config.py"))
    assert pipeline._sources_key() == expected
    for file in ("stats/metrics.py", "data/sample/face.py", "config.py"):
        with open(copy / file, "a") as source:
            source.write("# a change\n")
        assert pipeline._sources_key() != expected
        expected = pipeline._sources_key()


def test_work_is_done_once_for_the_same_inputs(tmp_path):
    output, done = tmp_path / "out", []

    def work():
        done.append(len(done))
        output.write_text("")

    for key in ("a", "a", "b", "b"):
        pipeline._run_if_stale("work", lambda key=key: key, [output], work)
    assert done == [0, 1]
    output.unlink()
    pipeline._run_if_stale("work", lambda: "b", [output], work)
    assert done == [0, 1, 2]


def test_no_report_of_older_notebooks_is_left(tmp_path, monkeypatch):
    build, run = tmp_path / "build", tmp_path / "build" / "runs" / "p"
    monkeypatch.setattr(pipeline, "BUILD_DIR", build)
    notebook = tmp_path / "01.ipynb"

    def export_report(notebooks, out, title, author, subtitle, pdf, front, back, with_code):
        run.mkdir(parents=True, exist_ok=True)
        for suffix in (".html", ".pdf")[: 1 + pdf]:
            out.with_suffix(suffix).write_text(notebooks[0].read_text())

    monkeypatch.setattr(export, "export_report", export_report)
    for content, pdf in (("one", True), ("two", False), ("two", True), ("two", False)):
        notebook.write_text(content)
        reports = pipeline._report(run, [notebook, tmp_path / "02.ipynb"], None, pdf)
        names = ["report.html", "report.pdf"][: 1 + pdf]
        assert reports == [build / name for name in names]
        for folder in (build, run):
            assert sorted(path.name for path in folder.glob("report.*")) == names
            assert {path.read_text() for path in folder.glob("report.*")} == {content}


@pytest.mark.parametrize("change", ["swap labels", "remove an image"])
def test_a_run_refuses_other_images_under_the_same_name(
    change, easy_data, trained_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(pipeline, "BUILD_DIR", tmp_path)
    shutil.copytree(trained_run, tmp_path / "runs" / "p")
    copy = shutil.copytree(easy_data.path, tmp_path / "other" / easy_data.name)
    pipeline._refuse_other_data(tmp_path / "runs" / "p", DataFolder(copy))  # the same images
    test = copy / "Test"
    if change == "swap labels":
        (test / "Real").rename(test / "x")
        (test / "Fake").rename(test / "Real")
        (test / "x").rename(test / "Fake")
    else:
        next((test / "Real").iterdir()).unlink()
    assert cli.main(["run", "--data", str(copy), "--run", "p", "--only", "04"]) == 2
    message = capsys.readouterr().err
    assert "other images" in message and "choose another --run, or delete" in message


def test_relative_paths_count_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("DFD_OUTPUT_DIR", "DFD_DATA_DIR"):
        monkeypatch.setenv(name, "out")
    parameters = {"weights": "w.pth"}
    pipeline._make_absolute(parameters)
    assert parameters == {"weights": str(tmp_path / "w.pth")}
    assert os.environ["DFD_OUTPUT_DIR"] == str(config.OUTPUT_ROOT)
    assert Path(os.environ["DFD_DATA_DIR"]).is_absolute()
    for keyword in (None, "none", "imagenet"):
        parameters = {"weights": keyword}
        pipeline._make_absolute(parameters)
        assert parameters == {"weights": keyword}


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (None, "sample"),
        ("kaggle", "openforensics"),
        ("x/My Data (faces)", "My-Data-faces"),
        ("x/..hidden_1.2", "hidden_1.2"),
        ("x/データ", "data"),
    ],
)
def test_a_run_is_named_after_its_data_set(data, name):
    assert pipeline._run_name(None, data) == name
    assert pipeline._run_name("mine", data) == "mine"


def test_a_finished_fp16_run_is_used_on_a_cpu(trained_run, easy_data, quick, tmp_path):
    folder = shutil.copytree(trained_run / "efficientnet_b0", tmp_path / "efficientnet_b0")
    for file in ("config.json", "model.json"):
        text = (folder / file).read_text()
        assert '"fp32"' in text
        (folder / file).write_text(text.replace('"fp32"', '"fp16"'))
    for precision in ("fp16", "auto"):
        profile = dataclasses.replace(quick, precision=precision)
        assert len(fit("efficientnet_b0", easy_data, folder, profile, quiet)) == quick.epochs
    one, two = (TrainedModel(path) for path in (folder, trained_run / "efficientnet_b0"))
    pd.testing.assert_frame_equal(
        score_split(one, easy_data, "Test"), score_split(two, easy_data, "Test")
    )


def test_a_folder_named_with_braces_holds_the_notebooks(tmp_path):
    notebook, out = tmp_path / "{x}" / "a.ipynb", tmp_path / "{y}{0}" / "a.ipynb"
    notebook.parent.mkdir()
    cells = [nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["parameters"]})]
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[*cells, nbformat.v4.new_code_cell("x")],
            metadata={"kernelspec": {"name": "python3", "language": "python", "display_name": "x"}},
        ),
        notebook,
    )
    execute(notebook, out, {"x": 7})
    assert nbformat.read(out, 4).cells[-1].outputs[0].data["text/plain"] == "7"
