"""How models hold up on degraded images."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest

from dfd_utils import transforms
from dfd_utils.compare import delong_interval
from dfd_utils.config import write_whole
from dfd_utils.dataset import data_fingerprint, data_loader, load_split
from dfd_utils.evaluate import calibrated, entries, place, scoring_key, write_entry
from dfd_utils.models import fused, load_model, read_description
from dfd_utils.precision import make_accelerator

SEVERITIES = (1, 3, 5)
BATCH = 8  # images, each of which comes in all its degraded versions
COLUMNS = ("path", "label", "degradation", "severity", "score")


def conditions(severities: tuple = SEVERITIES) -> list[tuple[str, int]]:
    """Return (degradation, severity) of every version of an image; the first is ("none", 0)."""
    named = [(name, s) for name in transforms.DEGRADATIONS for s in severities]
    return [("none", 0), *named]


def degraded_predictions(
    folders: list[Path],
    data: Path,
    split: str = "Validation",
    severities: tuple = SEVERITIES,
    images: int = 200,
) -> dict[Path, pd.DataFrame]:
    """Return each model's scores of degraded images: `path,label,degradation,severity,score`.

    Takes `images` of the split, every n-th, degraded alike for every model. Kept in the model's
    folder as degraded_<split>.csv, and not made again for the same model, data and arguments.
    """
    name, fingerprint = f"degraded_{split}", data_fingerprint(data)
    asked = f", {images} images, severities {severities}"
    keys = {folder: scoring_key(folder, fingerprint) + asked for folder in folders}
    places = {folder: place(folder, data, fingerprint) / f"{name}.csv" for folder in folders}
    found, missing = {}, {}
    for folder in folders:
        found[folder] = _kept(places[folder], keys[folder])
        if found[folder] is None:
            size = read_description(folder)["image_size"]
            missing.setdefault(size, []).append(folder)
    for size, group in missing.items():  # degraded once for all models of one image size
        for folder, table in _scored(group, size, data, split, severities, images).items():
            found[folder] = table
            write_whole(places[folder], table.to_csv(index=False))
            write_entry(folder, places[folder].parent, name, {"scored": keys[folder]})
    return found


def _kept(path: Path, key: str) -> pd.DataFrame | None:
    if entries(path.parent).get(path.stem, {}).get("scored") != key:
        return None
    try:
        table = pd.read_csv(path, converters={"score": float})  # exact to the last bit
    except (OSError, ValueError):
        return None
    return table if tuple(table.columns) == COLUMNS else None


@torch.inference_mode()
def _scored(
    folders: list[Path], size: int, data: Path, split: str, severities: tuple, images: int
) -> dict[Path, pd.DataFrame]:
    versions = conditions(severities)
    transform = partial(_every_version, versions, transforms.eval_transform(size))
    dataset = load_split(data, split, transform, seed=0).every(images)
    loaded = {folder: load_model(folder) for folder in folders}
    ready = {}
    for folder, (model, description) in loaded.items():
        accelerator = make_accelerator(description["precision"])
        # A prepared model keeps its own precision; accelerate's state is that of the last one.
        ready[folder] = accelerator.prepare(fused(model)), accelerator.device, []
    for batch, _ in data_loader(dataset, BATCH):
        for model, device, margins in ready.values():
            logits = model(batch.flatten(0, 1).to(device)).float().cpu()
            margins.append((logits[:, 1] - logits[:, 0]).numpy())
    files = [str(dataset.path(i).relative_to(data)) for i in range(len(dataset))]
    rows = [
        (file, label, *version)
        for file, label in zip(files, dataset.labels.tolist(), strict=True)
        for version in versions
    ]
    return {
        folder: pd.DataFrame(rows, columns=COLUMNS[:-1]).assign(
            score=calibrated(np.concatenate(margins), loaded[folder][1])
        )
        for folder, (_, _, margins) in ready.items()
    }


def _every_version(
    versions: list[tuple[str, int]], resize: Callable, image: torch.Tensor
) -> torch.Tensor:
    """Return every version of an image, uint8 `[V, 3, S, S]`."""
    return torch.stack([
        resize(transforms.degrade(image, name, severity) if severity else image)
        for name, severity in versions
    ])  # fmt: skip


def degradation_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return AUC and accuracy at 0.5 by degradation and severity, a row each, with 95 % intervals.

    Columns: degradation, severity, images, auc, auc_low, auc_high (DeLong), accuracy,
    accuracy_low, accuracy_high (Wilson 1927); all in 0..1.
    """
    rows = []
    for version, part in predictions.groupby(["degradation", "severity"], sort=False):
        label, score = part["label"], part["score"]
        right = int(((score >= 0.5) == label).sum())
        interval = binomtest(right, len(part)).proportion_ci(0.95, "wilson")
        accuracy = right / len(part), interval.low, interval.high
        rows.append((*version, len(part), *delong_interval(label, score), *accuracy))
    ends = ["auc", "auc_low", "auc_high", "accuracy", "accuracy_low", "accuracy_high"]
    return pd.DataFrame(rows, columns=["degradation", "severity", "images", *ends])
