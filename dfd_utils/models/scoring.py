"""Logits of a model for a data set, and calibrated scores from them."""

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import ArrayLike
from scipy.special import expit
from torch import nn
from torch.utils.data import DataLoader, Dataset

from dfd_utils.data.loader import data_loader, inference_batch_size
from dfd_utils.models.detector import Detector, fuse_batchnorm
from dfd_utils.runtime.accelerator import make_accelerator


@torch.inference_mode()
def predict_logits(
    model: nn.Module, loader: DataLoader, accelerator: Accelerator
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels int `[N]` and logits float32 `[N, 2]` of every image, in the data's order."""
    model.eval()
    labels, logits = [], []
    for images, targets in loader:
        with accelerator.autocast():
            outputs = model(images).float()
        outputs, targets = accelerator.gather_for_metrics((outputs, targets))
        logits.append(outputs.cpu())
        labels.append(targets.cpu())
    return torch.cat(labels).numpy(), torch.cat(logits).numpy()


def predict_logit_margins(
    model: Detector, dataset: Dataset, image_size: int, precision: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels int `[N]` and logit margins float32 `[N]` (Fake minus Real) of a data set.

    Args:
        model: in eval mode.
        dataset: its items are images of `image_size` pixels a side, and labels.
        image_size: in pixels.
        precision: fp32, bf16 or fp16.
    """
    accelerator = make_accelerator(precision)
    batch_size = inference_batch_size(accelerator.device, image_size)
    model, loader = accelerator.prepare(fuse_batchnorm(model), data_loader(dataset, batch_size))
    labels, logits = predict_logits(model, loader, accelerator)
    return labels, logit_margins(logits)


def logit_margins(logits: np.ndarray) -> np.ndarray:
    """Return the logit of Fake minus that of Real, `[N]`, of logits `[N, 2]`."""
    return logits[:, 1] - logits[:, 0]


def apply_temperature(margins: ArrayLike, temperature: float = 1.0) -> np.ndarray:
    """Return the probability of Fake, float64 `[N]`, of logit margins (Fake minus Real)."""
    # In float64: in float32 small differences of margins end in ties.
    return expit(np.asarray(margins, dtype=np.float64) / temperature)
