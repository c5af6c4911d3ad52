"""Grad-CAM heat maps, and how well they point at the manipulated region."""

import io
from pathlib import Path

import cv2
import numpy as np
import torch
from captum.attr import LayerAttribution, LayerGradCam
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from dfd_utils.data.dataset import read_image
from dfd_utils.data.transforms import eval_transform
from dfd_utils.models.registry import MODELS
from dfd_utils.models.trained import TrainedModel
from dfd_utils.runtime.distributed import process_state
from dfd_utils.runtime.files import write_atomic

BATCH = 8  # images; gradients need much more memory per image than scores


def grad_cam(model: TrainedModel, paths: list[Path]) -> np.ndarray:
    """Return Grad-CAM heat maps of image files for the class Fake, float32 `[N, S, S]`, 0 to 1.

    S is the model's image size. See `heat_maps`.
    """
    resize = eval_transform(model.description.image_size)
    return heat_maps(model, torch.stack([resize(read_image(path)) for path in paths]))


def heat_maps(model: TrainedModel, images: Tensor) -> np.ndarray:
    """Return Grad-CAM heat maps for the class Fake, float32 `[N, S, S]`, each from 0 to 1.

    Grad-CAM: Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391. It uses the deepest layer
    whose map is at least 4 x 4. At 224 pixels that is the last one; at 64 pixels the last map is
    2 x 2, which cannot resolve regions of a face. Computed in batches, on the device that the
    model uses for scoring, where its network then remains.

    Args:
        model: the model.
        images: uint8 `[N, 3, S, S]` on any device.
    """
    size, device = model.description.image_size, process_state().device
    network = model.load_network().to(device)
    layers = MODELS[model.description.architecture].layers_by_stride
    stride = max((s for s in layers if size / s >= 4), default=min(layers))
    layer = network.backbone.get_submodule(layers[stride])
    grad_cam = LayerGradCam(network.backbone, layer)
    parts = []
    for batch in images.split(BATCH):
        inputs = network.normalize(batch.to(device)).requires_grad_()
        maps = grad_cam.attribute(inputs, target=1, relu_attributions=True).detach()
        maps = LayerAttribution.interpolate(maps, (size, size), "bilinear")[:, 0]
        maps /= maps.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
        parts.append(maps.cpu().numpy())
    return np.concatenate(parts)


def overlay(image: Tensor, heat: np.ndarray) -> Image.Image:
    """Return the image under its heat map, at most 512 pixels wide and high.

    Args:
        image: uint8 RGB `[3, H, W]`.
        heat: float `[S, S]` from 0 to 1; the higher, the more opaque the map.
    """
    base = thumbnail(image)
    heat = np.asarray(Image.fromarray(heat).resize(base.size, Image.Resampling.BILINEAR))
    levels = (heat * 255).round().astype(np.uint8)
    colours = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1]  # OpenCV gives BGR
    share = 0.75 * heat[..., None]
    mixed = (1 - share) * np.asarray(base) + share * colours
    return Image.fromarray(mixed.round().astype(np.uint8))


def thumbnail(image: Tensor) -> Image.Image:
    """Return an image, uint8 RGB `[3, H, W]`, reduced to at most 512 pixels in width and height."""
    reduced = to_pil_image(image)
    reduced.thumbnail((512, 512))
    return reduced


def save_overlay(image: Tensor, heat: np.ndarray, path: Path) -> None:
    """Write a PNG: the image on the left, the same under its heat map on the right."""
    plain = thumbnail(image)
    pair = Image.new("RGB", (2 * plain.width, plain.height))
    pair.paste(plain, (0, 0))
    pair.paste(overlay(image, heat), (plain.width, 0))
    content = io.BytesIO()
    pair.save(content, "PNG")
    write_atomic(path, content.getvalue())


def pointing_game(maps: np.ndarray, masks: list[Path]) -> dict:
    """Return how often the maps' peaks fall inside the true masks, and how often by chance.

    Chance is the share of the same peaks inside the masks of the other images, because a model
    that always points at the middle of the face has hits, too. A map without a positive value has
    no peak and counts as a miss. Pointing game: Zhang et al. 2016,
    https://arxiv.org/abs/1608.00507.

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
