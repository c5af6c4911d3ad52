"""`dfd predict` and `predict`: inputs, rows, warnings, resuming, and heat maps."""

import csv
import io
import json
import math
import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import cbook
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.special import logit
from sklearn.datasets import load_sample_images

from dfd_utils import cli
from dfd_utils.data.image_io import read_pixels
from dfd_utils.data.loader import data_loader
from dfd_utils.inference import predict
from dfd_utils.models.trained import TrainedModel
from tests.conftest import huge_png

NAME = "efficientnet_b0"
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def model(trained_run):
    return trained_run / NAME


@pytest.fixture
def faces(easy_data):
    return sorted(str(path) for path in (easy_data.path / "Test" / "Fake").iterdir())


@pytest.fixture
def run(capsys, model):
    """Call `dfd predict`; return its exit code and its rows or, not for JSON, its output."""

    def call(*arguments, form="json", model=model):
        code = cli.main(["predict", "--model", str(model), "--format", form, *map(str, arguments)])
        out = capsys.readouterr().out
        return code, [json.loads(line) for line in out.splitlines()] if form == "json" else out

    return call


def copy_with_bias(model: Path, to: Path, added: float) -> Path:
    """Copy a model with its temperature and threshold; add a number to the bias of Real."""
    to.mkdir()
    shutil.copy(model / "model.json", to)
    weights = load_file(model / "model.safetensors")
    weights["backbone.classifier.1.bias"][0] += added
    save_file(weights, to / "model.safetensors")
    return to


# Inputs


def test_files_folders_patterns_and_standard_input_in_their_order(
    tmp_path, faces, run, monkeypatch
):
    for name in ("b.jpg", "a.png", "deep/c.BMP"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(faces[0], tmp_path / name)
    # As editors of Windows write lists: with a mark at the beginning, and two bytes per line end.
    listing = f"\ufeff{faces[2]}\r\n\r\n{faces[1]}\r\n".encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(listing)))
    code, rows = run(faces[3], tmp_path, "-", f"{tmp_path}/**/*.BMP", faces[3])
    expected = [tmp_path / name for name in ("a.png", "b.jpg", "deep/c.BMP")]
    expected = [faces[3], *expected, faces[2], faces[1], tmp_path / "deep" / "c.BMP", faces[3]]
    assert [row["path"] for row in rows] == list(map(str, expected))
    assert code == 0


