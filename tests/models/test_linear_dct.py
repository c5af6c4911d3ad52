"""The baseline's statistics, and what the models see of an image."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from dfd_utils.data.transforms import eval_transform
from dfd_utils.models.inputs import dct_input, fused_input
from dfd_utils.models.linear_dct import FEATURES, block_dct_statistics
from dfd_utils.models.registry import BASELINE, create_fusion, create_model

YCBCR = np.array([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def slow_statistics(pixels: np.ndarray) -> np.ndarray:
    """The definition, block by block, with scipy's transform."""
    planes = pixels.astype(float) @ YCBCR.T
    rows, columns = (side // 8 for side in pixels.shape[:2])
    blocks = [
        np.abs(dctn(planes[8 * r : 8 * r + 8, 8 * c : 8 * c + 8], axes=(0, 1), norm="ortho"))
        for r in range(rows)
        for c in range(columns)
    ]
    blocks = np.moveaxis(np.stack(blocks), -1, 1)
    parts = (
        np.log(blocks.mean(axis=0) + 1e-3),
        (blocks < 1).mean(axis=0),
        np.log(np.sqrt((blocks**2).mean(axis=0)) + 1e-3),
    )
    return np.stack(parts).ravel()


@pytest.mark.parametrize("size", [(64, 48), (61, 83), (8, 8)])
def test_statistics_are_those_of_the_definition(size):
    statistics = block_dct_statistics(noise(*size))
    assert statistics.dtype == np.float32 and statistics.shape == (FEATURES,)
    np.testing.assert_allclose(statistics, slow_statistics(noise(*size)), atol=0.02)


def test_a_large_image_is_read_in_strips(monkeypatch):
    image = noise(320, 240)
    whole = block_dct_statistics(image)
    monkeypatch.setattr("dfd_utils.models.linear_dct.STRIP_BLOCKS", 31)
    np.testing.assert_allclose(block_dct_statistics(image), whole, rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (40, 7)])
def test_images_smaller_than_a_block_have_statistics(size):
    assert np.isfinite(block_dct_statistics(noise(*size))).all()


def test_the_statistics_start_without_torch():
    code = "import sys, dfd_utils.models.linear_dct; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_fusion_adds_the_weighted_margins_of_its_parts():
    torch.manual_seed(0)
    fused = create_fusion("efficientnet_b0").eval()
    with torch.no_grad():
        fused.backbone["mix"].linear.weight.copy_(torch.tensor([[2.0, -0.5]]))
        fused.backbone["mix"].linear.bias.fill_(0.25)
    images = [torch.from_numpy(noise(90, 70 + n)).permute(2, 0, 1) for n in range(3)]
    packed = torch.stack([fused_input(image, 64) for image in images])
    resized = torch.stack([eval_transform(64)(image) for image in images])
    statistics = torch.stack([dct_input(image) for image in images])
    with torch.inference_mode():
        margins = [
            logits[:, 1] - logits[:, 0]
            for logits in (
                fused.backbone["network"](resized), fused.backbone["baseline"](statistics),
            )
        ]  # fmt: skip
        expected = 2 * margins[0] - 0.5 * margins[1] + 0.25
        for scorer in (fused, fused.fuse_batchnorm()):
            logits = scorer(packed)
            torch.testing.assert_close(logits[:, 1] - logits[:, 0], expected, atol=1e-4, rtol=1e-4)
        distances = fused.backbone["baseline"].distance(statistics)
        fused.backbone["mix"].limit.fill_(distances.median())  # the furthest gets no say
        logits = fused(packed)
        expected[distances.argmax()] += 0.5 * margins[1][distances.argmax()]
        torch.testing.assert_close(logits[:, 1] - logits[:, 0], expected, atol=1e-4, rtol=1e-4)
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())


def test_the_baseline_is_a_line_through_its_statistics():
    model = create_model(BASELINE).eval()
    model.backbone["scaler"].mean.fill_(1.0)
    model.backbone["scaler"].scale.fill_(2.0)
    statistics = torch.randn(4, FEATURES, 1, 1)
    logits = model(statistics)
    linear = model.backbone["linear"]
    expected = (statistics.flatten(1) - 1) / 2 @ linear.weight[0] + linear.bias
    torch.testing.assert_close(logits[:, 1] - logits[:, 0], expected)
