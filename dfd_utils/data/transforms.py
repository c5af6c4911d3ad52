"""Image transforms: resizing, normalisation and the named degradations."""

import io
from collections.abc import Callable
from functools import partial

import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

# Statistics of ImageNet, which torchvision's weights expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def eval_transform(image_size: int) -> Callable[[Tensor], Tensor]:
    """Resize to a square of `image_size` pixels: uint8 `[3, H, W]` in, uint8 out."""
    return partial(F.resize, size=[image_size, image_size], antialias=True)


def degraded_transform(image_size: int) -> Callable[[Tensor], Tensor]:
    """Degrade by a random one of `DEGRADATIONS` at severity 3, then resize: uint8 in and out."""
    return v2.Compose([partial(degrade, name="mix", severity=3), eval_transform(image_size)])


def normalize(images: Tensor, mean: tuple = MEAN, std: tuple = STD) -> Tensor:
    """Convert a uint8 batch `[N, 3, H, W]` (0 to 255) to normalised float32 on its device."""
    scale = torch.tensor(std, device=images.device).view(1, 3, 1, 1) * 255
    shift = torch.tensor(mean, device=images.device).view(1, 3, 1, 1) * 255
    return (images.float() - shift) / scale


def _sign(generator: torch.Generator | None) -> int:
    return 1 if torch.rand((), generator=generator) < 0.5 else -1


def _jpeg(image: Tensor, quality: int, generator: torch.Generator | None) -> Tensor:
    buffer = io.BytesIO()
    F.to_pil_image(image).save(buffer, "JPEG", quality=quality)
    return F.pil_to_tensor(Image.open(buffer))


def _blur(image: Tensor, sigma: float, generator: torch.Generator | None) -> Tensor:
    sigma = sigma * image.shape[-1] / 256
    size = 2 * max(1, round(3 * sigma)) + 1
    return F.gaussian_blur(image, [size, size], [max(sigma, 0.1)] * 2)


def _noise(image: Tensor, sigma: float, generator: torch.Generator | None) -> Tensor:
    noise = torch.randn(image.shape, generator=generator) * sigma
    return (image.float() + noise).round_().clamp_(0, 255).to(torch.uint8)


def _pixelate(image: Tensor, scale: float, generator: torch.Generator | None) -> Tensor:
    size = list(image.shape[-2:])
    small = [max(4, round(side * scale)) for side in size]
    return F.resize(F.resize(image, small, antialias=True), size, antialias=True)


def _grey(image: Tensor, saturation: float, generator: torch.Generator | None) -> Tensor:
    return F.adjust_saturation(image, saturation)


def _brightness(image: Tensor, step: float, generator: torch.Generator | None) -> Tensor:
    return F.adjust_brightness(image, 1 + step * _sign(generator))


def _contrast(image: Tensor, factor: float, generator: torch.Generator | None) -> Tensor:
    return F.adjust_contrast(image, factor)


def _hue(image: Tensor, step: float, generator: torch.Generator | None) -> Tensor:
    return F.adjust_hue(image, step * _sign(generator))


# Functions with their amounts at severity 1 to 5. Similar to the distortions of OpenForensics, by
# which the Kaggle data's Test differs from Train.
DEGRADATIONS: dict[str, tuple[Callable, tuple[float, ...]]] = {
    "jpeg": (_jpeg, (60, 40, 25, 15, 8)),  # quality
    "blur": (_blur, (0.6, 1.0, 1.6, 2.4, 3.5)),  # sigma in pixels of an image of 256 pixels
    "noise": (_noise, (4, 8, 13, 20, 30)),  # sigma in grey levels
    "pixelate": (_pixelate, (0.7, 0.5, 0.36, 0.25, 0.17)),  # scale
    "grey": (_grey, (0.7, 0.5, 0.3, 0.12, 0.0)),  # saturation
    "brightness": (_brightness, (0.1, 0.18, 0.27, 0.38, 0.5)),  # relative change, up or down
    "contrast": (_contrast, (0.85, 0.7, 0.55, 0.4, 0.28)),  # factor
    "hue": (_hue, (0.02, 0.04, 0.06, 0.09, 0.13)),  # change in turns, up or down
}


def degrade(
    image: Tensor, name: str, severity: int, generator: torch.Generator | None = None
) -> Tensor:
    """Apply the degradation `name` at `severity` 1 to 5 to a uint8 image `[3, H, W]` (RGB).

    `name` is a key of `DEGRADATIONS`, or "mix" for one of them drawn from `generator`, which also
    draws the noise and the direction of the changes of brightness and hue.

    Raises:
        ValueError: unknown name, or severity outside 1 to 5.
    """
    if severity not in range(1, 6):
        raise ValueError(f"severity {severity} is not one of 1 to 5")
    if name == "mix":
        name = list(DEGRADATIONS)[torch.randint(len(DEGRADATIONS), (), generator=generator)]
    if name not in DEGRADATIONS:
        raise ValueError(f"unknown degradation '{name}': choose from {', '.join(DEGRADATIONS)}")
    function, amounts = DEGRADATIONS[name]
    return function(image, amounts[severity - 1], generator)


class RandomDegradation(torch.nn.Module):
    """Degrade a uint8 image `[3, H, W]` by one of `DEGRADATIONS` at severity 1 to 3, at random."""

    def forward(self, image: Tensor) -> Tensor:
        return degrade(image, "mix", int(torch.randint(1, 4, ())))
