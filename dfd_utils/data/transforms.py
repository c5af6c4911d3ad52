"""Image transforms: resizing, random degradation and normalisation."""

from collections.abc import Callable
from functools import partial

import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor

from dfd_utils.data.degradations import degrade

# Statistics of ImageNet, which torchvision's weights expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SEVERITY = 5  # of the compositions in training and on the degraded view of Validation


def eval_transform(image_size: int) -> Callable[[Tensor], Tensor]:
    """Resize to a square of `image_size` pixels: uint8 `[3, H, W]` in, uint8 out."""
    return partial(F.resize, size=[image_size, image_size], antialias=True)


def normalize(images: Tensor, mean: tuple = MEAN, std: tuple = STD) -> Tensor:
    """Convert a uint8 batch `[N, 3, H, W]` (0 to 255) to normalised float32 on its device."""
    scale = torch.tensor(std, device=images.device).view(1, 3, 1, 1) * 255
    shift = torch.tensor(mean, device=images.device).view(1, 3, 1, 1) * 255
    return (images.float() - shift) / scale


class RandomDegradation(torch.nn.Module):
    """Degrade a uint8 image `[3, H, W]` by a random composition of `DEGRADATIONS`."""

    def forward(self, image: Tensor) -> Tensor:
        return degrade(image, "composition", SEVERITY)
