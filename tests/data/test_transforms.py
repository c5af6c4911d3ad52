"""Transforms."""

import pytest
import torch
from torchvision.transforms import v2

from dfd_utils.data.dataset import read_image
from dfd_utils.data.transforms import MEAN, STD, eval_transform, normalize


@pytest.fixture
def portrait(tiny_sample):
    return read_image(tiny_sample.path / "Train" / "Real" / "0000.jpg")


def test_normalize_is_torchvisions(portrait):
    reference = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    torch.testing.assert_close(normalize(portrait[None])[0], reference(portrait))


def test_eval_transform_makes_a_square_of_bytes(portrait):
    resized = eval_transform(48)(portrait[:, :200])
    assert resized.shape == (3, 48, 48)
    assert resized.dtype == torch.uint8
