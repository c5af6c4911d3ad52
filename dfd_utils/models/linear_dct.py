"""The baseline's view of an image: statistics of its 8 x 8 block DCT; without torch."""

import numpy as np
from scipy.fft import dct

STATISTICS = ("mean", "share near zero", "root mean square")
CHANNELS = ("Y", "Cb", "Cr")
SIDE = 8  # pixels of a block, as in JPEG
STRIP_BLOCKS = 8192  # blocks at a time: the memory does not grow with the image
FEATURES = len(STATISTICS) * len(CHANNELS) * SIDE * SIDE
_BASIS = dct(np.eye(SIDE), axis=0, norm="ortho").astype(np.float32)
# ITU-R BT.601, as in JPEG; Cb and Cr without their shift, which only the mean of a block sees.
_YCBCR = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)


def block_dct_statistics(pixels: np.ndarray) -> np.ndarray:
    """Return statistics of the block DCT of an image at its own resolution.

    Generators leave traces in the spectrum, most of all in the high frequencies that resizing
    removes (Frank et al. 2020, https://arxiv.org/abs/2003.08685).

    Args:
        pixels: uint8 RGB `[H, W, 3]`; a side below 8 pixels is repeated up to 8.

    Returns:
        float32 `[576]`, that is `[3, 3, 8, 8]`: for each of `STATISTICS`, of `CHANNELS` and of the
        coefficients over all blocks: the logarithm of the mean magnitude, the share of magnitudes
        below 1, the logarithm of the root mean square.
    """
    missing = [(0, max(0, SIDE - side)) for side in pixels.shape[:2]]
    pixels = np.pad(pixels, [*missing, (0, 0)], "wrap")
    rows, columns = (side // SIDE for side in pixels.shape[:2])
    sums = np.zeros((len(STATISTICS), len(CHANNELS), SIDE * SIDE))
    strip = max(1, STRIP_BLOCKS // columns)
    for top in range(0, rows, strip):
        part = pixels[top * SIDE : min(top + strip, rows) * SIDE, : columns * SIDE]
        sums += _sums(part, columns)
    mean, near_zero, square = sums / (rows * columns)
    statistics = np.log(mean + 1e-3), near_zero, np.log(np.sqrt(square) + 1e-3)
    return np.stack(statistics).ravel().astype(np.float32)


def _sums(pixels: np.ndarray, columns: int) -> np.ndarray:
    """Return the sums over all blocks of magnitude, magnitude below 1, and squared magnitude."""
    planes = pixels @ _YCBCR.T
    blocks = planes.reshape(-1, SIDE, columns, SIDE, len(CHANNELS)).transpose(4, 0, 2, 1, 3)
    blocks = blocks.reshape(len(CHANNELS), -1, SIDE, SIDE)
    magnitude = np.abs(_BASIS @ blocks @ _BASIS.T).reshape(len(CHANNELS), -1, SIDE * SIDE)
    return np.stack([part.sum(axis=1) for part in (magnitude, magnitude < 1, magnitude**2)])
