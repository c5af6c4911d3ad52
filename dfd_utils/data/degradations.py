"""Degradations of images: single ones by name, and compositions as pictures on the web have them.

Similar in kind to the distortions of OpenForensics' challenge test (Le et al. 2021,
https://arxiv.org/abs/2107.14480), by which the Kaggle data's Test seems to differ from Train.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import Tensor

cv2.setNumThreads(1)  # worker processes share the cores

Random = torch.Generator | None


def _uniform(low: float, high: float, generator: Random) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _sign(generator: Random) -> int:
    return 1 if torch.rand((), generator=generator) < 0.5 else -1


def _field(size: int, shape: tuple, generator: Random) -> np.ndarray:
    """Return smooth noise in about -2 to 2, float32 of `shape`, from `size` x `size` numbers."""
    coarse = torch.randn(size, size, generator=generator).numpy()
    return cv2.resize(coarse, shape[1::-1], interpolation=cv2.INTER_CUBIC)


def _affine(image: np.ndarray, matrix: np.ndarray, shift: float | np.ndarray = 0.0) -> np.ndarray:
    """Map each pixel's colour by a 3 x 3 matrix and a shift; rounded and clipped."""
    return cv2.transform(image, np.column_stack([matrix, np.broadcast_to(shift, 3)]))


def _saturation(image: np.ndarray, factor: float, generator: Random) -> np.ndarray:
    luma = np.tile([0.299, 0.587, 0.114], (3, 1))  # ITU-R BT.601
    return _affine(image, luma * (1 - factor) + np.eye(3) * factor)


def _brightness(image: np.ndarray, step: float, generator: Random) -> np.ndarray:
    return _affine(image, np.eye(3) * (1 + step * _sign(generator)))


def _contrast(image: np.ndarray, factor: float, generator: Random) -> np.ndarray:
    return _affine(image, np.eye(3) * factor, image.mean() * (1 - factor))


def _hue(image: np.ndarray, turns: float, generator: Random) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(256 * turns * _sign(generator)) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def _temperature(image: np.ndarray, step: float, generator: Random) -> np.ndarray:
    step *= _sign(generator)
    return _affine(image, np.diag([1 + step, 1, 1 - step]))


def _blur(image: np.ndarray, sigma: float, generator: Random) -> np.ndarray:
    sigma *= image.shape[1] / 256
    return cv2.GaussianBlur(image, (0, 0), max(sigma, 0.1), borderType=cv2.BORDER_REFLECT_101)


def _motion(image: np.ndarray, length: float, generator: Random) -> np.ndarray:
    return cv2.filter2D(image, -1, _streak(length * image.shape[1] / 256, generator))


