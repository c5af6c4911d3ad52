"""Grad-CAM: heat maps, overlays, and the pointing game."""

import numpy as np
import pytest
import torch
from PIL import Image

from dfd_utils.models import gradcam
from dfd_utils.models.trained import TrainedModel


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0"])
def test_heat_maps_have_the_image_size(trained_run, easy_data, name):
    files = sorted((easy_data.path / "Test" / "Fake").iterdir())[:3]
    maps = gradcam.grad_cam(TrainedModel(trained_run / name), files)
    assert maps.shape == (3, 32, 32)
    assert maps.min() >= 0
    assert maps.max() <= 1


def test_heat_maps_are_made_in_small_batches(trained_run, easy_data, monkeypatch):
    """So the memory does not grow with the number of images, and no map depends on the others."""
    model, sizes = TrainedModel(trained_run / "efficientnet_b0"), []
    model.load().backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    files = sorted(easy_data.path.glob("Train/Fake/*"))
    assert len(files) == 24
    maps = gradcam.grad_cam(model, files)
    assert max(sizes) <= gradcam.BATCH == 8
    sizes.clear()
    monkeypatch.setattr(gradcam, "BATCH", 24)
    assert gradcam.grad_cam(model, files) == pytest.approx(maps, abs=1e-4)
    assert max(sizes) == 24


def test_an_overlay_colours_only_the_hot_part():
    grey = torch.full((3, 40, 60), 128, dtype=torch.uint8)
    heat = np.zeros((8, 8), np.float32)
    heat[:, 6:] = 1
    mixed = np.asarray(gradcam.overlay(grey, heat)).astype(int)
    assert mixed.shape == (40, 60, 3)
    assert (mixed[:, :30] == 128).all()
    assert np.abs(mixed[:, 55:] - 128).max() > 40


def test_pointing_game_counts_peaks_inside_the_mask(tmp_path):
    mask = np.zeros((8, 8), "uint8")
    mask[2:4, 2:6] = 255  # 8 of 64 pixels
    mask[0, 0] = 255  # where argmax finds the peak of a map of zeros
    Image.fromarray(mask).save(tmp_path / "mask.png")
    inside, outside, flat = np.zeros((3, 8, 8))
    inside[3, 5] = outside[6, 1] = 1
    Image.fromarray(mask.T).save(tmp_path / "turned.png")  # contains neither peak
    masks = [tmp_path / f"{name}.png" for name in ("mask", "turned", "mask", "mask")]
    game = gradcam.pointing_game(np.stack([inside, inside, outside, flat]), masks)
    # Of the other three masks, two contain the first peak and all three the second.
    assert game == {"images": 4, "hits": 1, "chance": 5 / 12}
