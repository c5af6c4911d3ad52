import json
import os
import shutil
import subprocess
import sys

import pytest

import dfd_utils
from dfd_utils import cli, commands
from dfd_utils.evaluation.evaluate import score_split
from dfd_utils.inference import predict
from dfd_utils.models.trained import TrainedModel


@pytest.fixture
def model(trained_run):
    return str(trained_run / "resnet50")


@pytest.fixture
def images(easy_data, tmp_path):
    """A folder with two good images and a broken one between them."""
    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(easy_data.path / "Test" / "Fake" / "000.jpg", folder / "a.jpg")
    (folder / "b.jpg").write_bytes(b"no image")
    shutil.copy(easy_data.path / "Test" / "Real" / "000.jpg", folder / "c.jpg")
    return folder


def test_an_error_of_the_system_names_the_file_in_one_line(capsys):
    name = "x" * 5000
    assert cli.main(["audit", name]) == 1
    error = capsys.readouterr().err
    assert error.startswith("dfd: /") and error.endswith(f"{name}: File name too long\n")


def test_predict_json_has_a_line_per_input_in_order(images, model, capsys):
    assert cli.main(["predict", "--model", model, "--format", "json", str(images)]) == 3
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["path"][-5:] for row in rows] == ["a.jpg", "b.jpg", "c.jpg"]
    assert all(set(row) >= {"path", "label", "score", "threshold", "error"} for row in rows)
    assert rows[1]["label"] is None
    assert rows[1]["score"] is None
    assert "image" in rows[1]["error"]
    assert rows[0]["error"] is rows[2]["error"] is None
    assert {rows[0]["label"], rows[2]["label"]} <= {"Real", "Fake", "Unsure"}


def test_predict_gives_the_scores_of_the_evaluation(easy_data, trained_run):
    folder = trained_run / "resnet50"
    expected = score_split(TrainedModel(folder), easy_data, "Test")
    table = predict.predict([easy_data.path / path for path in expected["path"]], folder)
    assert table["score"].astype(float).to_numpy() == pytest.approx(expected["score"], abs=1e-5)


def test_predict_without_errors_ends_with_0(easy_data, model, capsys):
    image = str(easy_data.path / "Test" / "Fake" / "000.jpg")
    assert cli.main(["predict", "--model", model, image]) == 0
    assert "probability of Fake" in capsys.readouterr().out
    assert cli.main(["predict", "--model", model, "--format", "csv", image]) == 0
    assert capsys.readouterr().out.startswith(
        "path,label,score,threshold,error,warning,score_low,score_high\n"
    )


def test_a_missing_image_is_named(model, capsys):
    assert cli.main(["predict", "--model", model, "nowhere.jpg"]) == 3
    assert "nowhere.jpg: No such file" in capsys.readouterr().out


def test_compare_json(trained_run, easy_data, capsys):
    assert cli.main(["evaluate", "--data", str(easy_data.path), str(trained_run)]) == 0
    files = [str(trained_run / m / "predictions_Test.csv") for m in ("resnet50", "efficientnet_b0")]
    capsys.readouterr()
    assert cli.main(["compare", *files, "--json"]) == 0
    comparison = json.loads(capsys.readouterr().out)
    assert set(comparison["models"]) == {"resnet50", "efficientnet_b0"}
    assert {"value", "low", "high", "p"} <= set(comparison["pair"]["auc_difference"])
    assert cli.main(["compare", *files]) == 0
    assert "AUC" in capsys.readouterr().out


