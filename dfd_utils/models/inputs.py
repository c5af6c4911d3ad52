"""What the models of the registry see of an image, besides the image resized to a square.

Worker processes make it, so this module imports no network.
"""

import torch
from torch import Tensor

from dfd_utils.data.transforms import eval_transform
from dfd_utils.models.linear_dct import FEATURES, block_dct_statistics


def dct_input(image: Tensor) -> Tensor:
    """Return the input of a `LinearDetector` for an image, uint8 `[3, H, W]`."""
    statistics = block_dct_statistics(image.permute(1, 2, 0).numpy())
    return torch.from_numpy(statistics).view(FEATURES, 1, 1)


def fused_input(image: Tensor, image_size: int) -> Tensor:
    """Return the input of a `FusedDetector` for an image, uint8 `[3, H, W]`.

    It is the resized image and the statistics of the whole one in a single tensor, uint8
    `[bytes, 1, 1]`, so that loaders need not know of models with two inputs.
    """
    resized = eval_transform(image_size)(image)
    parts = resized.permute(1, 2, 0).flatten(), dct_input(image).flatten().view(torch.uint8)
    return torch.cat(parts).view(-1, 1, 1)