def _streak(length: float, generator: Random, angle: float | None = None) -> np.ndarray:
    """Return the kernel of a motion of `length` pixels, float32 with sum 1."""
    angle = _uniform(0, math.pi, generator) if angle is None else angle
    size = 2 * math.ceil(length / 2) + 1
    kernel = np.zeros((size, size), np.float32)
    end = np.array([math.cos(angle), math.sin(angle)]) * length / 2
    start, stop = (np.rint(size // 2 + sign * end).astype(int).tolist() for sign in (-1, 1))
    cv2.line(kernel, start, stop, 1.0, 1, cv2.LINE_AA)
    return kernel / kernel.sum()


def _median(image: np.ndarray, size: int, generator: Random) -> np.ndarray:
    return cv2.medianBlur(image, size)


def _sharpen(image: np.ndarray, amount: float, generator: Random) -> np.ndarray:
    return cv2.addWeighted(image, 1 + amount, cv2.GaussianBlur(image, (0, 0), 1.5), -amount, 0)


def _noise(image: np.ndarray, sigma: float, generator: Random) -> np.ndarray:
    noise = torch.randn(image.shape, generator=generator).mul_(sigma).numpy()
    return cv2.add(image, noise, dtype=cv2.CV_8U)


def _impulses(image: np.ndarray, share: float, generator: Random) -> np.ndarray:
    chance = torch.rand(image.shape[:2], generator=generator).numpy()
    image = image.copy()
    image[chance < share / 2] = 0
    image[chance > 1 - share / 2] = 255
    return image


def _blocks(image: np.ndarray, share: float, generator: Random) -> np.ndarray:
    size = int(torch.randint(12, 33, (), generator=generator))  # blocks per side
    chance = torch.rand(size, size, generator=generator).numpy()
    kept = (chance >= share).astype(np.uint8)
    return image * cv2.resize(kept, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)[..., None]


def degrade_jpeg(image: np.ndarray, quality: int, generator: Random = None) -> np.ndarray:
    """Save uint8 RGB `[H, W, 3]` as JPEG of `quality` 1 to 100 and read it again."""
    code = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(code, cv2.IMREAD_COLOR)[..., ::-1]


def _pixelate(image: np.ndarray, scale: float, generator: Random) -> np.ndarray:
    size = tuple(max(4, round(side * scale)) for side in image.shape[1::-1])
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    blocks = _sign(generator) > 0 and scale <= 0.5  # above it, only some pixels would be repeated
    enlarge = cv2.INTER_NEAREST if blocks else cv2.INTER_LINEAR
    return cv2.resize(small, image.shape[1::-1], interpolation=enlarge)


def _posterize(image: np.ndarray, levels: int, generator: Random) -> np.ndarray:
    grey = np.arange(256)
    table = np.rint(np.rint(grey / 255 * (levels - 1)) * 255 / (levels - 1))
    return cv2.LUT(image, table.astype(np.uint8))


def _pool(image: np.ndarray, size: int, generator: Random) -> np.ndarray:
    extreme = cv2.dilate if _sign(generator) > 0 else cv2.erode
    return extreme(image, np.ones((size, size), np.uint8))


def _warp(image: np.ndarray, pixels: float, generator: Random) -> np.ndarray:
    rows, columns = np.indices(image.shape[:2], dtype=np.float32)
    columns += pixels * _field(32, image.shape, generator)
    rows += pixels * _field(32, image.shape, generator)
    return cv2.remap(image, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def _fog(image: np.ndarray, opacity: float, generator: Random) -> np.ndarray:
    veil = np.clip(opacity * (1 + 0.4 * _field(5, image.shape, generator)), 0, 0.95)[..., None]
    return (image * (1 - veil) + 235 * veil).astype(np.uint8)


def _snow(image: np.ndarray, share: float, generator: Random) -> np.ndarray:
    return _precipitation(image, share, 2, _uniform(1, 8, generator), generator)


def _rain(image: np.ndarray, share: float, generator: Random) -> np.ndarray:
    return _precipitation(image, share, 1, _uniform(15, 30, generator), generator)


def _precipitation(
    image: np.ndarray, share: float, size: int, length: float, generator: Random
) -> np.ndarray:
    """Lay white streaks of `length` pixels, of flakes of `size` pixels, over the image."""
    rows, columns = image.shape[0] // size + 1, image.shape[1] // size + 1
    flakes = (torch.rand(rows, columns, generator=generator) < share).float().numpy()
    flakes = cv2.resize(flakes, image.shape[1::-1])
    angle = math.pi / 2 + _uniform(-0.5, 0.5, generator)
    flakes = cv2.filter2D(flakes, -1, _streak(length, generator, angle))
    veil = np.minimum(flakes * (0.5 * length + 0.5), 0.9)[..., None]
    return (image * (1 - veil) + 245 * veil).astype(np.uint8)


# The steps of a composition, in order; each has functions with amounts at severity 1 to 5.
STEPS: dict[str, dict[str, tuple[Callable, tuple[float, ...]]]] = {
    "colour": {
        "grey": (_saturation, (0.7, 0.5, 0.3, 0.12, 0.0)),  # saturation
        "vivid": (_saturation, (1.3, 1.6, 2.0, 2.5, 3.2)),  # saturation
        "brightness": (_brightness, (0.1, 0.18, 0.27, 0.38, 0.5)),  # relative change, up or down
        "contrast": (_contrast, (0.85, 0.7, 0.55, 0.4, 0.28)),  # factor
        "stretch": (_contrast, (1.2, 1.4, 1.7, 2.1, 2.6)),  # factor
        "hue": (_hue, (0.02, 0.04, 0.06, 0.09, 0.13)),  # change in turns, up or down
        "temperature": (_temperature, (0.08, 0.15, 0.24, 0.35, 0.5)),  # warmer or colder
    },
    "sharpness": {
        "blur": (_blur, (0.6, 1.0, 1.6, 2.4, 3.5)),  # sigma in pixels of an image of 256 pixels
        "motion": (_motion, (3, 5, 8, 12, 18)),  # pixels of an image of 256 pixels
        "median": (_median, (3, 3, 5, 7, 9)),  # window in pixels
        "sharpen": (_sharpen, (0.5, 1.0, 1.7, 2.6, 4.0)),  # share of the details that is added
    },
    "corruption": {
        "noise": (_noise, (4, 8, 13, 20, 30)),  # sigma in grey levels
        "impulses": (_impulses, (0.005, 0.015, 0.03, 0.06, 0.1)),  # share of the pixels
        "blocks": (_blocks, (0.02, 0.04, 0.07, 0.11, 0.17)),  # share of the area
        "jpeg": (degrade_jpeg, (60, 40, 25, 15, 8)),  # quality
        "pixelate": (_pixelate, (0.7, 0.5, 0.36, 0.25, 0.17)),  # scale
        "posterize": (_posterize, (32, 18, 11, 7, 4)),  # levels per channel
        "pool": (_pool, (2, 2, 3, 4, 5)),  # window of a maximum or minimum, in pixels
        "warp": (_warp, (0.5, 1.0, 1.6, 2.4, 3.5)),  # typical displacement in pixels
    },
    "weather": {
        "fog": (_fog, (0.12, 0.22, 0.34, 0.48, 0.62)),  # opacity
        "snow": (_snow, (0.008, 0.016, 0.03, 0.05, 0.08)),  # share of the area
        "rain": (_rain, (0.002, 0.004, 0.008, 0.014, 0.022)),  # share of the pixels
    },
}
STEP_PROBABILITY = {"colour": 0.7, "sharpness": 0.5, "corruption": 0.6, "weather": 0.3}
DEGRADATIONS = {name: entry for step in STEPS.values() for name, entry in step.items()}


def degrade(image: Tensor, name: str, severity: int, generator: Random = None) -> Tensor:
    """Apply the degradation `name` at `severity` 1 to 5 to a uint8 image `[3, H, W]` (RGB).

    `name` is a key of `DEGRADATIONS`, or "composition": each step of `STEPS` with its probability,
    in order, by one of its degradations at a severity of up to `severity`. `generator` draws all
    that is random.

    Raises:
        ValueError: unknown name, or severity outside 1 to 5.
    """
    if severity not in range(1, 6):
        raise ValueError(f"severity {severity} is not one of 1 to 5")
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    if name == "composition":
        for step, probability in STEP_PROBABILITY.items():
            if torch.rand((), generator=generator) < probability:
                entries = list(STEPS[step].values())
                function, amounts = entries[torch.randint(len(entries), (), generator=generator)]
                strength = int(torch.randint(severity, (), generator=generator))
                pixels = function(pixels, amounts[strength], generator)
    elif name in DEGRADATIONS:
        function, amounts = DEGRADATIONS[name]
        pixels = function(pixels, amounts[severity - 1], generator)
    else:
        raise ValueError(f"unknown degradation '{name}': choose from {', '.join(DEGRADATIONS)}")
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
