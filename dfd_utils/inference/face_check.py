"""Check whether an image contains a face, for the warning beside a score."""

from threading import local

import cv2
import numpy as np
from torch import Tensor

SIDE = 96  # pixels to which an image is resized; with more, hardly more faces are found
MARGIN = SIDE // 4  # pixels of repeated edge: the cascade misses faces that touch the edge
SIZES = ((0.6, 1.5), (0.35, 0.6))  # of a face, relative to the image; the most frequent first

cv2.setNumThreads(1)  # worker processes share the cores, and threads do not survive a fork


class _Cascade(local):  # one per thread: a classifier keeps the image that it searches
    def __init__(self):
        path = cv2.data.haarcascades + "haarcascade_frontalface_alt2.xml"
        self.classifier = cv2.CascadeClassifier(path)


_cascade = _Cascade()


def has_face(image: Tensor) -> bool:
    """Return whether an image, uint8 RGB `[3, H, W]`, has a face of a third of its side or more.

    Viola and Jones 2001, with the cascade of frontal faces (Lienhart et al. 2003) in OpenCV's
    wheel; docs/benchmarks.md has its miss rate and its false-positive rate.
    """
    grey = cv2.cvtColor(np.ascontiguousarray(image.permute(1, 2, 0)), cv2.COLOR_RGB2GRAY)
    grey = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    margins = [MARGIN] * 4
    grey = cv2.equalizeHist(cv2.copyMakeBorder(grey, *margins, cv2.BORDER_REPLICATE))
    for bounds in SIZES:
        smallest, largest = ((round(share * SIDE),) * 2 for share in bounds)
        if len(_cascade.classifier.detectMultiScale(grey, 1.1, 1, 0, smallest, largest)):
            return True
    return False
