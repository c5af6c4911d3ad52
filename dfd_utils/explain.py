"""Grad-CAM, and how well it points at the manipulated region."""

import io
from pathlib import Path

import numpy as np
import torch
from captum.attr import LayerAttribution, LayerGradCam
from matplotlib import colormaps
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from dfd_utils import transforms
from dfd_utils.config import write_whole
from dfd_utils.dataset import read_image
from dfd_utils.models import MODELS, Detector, load_model


def grad_cam(folder: Path, paths: list[Path]) -> np.ndarray:
    """Return Grad-CAM heat maps of image files for the class Fake, float32 `[N, S, S]`, 0 to 1.

    S is the model's image size; see `heat_maps`.
    """
    model, description = load_model(folder)
    resize = transforms.eval_transform(description["image_size"])
    images = torch.stack([resize(read_image(path)) for path in paths])
    return heat_maps(model, description, images)


def heat_maps(model: Detector, description: dict, images: Tensor) -> np.ndarray:
    """Return Grad-CAM heat maps for the class Fake, float32 `[N, S, S]` from 0 to 1 each.

    Grad-CAM: Selvaraju et al. 2017, through captum. It looks at the deepest layer whose map is at
    least 4 x 4, which is the last one at 224 pixels: at 64 pixels the last map is 2 x 2, and tells
    no place in the face from another.

    Args:
        model: in eval mode.
        description: what `load_model` returns beside it.
        images: uint8 `[N, 3, S, S]` on the model's device.
    """
    size = description["image_size"]
    images = model.normalize(images).requires_grad_()
    layers = MODELS[description["architecture"]].layers_by_stride
    stride = max((s for s in layers if size / s >= 4), default=min(layers))
    layer = model.backbone.get_submodule(layers[stride])
    maps = LayerGradCam(model.backbone, layer).attribute(images, target=1, relu_attributions=True)
    maps = LayerAttribution.interpolate(maps.detach(), (size, size), "bilinear")[:, 0]
    return (maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)).cpu().numpy()


def overlay(picture: Tensor, heat: np.ndarray) -> Image.Image:
    """Return the picture with its heat map over it, at the picture's proportions, 512 px at most.

    Args:
        picture: uint8 RGB `[3, H, W]`.
        heat: float `[S, S]` from 0 to 1; the hotter, the less of the picture shows through.
    """
    base = thumbnail(picture)
    heat = np.asarray(Image.fromarray(heat).resize(base.size, Image.Resampling.BILINEAR))
    colours = colormaps["inferno"](heat)[..., :3] * 255
    share = 0.75 * heat[..., None]
    mixed = (1 - share) * np.asarray(base) + share * colours
    return Image.fromarray(mixed.round().astype(np.uint8))


def thumbnail(picture: Tensor) -> Image.Image:
    """Return a picture, uint8 RGB `[3, H, W]`, shrunk to 512 pixels at most."""
    image = to_pil_image(picture)
    image.thumbnail((512, 512))
    return image


def save_overlay(picture: Tensor, heat: np.ndarray, path: Path) -> None:
    """Write a PNG with the picture at the left and, beside it, the same under its heat map."""
    plain = thumbnail(picture)
    pair = Image.new("RGB", (2 * plain.width, plain.height))
    pair.paste(plain, (0, 0))
    pair.paste(overlay(picture, heat), (plain.width, 0))
    content = io.BytesIO()
    pair.save(content, "PNG")
    write_whole(path, content.getvalue())


def pointing_game(maps: np.ndarray, masks: list[Path]) -> dict:
    """Return how often the maps' peaks fall inside the true masks, and how often chance would.

    Chance is how often the same peaks fall inside the other images' masks: whoever points at the
    middle of every face hits, too. A map without any positive value has no peak and counts as a
    miss. Pointing game: Zhang et al. 2016.

    Args:
        maps: float `[N, S, S]`.
        masks: N mask files, 255 = manipulated; two or more.
    """
    inside = np.stack([np.asarray(Image.open(p).resize(maps.shape[:0:-1])) >= 128 for p in masks])
    flat = maps.reshape(len(maps), -1)
    # Row: an image's mask; column: an image's peak.
    hits = inside.reshape(len(masks), -1)[:, flat.argmax(1)] & (flat.max(1) > 0)
    others = hits.sum() - hits.trace()
    chance = others / (len(masks) * (len(masks) - 1))
    return {"images": len(masks), "hits": int(hits.trace()), "chance": float(chance)}