def test_skipped_files_are_counted_on_standard_error(tmp_path, model, faces, capsys):
    for name in ("a.txt", "b.TXT", "c.csv", "README", ".hidden.txt", ".hidden.jpg"):
        (tmp_path / name).touch()
    hidden = tmp_path / ".ipynb_checkpoints"
    hidden.mkdir()
    for path in (tmp_path / "face.jpg", hidden / "face-checkpoint.jpg"):
        shutil.copy(faces[0], path)
    (hidden / "notes.txt").touch()
    assert cli.main(["predict", "--model", str(model), "--format", "json", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["path"] for line in out.splitlines()] == [str(tmp_path / "face.jpg")]
    assert "skipped files that are not images: 1 .csv, 2 .txt, 1 without suffix" in err
    assert cli.main(["predict", "--model", str(model), faces[0]]) == 0
    assert "skipped" not in capsys.readouterr().err


def test_inputs_without_an_image_are_rows_with_errors(tmp_path, run):
    (tmp_path / "empty").mkdir()
    inputs = [tmp_path / "empty", f"{tmp_path}/*.webp", "no\udcffwhere.jpg", "nul\0.jpg"]
    code, rows = run(*inputs)
    assert code == 3
    assert [row["path"] for row in rows] == list(map(str, inputs))
    assert "folder without an image" in rows[0]["error"]
    assert all(row["error"] for row in rows)


def write_hostile_files(folder: Path) -> dict[str, str]:
    """Write files that must be refused; return their paths with a word of each reason."""
    (folder / "bomb.png").write_bytes(huge_png(60_000, 60_000))
    (folder / "big.png").write_bytes(huge_png(10_001, 10_000))
    os.mkfifo(folder / "fifo.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "s.jpg"))
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    with open(folder / "sparse.png", "wb") as file:
        file.truncate(10**12)
    (folder / "empty.jpg").touch()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    for kind in ("gif", "png", "webp"):
        path = folder / f"moving.{kind}"
        frames[0].save(path, save_all=True, append_images=frames[1:], loop=0)
    content = io.BytesIO()
    Image.fromarray(PIXELS).save(content, "JPEG", progressive=True)
    start = content.getvalue().rindex(b"\xff\xda")
    scan = content.getvalue()[start:-2]
    (folder / "scans.jpg").write_bytes(content.getvalue()[:-2] + scan * 5000 + b"\xff\xd9")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(folder / "float.tiff")
    reasons = {
        "bomb.png": "megapixels", "big.png": "megapixels", "fifo.jpg": "pipe", "s.jpg": "socket",
        "loop.jpg": "symbolic links", "sparse.png": "MB", "empty.jpg": "empty",
        "moving.gif": "animation", "moving.png": "animation", "moving.webp": "animation",
        "scans.jpg": "scans", "float.tiff": "floating point",
    }  # fmt: skip
    return {str(folder / name): reason for name, reason in reasons.items()} | {
        "/dev/zero": "device"
    }


def test_hostile_inputs_are_refused_in_little_memory_and_the_rest_is_scored(tmp_path, model, faces):
    reasons = write_hostile_files(tmp_path)
    inputs = [faces[0], *reasons, faces[1]]
    # A process of its own: with the limits of a user's call, and a time limit.
    script = (
        "import resource, sys; from dfd_utils import cli\n"
        "import dfd_utils.inference.output\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "code = cli.main(sys.argv[1:])\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "print(grown // 1024, file=sys.stderr); sys.exit(code)"
    )
    command = [sys.executable, "-c", script, "predict", "--model", str(model), "--format", "json"]
    done = subprocess.run([*command, *inputs], capture_output=True, text=True, timeout=100)
    assert done.returncode == 3
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["path"] for row in rows] == inputs
    for row in rows[1:-1]:
        assert reasons[row["path"]] in row["error"]
        assert row["label"] is row["score"] is None
    assert rows[0]["error"] is rows[-1]["error"] is None
    assert "Traceback" not in done.stderr
    assert int(done.stderr.split()[-1]) < 1000  # MB, including the model


def test_names_keep_their_bytes_in_every_locale(tmp_path, model, faces):
    names = ["é \u4eba.jpg", os.fsdecode(b"\xff.jpg")]
    for name in names:
        shutil.copy(faces[0], tmp_path / name)
    command = [sys.executable, "-m", "dfd_utils", "predict", "--model", str(model)]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(
        [*command, f"{tmp_path}/", "-"], capture_output=True, env=environment,
        input=os.fsencode(tmp_path / names[0]),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    expected = [os.fsencode(tmp_path / name) for name in (*names, names[0])]
    assert [row[: len(name)] for row, name in zip(rows, expected, strict=True)] == expected


def test_files_that_are_no_images_are_refused_in_one_line_each(tmp_path, run):
    (tmp_path / "notes.txt").write_text("words\n" * 1000)
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(999))
    code, rows = run(tmp_path / "notes.txt", tmp_path / "clip.mp4")
    assert code == 3
    for row in rows:
        assert row["error"].startswith("not an image (JPEG, PNG,")


# Rows


def test_rows_have_all_fields_and_tiny_images_a_warning(tmp_path, run, faces):
    Image.fromarray(PIXELS[:15]).save(tmp_path / "tiny.png")
    code, (good, bad, tiny) = run(faces[0], "no.jpg", tmp_path / "tiny.png")
    assert code == 3
    assert tuple(good) == predict.COLUMNS
    assert good["score_low"] <= good["score"] <= good["score_high"]
    assert (bad["label"], bad["score"], bad["warning"]) == (None, None, None)
    assert "tiny: 60 x 15 pixels, the model's input has 32" in tiny["warning"]
    assert "tiny" not in (good["warning"] or "")


def test_images_without_a_face_have_a_warning(tmp_path, run, monkeypatch):
    """Two scenes and one colour, compared with the portrait of Grace Hopper."""
    photographs = load_sample_images().images
    for name, pixels in (("temple", photographs[0]), ("flower", photographs[1])):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    Image.new("RGB", (60, 60), (200, 150, 120)).save(tmp_path / "flat.png")
    with cbook.get_sample_data("grace_hopper.jpg") as file, Image.open(file) as portrait:
        portrait.crop((110, 60, 410, 360)).save(tmp_path / "portrait.png")
    _, (flat, flower, face, temple) = run(tmp_path)
    for row in (flat, flower, temple):
        assert "no face" in row["warning"]
    assert "no face" not in (face["warning"] or "")

    def without_face(*arguments):
        return sum("no face" in (row["warning"] or "") for row in run(*arguments)[1])

    assert without_face("--no-face-check", tmp_path) == 0
    monkeypatch.setattr(predict, "FACE_CHECK_LIMIT", 3)  # these are four
    assert without_face(tmp_path) == 0
    assert without_face("--face-check", tmp_path) == 3


def test_csv_can_be_read_back_and_text_has_a_line_per_input(tmp_path, run, faces):
    odd = tmp_path / 'a,"b.jpg'
    shutil.copy(faces[0], odd)
    _, out = run(odd, "no.jpg", form="csv")
    first, second = csv.DictReader(io.StringIO(out))
    assert first["path"] == str(odd)
    assert 0 <= float(first["score"]) <= 1
    assert (second["score"], second["label"]) == ("", "")
    assert second["error"]
    _, out = run(odd, "no.jpg", form="text")
    assert "probability of Fake" in out.splitlines()[0]
    assert len(out.splitlines()) == 2


def test_in_python_predictions_are_a_frame_of_the_same_rows(faces, model, run):
    _, rows = run(*faces[:3])
    assert predict.predict(faces[:3], model).to_dict("records") == rows
    assert predict.predict([], model).columns.tolist() == list(predict.COLUMNS)


@pytest.mark.parametrize("form", ["json", "csv", "text"])
def test_an_output_that_is_not_a_number_is_an_error(tmp_path, run, faces, model, form):
    broken = copy_with_bias(model, tmp_path / "broken", math.nan)
    code, out = run("--explain", tmp_path / "maps", *faces[:2], "no.jpg", form=form, model=broken)
    assert code == 3
    if form == "json":
        assert [row["label"] for row in out] == [row["score"] for row in out] == [None] * 3
        assert out[0]["error"] == out[1]["error"] == "the model's output is not a number"
    assert "nan" not in str(out).lower().replace(str(tmp_path), "")
    assert not (tmp_path / "maps").exists()


def test_a_model_of_nan_is_not_exported(tmp_path, model, capsys):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    broken = copy_with_bias(model, tmp_path / "broken", math.nan)
    assert cli.main(["export", "--onnx", "--model", str(broken)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "weights that are not numbers" in line
    assert not (broken / "model.onnx").exists()


# Batches, threads and processes


def test_batches_give_the_scores_of_single_images(faces, model):
    alone = [predict.predict(face, model).iloc[0]["score"] for face in faces]
    batch = predict.predict(faces, model)
    assert batch["path"].tolist() == faces
    # Compared as logits: a low temperature, here 0.05, multiplies their rounding errors.
    temperature = TrainedModel(model).description.temperature
    expected = logit(alone) * temperature
    assert logit(batch["score"].to_numpy(float)) * temperature == pytest.approx(expected, abs=5e-6)


def test_worker_processes_read_as_the_main_process(tmp_path, faces, model):
    (tmp_path / "broken.jpg").write_bytes(b"")
    files = [*faces[:5], str(tmp_path / "broken.jpg")]
    dataset = predict.UntrustedImages(files, TrainedModel(model))
    one, other = (list(data_loader(dataset, 4, num_workers=workers)) for workers in (0, 1))
    for expected, batch in zip(one, other, strict=True):
        assert torch.equal(batch[0], expected[0])
        assert [list(part) for part in batch[1:]] == [list(part) for part in expected[1:]]


def test_other_threads_compute_as_before(faces, model):
    before = torch.get_num_threads()
    predict.predict(faces, model)
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(torch.get_num_threads).result() == before


def test_two_processes_give_the_rows_of_one(tmp_path, model, faces, run):
    """600 inputs are two batches, the second one incomplete; every seventh cannot be read."""
    inputs = [faces[i % len(faces)] if i % 7 else f"no{i}.jpg" for i in range(600)]
    listing = tmp_path / "list"
    listing.write_text("\n".join(inputs))
    _, expected = run(*inputs)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", "-m", "dfd_utils", "predict", "--model", str(model)]
    command += ["--format", "json", "--output", str(tmp_path / "out"), "-"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(listing) as stdin:
        done = subprocess.run(
            command, stdin=stdin, capture_output=True, text=True, env=environment, timeout=200
        )
    rows = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [row["path"] for row in rows] == inputs
    for row, single in zip(rows, expected, strict=True):
        assert row["error"] == single["error"]
        if row["error"] is None:
            assert row["score"] == pytest.approx(single["score"], abs=1e-4)
    assert done.stderr.count("model: ") == 1  # only one process writes
    assert "exitcode  : 3" in done.stderr


# Resuming


def rows_of(content: bytes, form: str) -> tuple[list[dict], list[float]]:
    """Return the rows of an output file without labels and scores, and the scores."""
    text = content.decode()
    if form == "json":
        rows = [json.loads(line) for line in text.splitlines()]
    else:
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    for row in rows:
        row.pop("label")  # the last bits of a score at the threshold decide it
    return rows, [float(row.pop("score") or -1) for row in rows]


@pytest.mark.parametrize("form", ["json", "csv"])
def test_an_interrupted_file_is_completed_as_if_written_at_once(tmp_path, run, faces, form):
    odd = tmp_path / "two\nlines.jpg"
    shutil.copy(faces[0], odd)
    inputs, out = ["no.jpg", *faces, odd, *faces[:2]], tmp_path / "out"
    inputs = ["--variants", 0, *inputs]  # their scores, too, differ in the last bits
    assert run("--output", out, *inputs, form=form)[0] == 3
    content = out.read_bytes()
    rows, scores = rows_of(content, form)
    assert [row["path"] for row in rows] == list(map(str, inputs[2:]))
    inside_odd = content.index(b"lines.jpg") + 3
    for cut in (0, 5, content.index(b"no.jpg") + 9, inside_odd, len(content) - 30, len(content)):
        out.write_bytes(content[:cut])
        assert run("--output", out, "--resume", *inputs, form=form)[0] == 3
        resumed, resumed_scores = rows_of(out.read_bytes(), form)
        assert resumed == rows
        assert resumed_scores == pytest.approx(scores, abs=1e-4)  # batches of other sizes


def test_resume_scores_only_the_rest(tmp_path, run, faces, monkeypatch):
    out, read = tmp_path / "out", []
    run("--output", out, *faces)
    rows = out.read_text().splitlines(keepends=True)
    out.write_text("".join(rows[:5]))
    read_image = predict.read_image
    monkeypatch.setattr(predict, "read_image", lambda path: read.append(path) or read_image(path))
    assert run("--output", out, "--resume", *faces)[0] == 0
    assert sorted(read) == faces[5:]
    assert out.read_text().startswith("".join(rows[:5]))
    assert len(out.read_text().splitlines()) == len(faces)


def test_resume_refuses_what_was_written_with_something_else(tmp_path, model, faces, capsys):
    out = tmp_path / "out"
    other_seed = copy_with_bias(model, tmp_path / "other", 0.01)  # the threshold is the same

    def refusal(*arguments, model=model, form="json"):
        command = ["predict", "--model", str(model), "--format", form, "--output", str(out)]
        assert cli.main([*command, *arguments]) == 2
        return capsys.readouterr().err

    first = ["predict", "--model", str(model), "--format", "json", "--output", str(out)]
    assert cli.main([*first, *faces[:2]]) == 0
    before = out.read_bytes()
    assert "exists; --resume continues it" in refusal(*faces[:2])
    assert "differs from this command in model;" in refusal(
        "--resume", *faces[:2], model=other_seed
    )
    assert "differs from this command in inputs;" in refusal("--resume", *faces[1:3])
    assert "differs from this command in inputs;" in refusal("--resume", *faces[:3])
    assert "differs from this command in format;" in refusal("--resume", *faces[:2], form="csv")
    assert "differs from this command in model, inputs;" in refusal(
        "--resume", faces[0], model=other_seed
    )
    assert "requires --format json or csv" in refusal("--resume", *faces[:2], form="text")
    (tmp_path / "out.resume.json").unlink()
    assert "out.resume.json: missing" in refusal("--resume", *faces[:2])
    assert out.read_bytes() == before
    assert cli.main(["predict", "--model", str(model), "--resume", faces[0]]) == 2
    assert "--resume requires --output" in capsys.readouterr().err
    assert cli.main([*first[:-1], str(tmp_path), faces[0]]) == 2
    assert "not a file" in capsys.readouterr().err


# Heat maps


def test_each_image_gets_its_own_heat_map(tmp_path, run, faces):
    long = "x" * 244 + ".jpg"  # 248 characters, near the limit of file systems
    for path in ("one/same.jpg", "two/same.jpg", f"three/{long}"):
        (tmp_path / path).parent.mkdir()
        shutil.copy(faces[0], tmp_path / path)
    inputs = [tmp_path / "one", "no.jpg", tmp_path / "two", tmp_path / "three", faces[1]]
    assert run("--explain", tmp_path / "maps", *inputs)[0] == 3
    names = sorted(path.name for path in (tmp_path / "maps").iterdir())
    expected = ["1_same.png", "3_same.png", f"4_{'x' * predict.MAX_HEAT_MAP_NAME}.png", "5_001.png"]
    assert names == [f"00000{name}" for name in expected]
    with Image.open(tmp_path / "maps" / names[0]) as pair:
        assert pair.size == (80, 40)
        assert np.array_equal(np.asarray(pair)[:, :40], read_pixels(faces[0]))


def test_a_heat_map_that_cannot_be_written_does_not_cost_the_scores(tmp_path, model, faces, capsys):
    (tmp_path / "file").touch()
    command = ["predict", "--model", str(model), "--format", "json"]
    assert cli.main([*command, "--explain", str(tmp_path / "file" / "maps"), *faces]) == 2
    out, err = capsys.readouterr()
    assert [json.loads(line)["path"] for line in out.splitlines()] == faces
    assert "cannot be written" in err
