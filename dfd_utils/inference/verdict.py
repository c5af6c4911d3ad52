"""Real, Fake or Unsure: what an image's scores say, and why they may say nothing."""

from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import Tensor

from dfd_utils.config import CLASSES
from dfd_utils.data.degradations import degrade_jpeg
from dfd_utils.models.description import ModelDescription

UNSURE = "Unsure"


def _smaller(pixels: np.ndarray) -> np.ndarray:
    size = pixels.shape[1::-1]
    small = tuple(max(1, round(0.75 * side)) for side in size)
    small = cv2.resize(pixels, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, size, interpolation=cv2.INTER_LINEAR)


def _cropped(pixels: np.ndarray) -> np.ndarray:
    rows, columns = (round(0.01 * side) for side in pixels.shape[:2])
    return pixels[rows : len(pixels) - rows, columns : pixels.shape[1] - columns]


# Changes that mean nothing to a person. Each takes and returns uint8 pixels [H, W, 3].
VARIANTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "JPEG 75": lambda pixels: degrade_jpeg(pixels, 75),
    "resized to 75 % and back": _smaller,
    "cropped by 2 %": _cropped,
    "JPEG 90": lambda pixels: degrade_jpeg(pixels, 90),
    "mirrored": lambda pixels: pixels[:, ::-1],
}


def with_variants(image: Tensor, count: int) -> list[Tensor]:
    """Return an image, uint8 RGB `[3, H, W]`, and the first `count` of its `VARIANTS`."""
    pixels = np.ascontiguousarray(image.permute(1, 2, 0))
    changed = (change(pixels) for change in list(VARIANTS.values())[:count])
    return [image, *(torch.from_numpy(p.copy()).permute(2, 0, 1) for p in changed)]


def plain_label(score: float, threshold: float) -> str:
    """Return "Fake" if the score is at least the threshold, else "Real"."""
    return CLASSES[int(score >= threshold)]


def doubts(description: ModelDescription, scores: np.ndarray) -> list[str]:
    """Return why the answer to an image is Unsure; empty if nothing speaks against it.

    Args:
        description: the model's.
        scores: of the image, and of its variants if there are any; float `[1 + variants]`.
    """
    reasons = []
    if description.is_close_call(scores[0]):
        low, high = description.unsure_from, description.unsure_to
        reasons.append(f"close call: scores from {low:.2f} to {high:.2f} are often wrong")
    if scores.min() < description.threshold <= scores.max():
        reasons.append("changes when the image is saved again")
    return reasons
