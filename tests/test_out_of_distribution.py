"""How far pictures lie from the training data, against scipy and a network looked into by hand."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from dfd_utils import out_of_distribution
from dfd_utils.config import UserError
from dfd_utils.dataset import load_split
from dfd_utils.models import load_model
from dfd_utils.precision import make_accelerator
from dfd_utils.transforms import eval_transform

STRIDE_8 = {"resnet50": "layer2", "efficientnet_b0": "features.3"}


def features_by_hand(model, name, data, split):
    """Return the channels' means at stride 8, float64 `[N, C]`, by a hook in the unfused model."""
    seen = []
    layer = model.backbone.get_submodule(STRIDE_8[name])
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.mean((2, 3))))
    dataset = load_split(data, split, eval_transform(32))
    with torch.inference_mode():
        model(torch.stack([dataset[i][0] for i in range(len(dataset))]))
    return seen[0].double().numpy()


@pytest.mark.parametrize("name", STRIDE_8)
def test_distances_and_their_limit_against_scipy(trained_run, easy_data, name):
    model, _ = load_model(trained_run / name)
    train, validation, test = (
        features_by_hand(model, name, easy_data, split) for split in ("Train", "Validation", "Test")
    )
    scale = train.std(0, ddof=1) + 1e-6
    mean = train.mean(0)
    inverse = LedoitWolf(assume_centered=True).fit((train - mean) / scale).precision_

    def squared(features):
        scaled = [(row - mean) / scale for row in features]
        return np.array([mahalanobis(row, np.zeros_like(row), inverse) ** 2 for row in scaled])

    kept = out_of_distribution.read_training_data(trained_run / name)
    assert kept.distance(torch.from_numpy(test)).numpy() == pytest.approx(squared(test), rel=1e-2)
    limit = np.quantile(squared(validation), 0.99)
    assert float(kept.limit) == pytest.approx(limit, rel=1e-2)
    assert kept.far(torch.from_numpy(mean[None])) == [False]
    assert kept.far(torch.from_numpy(mean + 100 * scale)[None]) == [True]


@pytest.mark.parametrize("name", STRIDE_8)
def test_the_scorer_gives_the_models_logits(trained_run, easy_data, name):
    model, _ = load_model(trained_run / name)
    images = torch.stack([load_split(easy_data, "Test", eval_transform(32))[i][0] for i in (0, 9)])
    scorer = out_of_distribution.DetectorWithFeatures(model, name)
    with torch.inference_mode():
        logits, _ = scorer(images)
        assert torch.allclose(logits, model(images), atol=1e-4)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in scorer.modules())  # folded


def test_about_a_thousand_images_are_looked_at(easy_data, trained_run, quick, monkeypatch):
    monkeypatch.setattr(out_of_distribution, "IMAGES", 6)
    model, _ = load_model(trained_run / "efficientnet_b0")
    sizes = []
    fit = LedoitWolf.fit
    monkeypatch.setattr(LedoitWolf, "fit", lambda self, x: sizes.append(len(x)) or fit(self, x))
    accelerator = make_accelerator("fp32")
    out_of_distribution.fit_training_data(model, "efficientnet_b0", easy_data, 32, accelerator)
    assert sizes == [6]


def test_a_foreign_file_beside_a_run_has_no_training_data(trained_run, tmp_path):
    whole = (trained_run / "resnet50" / out_of_distribution.FILE).read_bytes()
    (tmp_path / out_of_distribution.FILE).write_bytes(whole)
    for name in ("theirs.pth", "model.safetensors"):
        (tmp_path / name).touch()
    assert out_of_distribution.read_training_data(tmp_path / "theirs.pth") is None
    assert out_of_distribution.read_training_data(tmp_path / "model.safetensors") is not None


def test_a_damaged_file_is_named(trained_run, tmp_path):
    assert out_of_distribution.read_training_data(tmp_path) is None
    whole = (trained_run / "resnet50" / out_of_distribution.FILE).read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"x" * 100):
        (tmp_path / out_of_distribution.FILE).write_bytes(content)
        with pytest.raises(UserError, match=r"training_data\.safetensors: damaged"):
            out_of_distribution.read_training_data(tmp_path)
