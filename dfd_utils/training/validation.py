"""Validation: its two views, and what is measured and chosen on them."""

from collections.abc import Callable

import numpy as np
from torch.utils.data import Dataset
from torchvision.transforms import v2

from dfd_utils.config import SPLITS
from dfd_utils.data.folder import DataFolder
from dfd_utils.data.transforms import RandomDegradation
from dfd_utils.models.scoring import apply_temperature
from dfd_utils.stats.abstention import choose_band
from dfd_utils.stats.metrics import (
    all_metrics,
    choose_threshold,
    fit_temperature,
    ranking_metrics,
)

CHOSEN = ("temperature", "threshold", "unsure_from", "unsure_to")  # on Validation, for model.json
DEGRADED_IMAGES = 5000  # of Validation, approximately (see DeepFakeDataset.subsample)


def validation_views(data: DataFolder, transform: Callable) -> tuple[Dataset, Dataset]:
    """Return all of Validation, and a part of it that is degraded identically in all runs."""
    clean = data.split(SPLITS[1], transform)
    degraded = data.split(SPLITS[1], v2.Compose([RandomDegradation(), transform]), seed=0)
    return clean, degraded.subsample(DEGRADED_IMAGES)


def validation_metrics(
    labels: np.ndarray,
    margins: np.ndarray,
    degraded_labels: np.ndarray,
    degraded_margins: np.ndarray,
) -> dict:
    """Return the columns of history.csv that come from Validation, with what is chosen there.

    Args:
        labels, margins: of the images as they are: 0 or 1, and logits of Fake minus Real, `[N]`.
        degraded_labels, degraded_margins: of the degraded view.
    """
    metrics = all_metrics(labels, apply_temperature(margins), logits=margins)
    temperature = fit_temperature(labels, margins)
    scores = apply_temperature(margins, temperature)
    threshold = choose_threshold(labels, scores)
    # As many images as they are as degraded ones, or the many would hide the errors of the few.
    views = np.arange(len(degraded_labels)) * len(labels) // len(degraded_labels)
    band = choose_band(
        np.concatenate([labels[views], degraded_labels]),
        np.concatenate([scores[views], apply_temperature(degraded_margins, temperature)]),
        threshold,
    )
    unsure_from, unsure_to = band or (None, None)
    return {
        "accuracy": metrics["accuracy"],
        "precision": metrics["precision"],
        "recall": metrics["recall"],
        "f1score": metrics["f1"],
        "validation_loss": metrics["log_loss"],
        "auc": metrics["auc"],
        "degraded_auc": ranking_metrics(degraded_labels, degraded_margins)["auc"],
        "temperature": temperature,
        "threshold": threshold,
        "unsure_from": unsure_from,
        "unsure_to": unsure_to,
    }
