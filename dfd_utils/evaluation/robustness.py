"""Scores and metrics of models on degraded images."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest

from dfd_utils.data import degradations
from dfd_utils.data.folder import DataFolder
from dfd_utils.data.loader import data_loader
from dfd_utils.evaluation.evaluate import check_logits, write_results
from dfd_utils.models.scoring import apply_temperature, logit_margins
from dfd_utils.models.trained import TrainedModel
from dfd_utils.runtime.accelerator import make_accelerator
from dfd_utils.stats.paired_tests import delong_interval

SEVERITIES = (1, 3, 5)
# Some of each step of a composition, and the composition itself: all take three times as long.
STUDIED = (
    "grey", "brightness", "contrast", "hue", "blur", "sharpen", "noise", "jpeg", "pixelate", "fog",
    "composition",
)  # fmt: skip
BATCH = 8  # images, each in all its degraded versions
COLUMNS = ("path", "label", "degradation", "severity")


def degradation_grid(severities: tuple = SEVERITIES) -> list[tuple[str, int]]:
    """Return (degradation, severity) of every version of an image; the first is ("none", 0)."""
    return [("none", 0), *((name, s) for name in STUDIED for s in severities)]


def degraded_predictions(
    models: list[TrainedModel],
    data: DataFolder,
    split: str = "Validation",
    severities: tuple = SEVERITIES,
    images: int = 200,
) -> list[pd.DataFrame]:
    """Return each model's scores of degraded images.

    Columns: path, label, degradation, severity, and score and logit as in `model.score`. Every n-th
    image of the split, about `images` in all, is degraded in the same way for every model. The
    scores are kept as degraded_<split>.csv in `model.results_folder(data)` and reused for the same
    model, images and arguments.

    Raises:
        UserError: as `evaluate`.
    """
    kind, request = "degraded", f", {images} images, severities {severities}"
    tables = [model.find_table(data, split, kind, request) for model in models]
    by_input = {}  # images are degraded once for all models that see them alike
    for index, model in enumerate(models):
        if tables[index] is None:
            by_input.setdefault(repr(model.transform), []).append(index)
    for indices in by_input.values():
        group = [models[index] for index in indices]
        scored = _score(group, data, split, severities, images)
        for index, table in zip(indices, scored, strict=True):
            tables[index] = table
            write_results(models[index], data, split, table, {}, kind, request)
    return tables


@torch.inference_mode()
def _score(
    models: list[TrainedModel],
    data: DataFolder,
    split: str,
    severities: tuple,
    images: int,
) -> list[pd.DataFrame]:
    versions = degradation_grid(severities)
    transform = partial(_every_version, versions, models[0].transform)
    dataset = data.split(split, transform, seed=0).subsample(images)
    networks = []
    for model in models:
        accelerator = make_accelerator(model.description.precision)
        # A prepared model keeps its precision, although accelerate's state is that of the last.
        network = accelerator.prepare(model.load().fuse_batchnorm())
        networks.append((network, accelerator.device))
    margins = [[] for _ in models]
    for batch, _ in data_loader(dataset, BATCH):
        for (network, device), parts in zip(networks, margins, strict=True):
            logits = network(batch.flatten(0, 1).to(device)).float().cpu()
            parts.append(logit_margins(logits.numpy()))
    rows = [
        (path, label, *version)
        for path, label in zip(dataset.names, dataset.labels.tolist(), strict=True)
        for version in versions
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    tables = []
    for model, parts in zip(models, margins, strict=True):
        logits = np.concatenate(parts)
        check_logits(model, logits)
        scores = apply_temperature(logits, model.description.temperature)
        tables.append(table.assign(score=scores, logit=logits))
    return tables


def _every_version(
    versions: list[tuple[str, int]], transform: Callable, image: torch.Tensor
) -> torch.Tensor:
    """Return the models' input for every version of an image, `[V, …]`."""
    return torch.stack([
        transform(degradations.degrade(image, name, severity) if severity else image)
        for name, severity in versions
    ])  # fmt: skip


def degradation_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return AUC and accuracy at 0.5, with 95 % intervals, a row per degradation and severity.

    Columns: degradation, severity, images, auc, auc_low, auc_high (DeLong), accuracy,
    accuracy_low, accuracy_high (Wilson 1927); all in 0..1.
    """
    rows = []
    for version, part in predictions.groupby(["degradation", "severity"], sort=False):
        label = part["label"]
        correct = int(((part["score"] >= 0.5) == label).sum())
        interval = binomtest(correct, len(part)).proportion_ci(0.95, "wilson")
        accuracy = correct / len(part), interval.low, interval.high
        rows.append((*version, len(part), *delong_interval(label, part["logit"]), *accuracy))
    columns = ["degradation", "severity", "images", "auc", "auc_low", "auc_high"]
    return pd.DataFrame(rows, columns=[*columns, "accuracy", "accuracy_low", "accuracy_high"])
