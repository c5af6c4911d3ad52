"""The whole job through run_all.sh, on a tiny sample."""

import json
import os
import re
import subprocess
import sys

import pytest

from dfd_utils.config import PROJECT_ROOT

SMALL = {"epochs": 1, "image_size": 32, "batch_size": 8, "precision": "fp32"}
SMALL |= {"resamples": 50, "degraded_images": 8, "examples": 4}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def run_all(output, tiny_sample):
    def call(*arguments):
        # The environment of the tests is the active one, whatever its kind.
        environment = os.environ | {"VIRTUAL_ENV": sys.prefix, "DFD_OUTPUT_DIR": str(output)}
        environment.pop("CONDA_PREFIX", None)
        command = [PROJECT_ROOT / "run_all.sh", "--data", str(tiny_sample), *arguments]
        for name, value in SMALL.items():
            command += ["-p", name, str(value)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

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
        told = json.loads((folder / "metrics.json").read_text())
        assert 0 <= told["Validation"]["auc"] <= 1
        for file in ("history.csv", "predictions_Test.csv", "confusion_matrix.png", "model.json"):
            assert (folder / file).is_file()
    assert list(output.rglob("*.partial")) + list(output.rglob("*.running.ipynb")) == []


def test_the_output_tells_each_step_and_where_to_look(first_run):
    for step in ("[1/5] 01_explore_data", "[5/5] 05_compare", "report"):
        assert re.search(rf"^{re.escape(step)}: done in \d+ ", first_run, re.M)
    assert "report.html" in first_run.splitlines()[-1]


def test_the_report_says_that_it_is_the_sample(first_run, output):
    html = (output / "build" / "report.html").read_text()
    assert html.count("Embedded sample.") >= 5
    fingerprint = json.loads(
        (output / "build" / "runs" / "tiny" / "resnet50" / "config.json").read_text()
    )["data_fingerprint"]
    assert fingerprint in html  # the colophon
    assert "Traceback" not in html


def test_a_second_call_does_nothing_again(first_run, run_all):
    again = run_all()
    assert again.returncode == 0
    assert again.stdout.count("done already") == 6


def test_a_lost_notebook_alone_is_made_again(first_run, run_all, output):
    (output / "build" / "notebooks" / "tiny" / "05_compare.ipynb").unlink()
    again = run_all()
    assert again.returncode == 0
    assert again.stdout.count("done already") == 4
    assert (output / "build" / "notebooks" / "tiny" / "05_compare.ipynb").is_file()


def test_a_failing_notebook_is_told_in_one_line(first_run, run_all):
    # other settings in a finished run: refused by the training, through papermill
    failed = run_all("-p", "seed", "3", "--only", "02")
    assert failed.returncode == 2
    line = failed.stderr.rstrip("\n")
    assert "\n" not in line
    assert "02_train_resnet50" in line
    assert "seed" in line
