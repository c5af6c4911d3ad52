"""Grad-CAM, and how well it points at the manipulated region."""

from pathlib import Path

import numpy as np
import torch
from captum.attr import LayerAttribution, LayerGradCam
from PIL import Image

from dfd_utils import transforms
from dfd_utils.dataset import read_image
from dfd_utils.models import MODELS, load_model


def grad_cam(folder: Path, paths: list[Path]) -> np.ndarray:
    """Return Grad-CAM heat maps for the class Fake, float32 `[N, S, S]` from 0 to 1 each.

    S is the model's image size. Grad-CAM: Selvaraju et al. 2017, through captum. It looks at the
    deepest layer whose map is at least 4 x 4, which is the last one at 224 pixels: at 64 pixels
    the last map is 2 x 2, and tells no place in the face from another.
    """
    model, description = load_model(folder)
    size = description["image_size"]
    resize = transforms.eval_transform(size)
    images = torch.stack([resize(read_image(path)) for path in paths])
    images = transforms.normalize(images).requires_grad_()
    layers = MODELS[description["architecture"]].layers_by_stride
    stride = max((s for s in layers if size / s >= 4), default=min(layers))
    layer = model.backbone.get_submodule(layers[stride])
    maps = LayerGradCam(model.backbone, layer).attribute(images, target=1, relu_attributions=True)
    maps = LayerAttribution.interpolate(maps.detach(), (size, size), "bilinear")[:, 0]
    return (maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)).numpy()


def pointing_game(maps: np.ndarray, masks: list[Path]) -> dict:
    """Return how often the maps' peaks fall inside the true masks, and how often chance would.

    Chance is the mean share of the image that a mask covers. A map without any positive value has
    no peak and counts as a miss. Pointing game: Zhang et al. 2016.

    Args:
        maps: float `[N, S, S]`.
        masks: N mask files, 255 = manipulated.
    """
    hits, areas = [], []
    for heat, path in zip(maps, masks, strict=True):
        mask = np.asarray(Image.open(path).resize(heat.shape[::-1])) >= 128
        peak = np.unravel_index(heat.argmax(), heat.shape)
        hits.append(bool(heat.max() > 0 and mask[peak]))
        areas.append(mask.mean())
    return {"images": len(hits), "hits": int(sum(hits)), "chance": float(np.mean(areas))}
