"""Real, Fake or Unsure: variants, doubts, and what `dfd predict` makes of them."""

import dataclasses
import html
import json
import re

import numpy as np
import pytest
import torch
from matplotlib import cbook
from PIL import Image

from dfd_utils import cli
from dfd_utils.inference import predict
from dfd_utils.inference.page import write_report
from dfd_utils.inference.verdict import VARIANTS, doubts, with_variants
from dfd_utils.models.description import ModelDescription
from dfd_utils.models.trained import TrainedModel

DESCRIBED = ModelDescription("resnet50", threshold=0.5, unsure_from=0.4, unsure_to=0.7)


@pytest.fixture
def portrait(tmp_path):
    with cbook.get_sample_data("grace_hopper.jpg") as file, Image.open(file) as image:
        image.crop((110, 60, 410, 360)).save(tmp_path / "portrait.png")
    return tmp_path / "portrait.png"


@pytest.fixture
def banded(tmp_path, trained_run):
    """Return a function that copies a model and gives it a threshold and a band."""

    def make(threshold: float, low: float | None, high: float | None) -> TrainedModel:
        model = TrainedModel(trained_run / "efficientnet_b0")
        folder = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "model.safetensors").symlink_to(model.weights_file)
        band = {"threshold": threshold, "unsure_from": low, "unsure_to": high}
        dataclasses.replace(model.description, **band).write(folder / "model.json")
        return TrainedModel(folder)

    return make


def test_variants_look_alike(portrait):
    image = predict.read_image(portrait)
    versions = with_variants(image, len(VARIANTS))
    assert len(versions) == 6
    assert torch.equal(versions[0], image)
    for name, version in zip(VARIANTS, versions[1:], strict=True):
        assert version.dtype == torch.uint8
        if name == "mirrored":
            version = version.flip(-1)
        elif name == "cropped by 2 %":
            assert version.shape == (3, 294, 294)
            version = torch.nn.functional.pad(version, (3, 3, 3, 3))
            version[:, :3], version[:, -3:] = image[:, :3], image[:, -3:]
            version[:, :, :3], version[:, :, -3:] = image[:, :, :3], image[:, :, -3:]
        error = (version.float() - image.float()).square().mean()
        psnr = 10 * np.log10(255**2 / max(error.item(), 1e-9))
        assert psnr > 28, name  # and none but the last two has all its pixels
        assert (error == 0) == (name in ("mirrored", "cropped by 2 %")), name


@pytest.mark.parametrize(
    ("scores", "reasons"),
    [
        ([0.9], []),
        ([0.3, 0.2, 0.49], []),
        ([0.4], ["close call"]),
        ([0.699, 0.699], ["close call"]),
        ([0.7], []),
        ([0.3, 0.5], ["changes"]),
        ([0.8, 0.49], ["changes"]),
        ([0.45, 0.55], ["close call", "changes"]),
    ],
)
def test_doubts(scores, reasons):
    found = doubts(DESCRIBED, np.array(scores))
    assert [reason.split(":")[0].split(" when")[0] for reason in found] == reasons


def test_a_band_around_a_score_makes_it_unsure(banded, portrait):
    score = predict.predict(portrait, banded(0.5, None, None), variants=0)["score"][0]
    close = banded(score, max(score - 0.1, 0), min(score + 0.1, 1))
    (row,) = predict.predict(portrait, close, variants=0).to_dict("records")
    assert (row["label"], row["score"]) == ("Unsure", score)
    assert row["warning"].startswith("close call")
    assert row["score_low"] is row["score_high"] is None
    (plain,) = predict.predict(portrait, close, always_answer=True).to_dict("records")
    assert plain["label"] == "Fake"
    assert plain["warning"].startswith("close call")


def test_without_a_band_the_answer_has_a_warning(banded, portrait):
    sure = predict.predict(portrait, banded(0.0, None, None), variants=0)
    assert sure["label"].tolist() == ["Fake"]
    assert "more than 5 % of such answers may be wrong" in sure["warning"][0]
    sure = predict.predict(portrait, banded(0.0, 0.0, 0.0), variants=0)
    assert sure["label"].tolist() == ["Fake"]
    assert "may be wrong" not in (sure["warning"][0] or "")


