"""Files of weights as others save them, the order of their outputs, and what is refused."""

import argparse
import os

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from dfd_utils import cli
from dfd_utils.config import UserError
from dfd_utils.data.transforms import eval_transform, normalize
from dfd_utils.models import onnx_export
from dfd_utils.models.registry import available_weights, create_model
from dfd_utils.models.trained import TrainedModel, choose_model, find_models
from dfd_utils.models.weights import read_weights

NAME = "efficientnet_b0"


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)


@pytest.fixture(scope="module")
def state():
    """The weights of a bare torchvision model with two outputs."""
    torch.manual_seed(0)
    state = torchvision.models.efficientnet_b0(num_classes=2).state_dict()
    return state | {"classifier.1.bias": torch.tensor([0.3, -0.2])}


@pytest.fixture(scope="module")
def imagenet_file(tmp_path_factory):
    """A file like torchvision's ImageNet weights, with 1,000 outputs."""
    path = tmp_path_factory.mktemp("weights") / "imagenet.pth"
    torch.save(torchvision.models.efficientnet_b0().state_dict(), path)
    return path


def test_the_course_projects_state_dict_loads(tmp_path, images):
    bare = torchvision.models.resnet50(num_classes=2).eval()
    torch.save(bare.state_dict(), tmp_path / "model.pth")
    model = create_model("resnet50", str(tmp_path / "model.pth")).eval()
    torch.testing.assert_close(model(images), bare(normalize(images)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pth.tar", ".bin", ".safetensors"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.module.", "model.backbone.", "module._orig_mod.model."]
)
def test_every_suffix_and_prefix_gives_the_same_weights(tmp_path, state, suffix, prefix):
    path = tmp_path / f"weights{suffix}"
    named = {f"{prefix}{key}": state[key] for key in list(state)[-9:]}
    (save_file if suffix == ".safetensors" else torch.save)(named, path)
    weights = read_weights(path)
    assert list(sorted(weights)) == sorted(f"backbone.{key}" for key in list(state)[-9:])
    assert all(torch.equal(weights[f"backbone.{key}"], state[key]) for key in list(state)[-9:])


@pytest.mark.parametrize("keys", [["state_dict"], ["model"], ["model_state_dict"],
                                  ["model", "state_dict"]])  # fmt: skip
def test_the_weights_inside_a_checkpoint_are_found(tmp_path, state, keys):
    content = {f"module.{key}": value for key, value in state.items()}
    for key in reversed(keys):
        optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}
        content = {"epoch": 3, "optimizer": optimizer, "best": 0.9, key: content, "arch": "b0"}
        content["args"] = argparse.Namespace(lr=0.1, classes=["Real", "Fake"])
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    model = TrainedModel(tmp_path / "checkpoint.pth.tar")
    assert model.description.architecture == NAME
    assert torch.equal(model.load().backbone.classifier[1].weight, state["classifier.1.weight"])


class _Evil:
    def __reduce__(self):
        return os.mkdir, ("code-has-run",)


@pytest.mark.parametrize("place", ["weights", "beside"])
def test_a_pickle_with_code_is_refused_and_runs_nothing(tmp_path, monkeypatch, state, place):
    monkeypatch.chdir(tmp_path)
    evil = {"fc.weight": _Evil()} if place == "weights" else {"state_dict": state, "args": _Evil()}
    torch.save(evil, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"evil\.pth: not a file of weights alone; save model\."):
        create_model("resnet50", str(tmp_path / "evil.pth"))
    assert not (tmp_path / "code-has-run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"a": 1}}, "no state dict"),
        ({"epoch": 3}, "no state dict"),
        ([1, 2], "no state dict"),
        ({0: torch.zeros(1)}, "no state dict"),
        ({"model.a": torch.zeros(1), "module.a": torch.ones(1)}, "several models"),
        ({"a": torch.zeros(1)}, "no known model"),
        ({"classifier.1.bias": torch.zeros(0)}, "no known model"),
        ({"classifier.1.bias": torch.zeros(2, 2)}, "no known model"),
    ],
)
def test_other_contents_are_refused_in_one_line(tmp_path, content, message):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match=rf"other\.pth: .*{message}") as caught:
        TrainedModel(tmp_path / "other.pth")
    assert "\n" not in str(caught.value)


def test_imagenet_weights_get_a_new_last_layer_for_training(imagenet_file):
    lines = []
    assert available_weights(NAME, str(imagenet_file), lines.append) == str(imagenet_file)
    assert lines == [
        f"{imagenet_file}: its last layer has 1,000 outputs; a new one with 2 replaces it"
    ]
    torch.manual_seed(0)
    model = create_model(NAME, str(imagenet_file))
    torch.manual_seed(0)
    fresh = create_model(NAME)
    assert torch.equal(model.backbone.classifier[1].weight, fresh.backbone.classifier[1].weight)
    first = read_weights(imagenet_file)["backbone.features.0.0.weight"]
    assert torch.equal(model.backbone.features[0][0].weight, first)
    with pytest.raises(UserError, match="not those of a resnet50"):
        create_model("resnet50", str(imagenet_file))


def test_two_outputs_are_kept_for_training(tmp_path, state):
    torch.save(state, tmp_path / "weights.pth")
    lines = []
    available_weights(NAME, str(tmp_path / "weights.pth"), lines.append)
    assert lines == []
    model = create_model(NAME, str(tmp_path / "weights.pth"))
    assert torch.equal(model.backbone.classifier[1].weight, state["classifier.1.weight"])


