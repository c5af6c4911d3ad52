"""A model's logits for a data set, and calibrated scores from them."""

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import ArrayLike
from scipy.special import expit
from torch import nn
from torch.utils.data import DataLoader


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


def logit_margins(logits: np.ndarray) -> np.ndarray:
    """Return the logit of Fake minus that of Real, float64 `[N]`, of logits float32 `[N, 2]`."""
    return (logits[:, 1] - logits[:, 0]).astype(np.float64)


def apply_temperature(margins: ArrayLike, temperature: float = 1.0) -> np.ndarray:
    """Return the probability of Fake, float64 `[N]`, of logit margins (Fake minus Real)."""
    return expit(np.asarray(margins, dtype=np.float64) / temperature)