def test_scores_on_both_sides_of_the_threshold_are_unsure(banded, portrait):
    (row,) = predict.predict(portrait, banded(0.5, None, None)).to_dict("records")
    assert row["score_low"] < row["score_high"]
    between = (row["score_low"] + row["score_high"]) / 2
    (row,) = predict.predict(portrait, banded(between, between, between)).to_dict("records")
    assert (row["label"], row["warning"]) == ("Unsure", "changes when the image is saved again")


def test_the_variants_of_an_image_are_scored_as_images(banded, portrait, tmp_path):
    model = banded(0.5, None, None)
    scores = []
    for index, version in enumerate(with_variants(predict.read_image(portrait), len(VARIANTS))):
        pixels = version.permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / f"v{index}.png")
        scores.append(predict.predict(tmp_path / f"v{index}.png", model, variants=0)["score"][0])
    (row,) = predict.predict(portrait, model).to_dict("records")
    expected = [scores[0], min(scores), max(scores)]
    found = [row["score"], row["score_low"], row["score_high"]]
    assert found == pytest.approx(expected, abs=1e-4)


def test_more_than_64_images_have_no_variants_unless_wanted(banded, portrait, monkeypatch):
    model = banded(0.5, None, None)
    monkeypatch.setattr(predict, "MAX_FILES_FOR_VARIANTS", 1)
    assert predict.predict([portrait], model)["score_low"].notna().all()
    assert predict.predict([portrait] * 2, model)["score_low"].isna().all()
    assert predict.predict([portrait] * 2, model, variants=2)["score_low"].notna().all()


def test_options_of_the_command(banded, portrait, capsys):
    model = banded(0.5, 0.0, 1.0)
    command = ["predict", "--model", str(model.folder), "--format", "json", str(portrait)]
    assert cli.main(command) == 0
    assert json.loads(capsys.readouterr().out)["label"] == "Unsure"
    assert cli.main([*command, "--always-answer"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] in ("Real", "Fake")
    assert cli.main([*command, "--variants", "6"]) == 2
    assert "from 0 to 5" in capsys.readouterr().err


def test_a_file_of_other_options_is_not_continued(banded, portrait, tmp_path, capsys):
    command = ["predict", "--model", str(banded(0.5, None, None).folder), str(portrait)]
    command += ["--format", "json", "--output", str(tmp_path / "out.json")]
    assert cli.main(command) == 0
    assert cli.main([*command, "--resume", "--always-answer"]) == 2
    assert "differs from this command in answers" in capsys.readouterr().err


def test_the_page_of_a_folder_has_the_doubtful_first_and_names_as_text(
    banded, portrait, tmp_path, capsys
):
    names = ["<b>&amp;.png", "plain.png"]
    for name in names:
        Image.open(portrait).rotate(len(name)).save(tmp_path / name)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    model, page = banded(0.5, None, None), tmp_path / "page.html"
    files = [str(tmp_path / name) for name in ["broken.jpg", *names, names[0]]]
    rows = predict.predict(files, model).to_dict("records")
    for row, label, score in zip(
        rows[1:], ("Fake", "Real", "Unsure"), (0.9, 0.2, 0.1), strict=True
    ):
        row |= {"label": label, "score": score}
    write_report(rows, model, page)
    text = page.read_text()
    assert "<b>" not in text.split("</style>")[1]
    verdicts = ["Unsure: this model", "Looks real to", "Looks fake to", "Not classified"]
    places = [text.index(verdict) for verdict in verdicts]
    assert places == sorted(places)
    assert text.count(f"<h2>{html.escape(files[1])}</h2>") == 2
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    page.unlink()
    command = ["predict", "--model", str(model.folder), "--report", str(page), *files]
    assert cli.main(command) == 3
    assert "4 images" in page.read_text()
    assert cli.main([*command, "--resume", "--output", str(tmp_path / "o.json")]) == 2