def test_train_and_its_refusals(easy_data, tmp_path, capsys):
    command = [
        "train",
        "--model",
        "efficientnet_b0",
        "--data",
        str(easy_data.path),
        "--epochs",
        "1",
    ]
    command += ["--image-size", "32", "--batch-size", "8", "--precision", "fp32"]
    assert cli.main([*command, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "efficientnet_b0" / "model.safetensors").is_file()
    capsys.readouterr()
    assert cli.main([*command, "--out", str(tmp_path), "--seed", "7"]) == 2
    assert "seed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "--model", "vgg", "--data", "{data}", "--out", "{tmp}/x"], "vgg"),
        (["train", "--model", "resnet50", "--data", "{tmp}/none", "--out", "{tmp}/x"], "none"),
        (["train", "--model", "resnet50", "--data", "{tmp}", "--out", "{tmp}/x"], "Train"),
        (["train", "--model", "resnet50", "--data", "{data}", "--out", "{file}/x"], "file"),
        (["train", "--model", "resnet50", "--data", "{data}", "--out", "{tmp}/x",
          "--epochs", "0"], "epochs"),
        (["train", "--model", "resnet50", "--data", "{data}", "--out", "{tmp}/x",
          "--profile", "fast"], "fast"),
        (["train", "--model", "resnet50", "--data", "{data}", "--out", "{tmp}/x",
          "--weights", "{tmp}/none.pth"], "none.pth"),
        (["evaluate", "--data", "{data}", "{tmp}"], "no trained model"),
        (["predict", "--model", "{tmp}", "a.jpg"], "no trained model"),
        (["compare", "{tmp}/a.csv", "{tmp}/b.csv"], "a.csv"),
        (["run", "--only", "07"], "07"),
        (["run", "--profile", "fast"], "fast"),
        (["run", "-p", "epoch", "3"], "epoch"),
        (["run", "-p", "epochs", "many"], "many"),
        (["run", "--run", "../up"], "../up"),
        (["run", "--data", "{tmp}/none"], "none"),
        (["run", "--data", "{tmp}"], "Train"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line_and_exit_2(arguments, named, easy_data, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    paths = {"data": easy_data.path, "tmp": tmp_path, "file": tmp_path / "file"}
    before = sorted(tmp_path.rglob("*"))
    assert cli.main([argument.format(**paths) for argument in arguments]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert named in message
    assert [p for p in sorted(tmp_path.rglob("*")) if p not in before and p.is_file()] == []


def test_wrong_use_ends_with_2():
    with pytest.raises(SystemExit) as caught:
        cli.main(["paint"])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "debug"),
    [(["--debug", "demo"], True), (["demo", "--debug"], True), (["demo"], False)],
)
def test_debug_is_accepted_before_and_after_the_command(arguments, debug, monkeypatch, capsys):
    def fail(options):
        raise KeyError("broken")

    monkeypatch.setattr(commands, "demo", fail)
    if debug:
        with pytest.raises(KeyError, match="broken"):
            cli.main(arguments)
    else:
        assert cli.main(arguments) == 1
        assert "broken" in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    code = "import sys; from dfd_utils import cli; cli.build_parser(); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    modules = set(result.stdout.split())
    assert "dfd_utils.cli" in modules
    assert not modules & {"numpy", "pandas", "torch", "matplotlib", "PIL", "papermill"}


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
@pytest.mark.parametrize("requested", [None, "glibc.malloc.check=0"])
def test_the_command_starts_with_large_pages_unless_told_otherwise(requested):
    code = (
        "import os\nfrom dfd_utils.__main__ import start\n"
        "print(os.environ.get('GLIBC_TUNABLES'), flush=True)\nstart()\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    if requested:
        environment["GLIBC_TUNABLES"] = requested
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"], env=environment, capture_output=True, text=True
    )
    *settings, version = done.stdout.splitlines()
    assert version == f"dfd {dfd_utils.__version__}"
    assert settings == ([requested] if requested else ["None", "glibc.malloc.hugetlb=1"])


def test_lines_come_through_a_pipe_at_once(easy_data, tmp_path):
    command = [sys.executable, "-m", "dfd_utils", "train", "--model", "efficientnet_b0"]
    command += ["--data", easy_data.path, "--out", tmp_path, "--epochs", "3", "--image-size", "32"]
    command += ["--batch-size", "8", "--precision", "fp32"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert any("epoch 1/3" in line for line in run.stdout)
        finished = (tmp_path / "efficientnet_b0" / "model.json").exists()
        run.terminate()
    assert not finished


def test_files_are_in_utf8_whatever_the_locale_is():
    code = (
        "import sys\nfrom dfd_utils.__main__ import start\n"
        "if sys.flags.utf8_mode: sys.exit(7)\nstart()"
    )
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0"}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 7
