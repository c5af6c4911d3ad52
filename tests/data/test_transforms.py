"""Transforms and degradations."""

import pytest
import torch
from torchvision.transforms import v2

from dfd_utils.data.dataset import read_image
from dfd_utils.data.transforms import DEGRADATIONS, MEAN, STD, degrade, eval_transform, normalize


@pytest.fixture
def portrait(tiny_sample):
    return read_image(tiny_sample.path / "Train" / "Real" / "0000.jpg")


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_degradations_grow_with_severity_and_keep_the_format(portrait, name):
    distances = []
    for severity in range(1, 6):
        changed = degrade(portrait, name, severity, torch.Generator().manual_seed(1))
        assert changed.dtype == torch.uint8
        assert changed.shape == portrait.shape
        distances.append((changed.float() - portrait.float()).abs().mean().item())
    assert distances[0] > 0
    assert distances == sorted(distances)


def test_same_generator_same_pixels(portrait):
    one, two, other = (
        degrade(portrait, "noise", 3, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_mix_draws_different_degradations(portrait):
    generator = torch.Generator().manual_seed(0)
    results = {degrade(portrait, "mix", 3, generator).numpy().tobytes() for _ in range(20)}
    assert len(results) > 5


@pytest.mark.parametrize(("name", "severity"), [("fog", 1), ("jpeg", 0), ("jpeg", 6)])
def test_unknown_degradation_or_severity_is_refused(portrait, name, severity):
    with pytest.raises(ValueError, match=r"fog|severity"):
        degrade(portrait, name, severity)


def test_normalize_is_torchvisions(portrait):
    reference = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    torch.testing.assert_close(normalize(portrait[None])[0], reference(portrait))


def test_eval_transform_makes_a_square_of_bytes(portrait):
    resized = eval_transform(48)(portrait[:, :200])
    assert resized.shape == (3, 48, 48)
    assert resized.dtype == torch.uint8