def test_imagenet_weights_do_not_predict(imagenet_file, capsys):
    assert cli.main(["predict", "--model", str(imagenet_file), "a.jpg"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "EfficientNet-B0 whose number of outputs is 1,000, not 2 (Real, Fake)" in line
    assert f"dfd train --model {NAME} --weights {imagenet_file}" in line


def test_fake_output_0_turns_the_outputs_of_a_file_round(tmp_path, state, images):
    torch.save(state, tmp_path / "weights.pth")
    plain = TrainedModel(tmp_path / "weights.pth")
    swapped = TrainedModel(tmp_path / "weights.pth", fake_output=0)
    with torch.inference_mode():
        expected = plain.load()(images).flip(1)
        torch.testing.assert_close(swapped.load()(images), expected)
    assert plain.fingerprint != swapped.fingerprint
    assert TrainedModel(tmp_path / "weights.pth", fake_output=1).fingerprint == plain.fingerprint


def test_a_folder_says_the_order_itself(trained_run):
    for choose in (TrainedModel, choose_model, lambda path, order: find_models(
        path, fake_output=order
    )):  # fmt: skip
        for path in (trained_run / NAME, trained_run / NAME / "model.safetensors"):
            with pytest.raises(UserError, match=r"leave out --fake-output.* model\.json"):
                choose(path, 0)


@pytest.fixture(scope="module")
def reversed_weights(easy_data):
    """ResNet50 with random features and a head (Fake, Real) along the line between class means.

    It is certain to separate the classes at 224 px, at which a file of weights alone is scored;
    a model trained at 32 px does so on some processors only.
    """
    torch.manual_seed(0)
    detector = create_model("resnet50").eval()
    images, labels = zip(*easy_data.split("Validation", eval_transform(224)), strict=True)
    head, detector.backbone.fc = detector.backbone.fc, torch.nn.Identity()
    with torch.inference_mode():
        features = detector(torch.stack(images))
        real, fake = (features[torch.tensor(labels) == label].mean(0) for label in (0, 1))
        direction = (fake - real) / (fake - real).square().sum()
        offset = direction @ (fake + real) / 2
        head.weight.copy_(torch.stack([direction, -direction]))
        head.bias.copy_(torch.stack([-offset, offset]))
    detector.backbone.fc = head
    return detector.state_dict()


@pytest.fixture
def reversed_file(reversed_weights, tmp_path):
    """A file of weights alone, of a model whose outputs are the other way round (Fake, Real)."""
    torch.save({"state_dict": reversed_weights}, tmp_path / "foreign.pth")
    return tmp_path / "foreign.pth"


def test_predict_and_export_take_fake_output(reversed_file, easy_data, capsys, monkeypatch):
    image = str(easy_data.path / "Test" / "Fake" / "000.jpg")
    command = ["predict", "--model", str(reversed_file), "--format", "csv", image]
    scores = []
    for order in (0, 1):
        assert cli.main([*command, "--fake-output", str(order)]) == 0
        out, err = capsys.readouterr()
        scores.append(float(out.splitlines()[1].split(",")[2]))
        assert f"not calibrated, output {order} is Fake" in err
    assert sum(scores) == pytest.approx(1, abs=1e-5)
    exported = []
    monkeypatch.setattr(onnx_export, "export_onnx", lambda model, out: exported.append(model))
    cli.main(["export", "--onnx", "--model", str(reversed_file), "--fake-output", "0"])
    assert exported[0].fake_output == 0


def test_evaluate_takes_files_and_warns_of_outputs_the_other_way_round(
    reversed_file, easy_data, capsys
):
    own = reversed_file.with_name("metrics.json")
    own.write_text("{}")
    (reversed_file.parent / "model.json").write_text("{}")  # of another model
    command = ["evaluate", "--data", str(easy_data.path)]
    assert cli.main([*command, str(reversed_file)]) == 0
    (warning,) = (line for line in capsys.readouterr().err.splitlines() if "warning" in line)
    assert warning.startswith("warning: foreign takes Real for Fake: its AUC is 0.0")
    assert warning.endswith("; try --fake-output 0")
    assert cli.main([*command, "--fake-output", "0", str(reversed_file)]) == 0
    assert "warning" not in capsys.readouterr().err
    results = sorted(reversed_file.parent.glob("foreign-*/on_easy-*/predictions_Test.csv"))
    folders = {TrainedModel(reversed_file, order).results_folder(easy_data) for order in (0, 1)}
    assert {path.parent for path in results} == folders
    assert len(folders) == 2
    assert own.read_text() == "{}"


def test_a_model_whose_data_are_the_other_way_round_is_named(
    trained_run, easy_data, tmp_path, capsys
):
    data, model = tmp_path / "data", tmp_path / "model"
    for split in ("Train", "Validation", "Test"):
        (data / split).mkdir(parents=True)
        for name, other in (("Real", "Fake"), ("Fake", "Real")):
            (data / split / name).symlink_to(easy_data.path / split / other)
    model.mkdir()
    for name in ("model.json", "model.safetensors"):
        (model / name).symlink_to(trained_run / "resnet50" / name)
    assert cli.main(["evaluate", "--data", str(data), str(model)]) == 0
    (warning,) = (line for line in capsys.readouterr().err.splitlines() if "warning" in line)
    assert "below 0.5; check that the images in the folders Real and Fake are" in warning


def test_two_files_of_one_name_have_results_of_their_own(tmp_path, state, easy_data):
    torch.save(state, tmp_path / "weights.pth")
    save_file({key: value + 1 for key, value in state.items()}, tmp_path / "weights.safetensors")
    models = find_models(tmp_path / "weights.pth", tmp_path / "weights.safetensors")
    assert [model.name for model in models] == ["weights", "weights"]
    assert len({model.results_folder(easy_data) for model in models}) == 2
    (again,) = find_models(tmp_path / "weights.pth", tmp_path / "weights.pth")
    assert again.results_folder(easy_data) == models[0].results_folder(easy_data)
