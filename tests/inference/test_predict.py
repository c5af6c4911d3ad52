import csv
import io
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torchvision
from matplotlib import cbook
from PIL import Image
from scipy.special import logit
from sklearn.datasets import load_sample_images

from dfd_utils import cli
from dfd_utils.config import UserError
from dfd_utils.data import image_io
from dfd_utils.data.loader import data_loader
from dfd_utils.data.transforms import normalize
from dfd_utils.inference import predict
from dfd_utils.models import gradcam, trained

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def model(trained_run):
    return trained_run / "resnet50"


@pytest.fixture
def faces(easy_data):
    return sorted(str(path) for path in (easy_data / "Test" / "Fake").iterdir())


@pytest.fixture
def run(capsys, model):
    """Call `dfd predict` and return its exit code and what it wrote."""

    def call(*arguments, form="json"):
        code = cli.main(["predict", "--model", str(model), "--format", form, *map(str, arguments)])
        out = capsys.readouterr().out
        return code, [json.loads(line) for line in out.splitlines()] if form == "json" else out

    return call


# Finding


def test_files_folders_patterns_and_standard_input_in_their_order(
    tmp_path, faces, run, monkeypatch
):
    for name in ("b.jpg", "a.png", "deep/c.BMP", "deep/d.tiff", "note.txt", "x[1].jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(faces[0], tmp_path / name)
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{faces[2]}\n\n{faces[1]}\n"))
    code, rows = run(
        faces[3], tmp_path, "-", f"{tmp_path}/**/*.BMP", tmp_path / "x[1].jpg", faces[3]
    )
    expected = [tmp_path / name for name in ("a.png", "b.jpg", "x[1].jpg")]
    expected += [tmp_path / "deep" / name for name in ("c.BMP", "d.tiff")]
    expected = [faces[3], *expected, faces[2], faces[1], tmp_path / "deep" / "c.BMP"]
    expected += [tmp_path / "x[1].jpg", faces[3]]
    assert [row["path"] for row in rows] == list(map(str, expected))
    assert code == 0


def test_what_stands_for_no_picture_is_named(tmp_path, run):
    (tmp_path / "empty").mkdir()
    given = [tmp_path / "empty", f"{tmp_path}/*.webp", "no\udcffwhere.jpg", "nul\0.jpg"]
    code, rows = run(*given)
    assert code == 3
    assert [row["path"] for row in rows] == list(map(str, given))
    assert "folder without a picture" in rows[0]["error"]
    assert all(row["error"] for row in rows)


# Reading


def saved(path, image, **options):
    image.save(path, **options)
    return image_io.decode_untrusted(path)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
def test_lossless_formats_give_the_pixels(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    told = saved(tmp_path / f"a.{suffix}", Image.fromarray(PIXELS), **options)
    assert np.array_equal(told.permute(1, 2, 0).numpy(), PIXELS)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK"])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_any_colour_mode_keeps_its_colours(tmp_path, mode, suffix):
    if (mode, suffix) in (("CMYK", "png"), ("PA", "png")):
        mode = "RGBA"
    rgb = Image.new("RGB", (20, 10), (255, 255, 255))
    rgb.paste((0, 0, 0), (0, 0, 10, 10))
    told = saved(tmp_path / f"a.{suffix}", rgb.convert(mode)).float()
    assert told[:, :, :10].mean() < 5
    assert told[:, :, 10:].mean() > 250


def test_cmyk_jpeg_is_not_inverted(tmp_path):
    told = saved(tmp_path / "a.jpg", Image.new("RGB", (16, 16), (220, 60, 20)).convert("CMYK"))
    assert told.float().mean((1, 2)).tolist() == pytest.approx([220, 60, 20], abs=6)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_are_scaled_not_clipped(tmp_path, suffix):
    levels = np.array([[0, 257, 25700, 65535]], np.uint16)
    told = saved(tmp_path / f"a.{suffix}", Image.fromarray(levels))
    assert told.tolist() == [[[0, 1, 100, 255]]] * 3


def test_what_is_transparent_lies_on_white(tmp_path):
    told = saved(tmp_path / "a.png", Image.new("RGBA", (1, 1), (0, 0, 0, 51)))
    assert told.flatten().tolist() == [204] * 3  # a fifth of black over white
    red = Image.new("RGB", (1, 1), (200, 0, 0)).quantize(8)
    assert saved(tmp_path / "b.png", red).flatten().tolist() == [200, 0, 0]
    told = saved(tmp_path / "b.png", red, transparency=red.getpixel((0, 0)))
    assert told.flatten().tolist() == [255] * 3


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "jpg"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_exif_turns_every_format(tmp_path, suffix, mode):
    image = Image.new("RGB", (60, 40), "white")
    image.paste("black", (0, 0, 30, 40))
    image = image.convert("RGB" if (mode, suffix) == ("RGBA", "jpg") else mode)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter: the left side comes to the top
    told = saved(tmp_path / f"a.{suffix}", image, exif=exif).float()
    assert told.shape == (3, 60, 40)
    assert told[:, :28].mean() < 5
    assert told[:, 32:].mean() > 250


# Refusing


def png_of(width, height):
    """A PNG of one colour whose header promises any size, in a few bytes."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(10**6))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    )


def hostile(folder):
    """Write what must be refused; return the paths with a word of each reason."""
    (folder / "bomb.png").write_bytes(png_of(60_000, 60_000))
    (folder / "big.png").write_bytes(png_of(10_001, 10_000))
    os.mkfifo(folder / "fifo.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "s.jpg"))
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    with open(folder / "sparse.png", "wb") as file:
        file.truncate(10**12)
    (folder / "empty.jpg").touch()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    for kind in ("gif", "png", "webp"):
        name = folder / f"moving.{kind}"
        frames[0].save(name, save_all=True, append_images=frames[1:], loop=0)
    shutil.copy(folder / "moving.gif", folder / "gif.jpg")
    whole = io.BytesIO()
    Image.fromarray(PIXELS).save(whole, "JPEG", progressive=True)
    start = whole.getvalue().rindex(b"\xff\xda")
    scan = whole.getvalue()[start:-2]
    (folder / "scans.jpg").write_bytes(whole.getvalue()[:-2] + scan * 5000 + b"\xff\xd9")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(folder / "float.tiff")
    reasons = {
        "bomb.png": "megapixels", "big.png": "megapixels", "fifo.jpg": "pipe", "s.jpg": "socket",
        "loop.jpg": "symbolic links", "sparse.png": "MB", "empty.jpg": "empty",
        "moving.gif": "not an image", "moving.png": "animation", "moving.webp": "animation",
        "gif.jpg": "not an image", "scans.jpg": "scans", "float.tiff": "floating point",
    }  # fmt: skip
    named = {str(folder / name): reason for name, reason in reasons.items()}
    return named | {"/dev/zero": "device"}


def test_hostile_inputs_are_refused_in_little_memory_and_the_rest_is_scored(tmp_path, model, faces):
    named = hostile(tmp_path)
    listed = [faces[0], *named, faces[1]]
    # A process of its own: the warnings and limits are those of a user's call, and a hang ends.
    script = (
        "import resource, sys; from dfd_utils import cli\n"
        "import dfd_utils.inference.output\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "code = cli.main(sys.argv[1:])\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "print(grown // 1024, file=sys.stderr); sys.exit(code)"
    )
    command = ["predict", "--model", str(model), "--format", "json", *listed]
    done = subprocess.run(
        [sys.executable, "-c", script, *command], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 3
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["path"] for row in rows] == listed
    for row in rows[1:-1]:
        assert named[row["path"]] in row["error"]
        assert row["label"] is row["score"] is None
    assert rows[0]["error"] is rows[-1]["error"] is None
    assert "Traceback" not in done.stderr
    assert int(done.stderr.split()[-1]) < 1000  # MB, the model's own included


def test_damaged_files_never_end_the_run(tmp_path, faces):
    rng = np.random.default_rng(1)
    for suffix in ("jpg", "png", "webp", "bmp", "tiff"):
        Image.fromarray(PIXELS).save(tmp_path / f"a.{suffix}")
        whole = (tmp_path / f"a.{suffix}").read_bytes()
        for _ in range(60):
            damaged = bytearray(whole[: rng.integers(10, len(whole))])
            for place in rng.integers(0, min(len(damaged), 200), 5):
                damaged[place] = rng.integers(256)
            (tmp_path / f"b.{suffix}").write_bytes(damaged)
            try:
                assert image_io.decode_untrusted(tmp_path / f"b.{suffix}").shape[0] == 3
            except UserError as error:
                assert str(error).startswith(str(tmp_path / f"b.{suffix}: "))


# Rows


def test_rows_hold_the_contract_and_tiny_pictures_a_warning(tmp_path, run, faces):
    Image.fromarray(PIXELS[:15]).save(tmp_path / "tiny.png")
    code, (good, bad, tiny) = run(faces[0], "no.jpg", tmp_path / "tiny.png")
    assert code == 3
    assert list(good)[:5] == ["path", "label", "score", "threshold", "error"]
    assert good["label"] == ("Fake" if good["score"] >= good["threshold"] else "Real")
    assert (bad["label"], bad["score"], bad["warning"]) == (None, None, None)
    assert tiny["warning"].startswith("tiny: 60 x 15 pixels, the model looks at 32")
    assert not (good["warning"] or "").startswith("tiny")


def test_pictures_without_a_face_are_warned_of(tmp_path, run, monkeypatch):
    """Two scenes and one colour, against the portrait of Grace Hopper."""
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
    monkeypatch.setattr(predict, "SEARCHED", 3)  # these are four
    assert without_face(tmp_path) == 0
    assert without_face("--face-check", tmp_path) == 3


def test_csv_reads_back_and_text_is_a_line_an_input(tmp_path, run, faces):
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


def test_in_python_a_frame_of_the_same(faces, model, run):
    _, rows = run(*faces[:3])
    assert predict.predict(faces[:3], model).to_dict("records") == rows
    assert predict.predict([], model).columns.tolist() == list(predict.COLUMNS)


def test_many_are_read_and_scored_as_each_alone(faces, model):
    one = [predict.predict(face, model).iloc[0] for face in faces]
    many = predict.predict(faces, model)
    assert many["path"].tolist() == faces
    # Compared as logits: the temperature, here 0.05, makes their rounding twenty times as large.
    temperature = trained.read_description(model)["temperature"]
    alone = logit([row["score"] for row in one]) * temperature
    assert logit(many["score"].to_numpy(float)) * temperature == pytest.approx(alone, abs=5e-6)


def test_worker_processes_read_as_the_process_itself(tmp_path, faces):
    (tmp_path / "broken.jpg").write_bytes(b"")
    image_io = predict.UntrustedImages([*faces[:5], str(tmp_path / "broken.jpg")], 32)
    alone, sent = (list(data_loader(image_io, 4, num_workers=workers)) for workers in (0, 1))
    for expected, batch in zip(alone, sent, strict=True):
        assert torch.equal(batch[0], expected[0])
        assert [list(part) for part in batch[1:]] == [list(part) for part in expected[1:]]


def test_other_threads_compute_as_before(faces, model):
    before = torch.get_num_threads()
    predict.predict(faces, model)
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(torch.get_num_threads).result() == before


def test_a_runs_folder_means_its_best_model(trained_run):
    best = trained.choose_model(trained_run)
    assert best.parent == trained_run
    assert trained.choose_model(best) == best


# Going on, and sharing the work


@pytest.mark.parametrize("form", ["json", "csv"])
def test_broken_off_and_resumed_a_file_is_as_if_whole(tmp_path, run, faces, form):
    inputs = [*faces, "no.jpg", *faces]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run("--output", whole, *inputs, form=form)[0] == 3
    content = whole.read_bytes()
    for cut in (0, 5, content.index(b"no.jpg") + 9, len(content) // 2, len(content)):
        out.write_bytes(content[:cut])
        assert run("--output", out, "--resume", *inputs, form=form)[0] == 3
        assert out.read_bytes() == content


def test_resume_scores_only_the_rest(tmp_path, run, faces, monkeypatch):
    out = tmp_path / "out"
    run("--output", out, *faces[:5])
    seen = []
    monkeypatch.setattr(
        predict, "read_picture", lambda path: seen.append(path) or image_io.decode_untrusted(path)
    )
    run("--output", out, "--resume", *faces)
    assert sorted(seen) == faces[5:]


def test_nothing_is_overwritten_or_mixed(tmp_path, run, faces, trained_run, capsys):
    out = tmp_path / "out"
    run("--output", out, *faces[:2])
    before = out.read_bytes()
    assert run("--output", out, *faces[:2])[0] == 2
    assert run("--output", out, "--resume", *faces[1:])[0] == 2  # other inputs
    assert run("--output", out, "--resume", faces[0])[0] == 2  # fewer
    assert run("--output", out, "--resume", *faces[:2], form="csv")[0] == 2
    other = ["--model", str(trained_run / "efficientnet_b0")]
    assert run("--output", out, "--resume", *other, *faces[:3])[0] == 2
    assert run("--resume", faces[0])[0] == 2
    assert run("--output", tmp_path, faces[0])[0] == 2
    assert out.read_bytes() == before


def test_two_processes_give_the_rows_of_one(tmp_path, model, faces, run):
    """600 inputs make two batches, the second one short; every seventh cannot be read."""
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
    assert done.stderr.count("model: ") == 1  # the processes know of each other
    assert "exitcode  : 3" in done.stderr


# Heat maps


def test_each_picture_gets_its_own_heat_map(tmp_path, run, faces):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        shutil.copy(faces[0], tmp_path / folder / "same.jpg")
    out = tmp_path / "maps"
    run("--explain", out, tmp_path / "one", "no.jpg", tmp_path / "two", faces[1])
    names = sorted(path.name for path in out.iterdir())
    assert names == ["000001_same.png", "000003_same.png", "000004_001.png"]
    with Image.open(out / names[0]) as pair:
        assert pair.size == (80, 40)
        left = np.asarray(pair)[:, :40]
    plain = image_io.decode_untrusted(faces[0]).permute(1, 2, 0).numpy()
    assert np.array_equal(left, plain)


def test_overlay_colours_the_hot_part_alone():
    grey = torch.full((3, 40, 60), 128, dtype=torch.uint8)
    heat = np.zeros((8, 8), np.float32)
    heat[:, 6:] = 1
    told = np.asarray(gradcam.overlay(grey, heat)).astype(int)
    assert told.shape == (40, 60, 3)
    assert (told[:, :30] == 128).all()
    assert np.abs(told[:, 55:] - 128).max() > 40


# Weights of others


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_course_projects_weights_are_recognised(tmp_path, name, prefix):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(num_classes=2).eval()
    state = {prefix + key: value for key, value in theirs.state_dict().items()}
    torch.save(state, tmp_path / "model.pth")
    ours, description = trained.load_model(tmp_path / "model.pth")
    assert (description["architecture"], description["image_size"]) == (name, 224)
    assert (description["threshold"], description["temperature"]) == (0.5, 1.0)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(normalize(images)), rtol=1e-4, atol=1e-4)


class _Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_with_code_is_refused_and_runs_nothing(tmp_path, capsys, faces, legacy):
    content = {"fc.weight": torch.zeros(1), "evil": _Evil(tmp_path / "ran")}
    place = tmp_path / "model.pth"
    torch.save(content, place, _use_new_zipfile_serialization=not legacy)
    assert cli.main(["predict", "--model", str(place), faces[0]]) == 2
    assert "model.pth: not a file of weights alone" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_weights_of_no_known_model_are_refused(tmp_path):
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "imagenet.pth")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("imagenet", "other", "list"):
        with pytest.raises(UserError, match=f"{name}.pth: "):
            trained.load_model(tmp_path / f"{name}.pth")
    for place in ("/dev/zero", tmp_path / "nowhere.pth"):
        with pytest.raises(UserError):
            trained.load_model(trained.choose_model(place))
