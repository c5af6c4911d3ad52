"""Degradations, single and composed."""

from itertools import pairwise

import pytest
import torch
import torchvision.transforms.v2.functional as F

from dfd_utils.data import degradations
from dfd_utils.data.dataset import read_image
from dfd_utils.data.degradations import DEGRADATIONS, STEP_PROBABILITY, STEPS, degrade


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
    # The maximum of 2 x 2 pixels shifts an image as much as the median of 3 x 3: equal amounts.
    assert all(a <= b * 1.02 for a, b in pairwise(distances))


def test_same_generator_same_pixels(portrait):
    one, two, other = (
        degrade(portrait, "noise", 3, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_compositions_apply_the_steps_with_their_probabilities(portrait, monkeypatch):
    drawn = []

    def record(step):
        def function(pixels, amount, generator):
            drawn.append((step, amount))
            return pixels

        return function

    steps = {step: {step: (record(step), (1, 2, 3, 4, 5))} for step in STEPS}
    monkeypatch.setattr(degradations, "STEPS", steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        before = len(drawn)
        unchanged = degrade(portrait, "composition", 3, generator)
        assert torch.equal(unchanged, portrait)
        order = [list(STEPS).index(step) for step, _ in drawn[before:]]
        assert order == sorted(set(order))  # each step once at most, in order
    for step, probability in STEP_PROBABILITY.items():
        amounts = [amount for drawn_step, amount in drawn if drawn_step == step]
        assert set(amounts) == {1, 2, 3}  # up to the severity
        error = 4 * (probability * (1 - probability) / 400) ** 0.5
        assert len(amounts) / 400 == pytest.approx(probability, abs=error)


def test_compositions_draw_many_different_images(portrait):
    generator = torch.Generator().manual_seed(0)
    results = {degrade(portrait, "composition", 3, generator).numpy().tobytes() for _ in range(20)}
    assert len(results) > 10


def test_the_colour_functions_are_torchvisions(portrait):
    for name, severity, expected in (
        ("grey", 3, F.adjust_saturation(portrait, 0.3)),
        ("hue", 3, None),
    ):
        changed = degrade(portrait, name, severity, torch.Generator().manual_seed(0))
        if expected is None:  # the direction is drawn
            choices = [F.adjust_hue(portrait, turns) for turns in (0.06, -0.06)]
            expected = min(choices, key=lambda c: (c.float() - changed.float()).abs().mean())
        assert (changed.float() - expected.float()).abs().mean() < 1.5


def test_small_and_grey_images_can_be_degraded():
    for name in (*DEGRADATIONS, "composition"):
        for size in ((8, 8), (9, 30)):
            image = torch.full((3, *size), 128, dtype=torch.uint8)
            assert degrade(image, name, 5).shape == image.shape


@pytest.mark.parametrize(("name", "severity"), [("smoke", 1), ("jpeg", 0), ("jpeg", 6)])
def test_unknown_degradation_or_severity_is_refused(portrait, name, severity):
    with pytest.raises(ValueError, match=r"smoke|severity"):
        degrade(portrait, name, severity)
