import json
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from dfd_utils import cli
from dfd_utils.config import UserError
from dfd_utils.inference import predict
from dfd_utils.models import trained


@pytest.fixture
def model(trained_run):
    return str(trained_run / "resnet50")


@pytest.fixture
def pictures(easy_data, tmp_path):
    """Two good images with a broken one between them."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    shutil.copy(easy_data / "Test" / "Fake" / "000.jpg", folder / "a.jpg")
    (folder / "b.jpg").write_bytes(b"no image")
    shutil.copy(easy_data / "Test" / "Real" / "000.jpg", folder / "c.jpg")
    return folder


def test_predict_json_has_a_line_an_input_in_order(pictures, model, capsys):
    assert cli.main(["predict", "--model", model, "--format", "json", str(pictures)]) == 3
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["path"][-5:] for row in rows] == ["a.jpg", "b.jpg", "c.jpg"]
    assert all(set(row) >= {"path", "label", "score", "threshold", "error"} for row in rows)
    assert rows[1]["label"] is None
    assert rows[1]["score"] is None
    assert "image" in rows[1]["error"]
    for row in (rows[0], rows[2]):
        assert row["error"] is None
        assert row["label"] == ("Fake" if row["score"] >= row["threshold"] else "Real")


def test_predict_gives_the_scores_of_the_evaluation(easy_data, trained_run):
    from dfd_utils.evaluation.evaluate import score_split

    expected = score_split(trained_run / "resnet50", easy_data, "Test")
    files = [easy_data / path for path in expected["path"]]
    table = predict.predict(files, trained_run / "resnet50")
    assert table["score"].astype(float).to_numpy() == pytest.approx(expected["score"], abs=1e-5)


def test_predict_without_errors_ends_with_0(easy_data, model, capsys):
    picture = str(easy_data / "Test" / "Fake" / "000.jpg")
    assert cli.main(["predict", "--model", model, picture]) == 0
    assert "probability of Fake" in capsys.readouterr().out
    assert cli.main(["predict", "--model", model, "--format", "csv", picture]) == 0
    assert capsys.readouterr().out.startswith("path,label,score,threshold,error,warning\n")


def test_a_missing_picture_is_named(model, capsys):
    assert cli.main(["predict", "--model", model, "nowhere.jpg"]) == 3
    assert "nowhere.jpg: No such file" in capsys.readouterr().out


def test_default_model_is_the_best_of_the_newest_run(trained_run, tmp_path):
    runs = tmp_path / "runs"
    for run, auc in (("old", 0.99), ("new", 0.5)):
        for name, better in (("resnet50", 0), ("efficientnet_b0", 0.1)):
            folder = runs / run / name
            folder.mkdir(parents=True)
            (folder / "model.json").write_text("{}")
            pd.DataFrame({"epoch": [1], "auc": [auc + better]}).to_csv(
                folder / "history.csv", index=False
            )
    import os

    os.utime(runs / "old" / "resnet50" / "model.json", (1, 1))
    os.utime(runs / "old" / "efficientnet_b0" / "model.json", (1, 1))
    assert trained.choose_model(runs) == runs / "new" / "efficientnet_b0"
    with pytest.raises(UserError, match="no trained model"):
        trained.choose_model(tmp_path / "nothing")


def test_compare_json(trained_run, easy_data, capsys):
    assert cli.main(["evaluate", "--data", str(easy_data), str(trained_run)]) == 0
    files = [str(trained_run / m / "predictions_Test.csv") for m in ("resnet50", "efficientnet_b0")]
    capsys.readouterr()
    assert cli.main(["compare", *files, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["models"]) == {"resnet50", "efficientnet_b0"}
    assert {"value", "low", "high", "p"} <= set(told["pair"]["auc_difference"])
    assert cli.main(["compare", *files]) == 0
    assert "AUC" in capsys.readouterr().out


def test_train_and_its_refusals(easy_data, tmp_path, capsys):
    command = ["train", "--model", "efficientnet_b0", "--data", str(easy_data), "--epochs", "1"]
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
    places = {"data": easy_data, "tmp": tmp_path, "file": tmp_path / "file"}
    before = sorted(tmp_path.rglob("*"))
    assert cli.main([argument.format(**places) for argument in arguments]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert named in told[0]
    assert [p for p in sorted(tmp_path.rglob("*")) if p not in before and p.is_file()] == []


def test_wrong_use_ends_with_2():
    with pytest.raises(SystemExit) as caught:
        cli.main(["paint"])
    assert caught.value.code == 2


def test_lines_come_through_a_pipe_when_they_are_said(easy_data, tmp_path):
    command = [sys.executable, "-m", "dfd_utils", "train", "--model", "efficientnet_b0"]
    command += ["--data", easy_data, "--out", tmp_path, "--epochs", "3", "--image-size", "32"]
    command += ["--batch-size", "8", "--precision", "fp32"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert any("epoch 1/3" in line for line in run.stdout)
        finished = (tmp_path / "efficientnet_b0" / "model.json").exists()
        run.terminate()
    assert not finished
