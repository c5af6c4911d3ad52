"""Where the spectra of real and fake images differ, as the baseline sees them."""

import numpy as np

from dfd_utils.data.folder import DataFolder
from dfd_utils.models.inputs import dct_input
from dfd_utils.models.linear_dct import CHANNELS, SIDE, STATISTICS
from dfd_utils.training.baseline import read_statistics


def spectrum_difference(data: DataFolder, split: str = "Train", images: int = 400) -> np.ndarray:
    """Return by how much fakes differ from real images in each coefficient of the block DCT.

    The difference (Fake minus Real) of the class means of the log mean magnitude, in standard
    deviations within the classes (Cohen 1988, d). Of about `images` images of the split.

    Returns:
        float `[3, 8, 8]`: Y, Cb, Cr; vertical frequency; horizontal frequency.
    """
    dataset = data.split(split, dct_input).subsample(images)
    statistics, labels = read_statistics(dataset)
    shape = -1, len(STATISTICS), len(CHANNELS), SIDE, SIDE
    magnitude = statistics.reshape(shape)[:, 0].astype(np.float64)
    real, fake = magnitude[labels == 0], magnitude[labels == 1]
    deviation = np.sqrt((real.var(axis=0) + fake.var(axis=0)) / 2)
    difference = fake.mean(axis=0) - real.mean(axis=0)
    return np.divide(difference, deviation, out=np.zeros_like(difference), where=deviation > 0)
