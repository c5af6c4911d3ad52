"""The same training with and without degraded images, compared."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from dfd_utils import config
from dfd_utils.config import SPLITS
from dfd_utils.data.folder import DataFolder
from dfd_utils.evaluation.evaluate import evaluate_missing
from dfd_utils.evaluation.robustness import degraded_predictions
from dfd_utils.models.trained import TrainedModel
from dfd_utils.runtime.files import content_hash
from dfd_utils.stats.bootstrap import TAILS, metric_interval, resample_counts
from dfd_utils.stats.paired_tests import delong, delong_interval
from dfd_utils.training import train
from dfd_utils.training.run_folder import recorded_exclusions

WITHOUT, WITH, DIFFERENCE = "without degraded images", "with degraded images", "with minus without"
SHARE = 0.8  # of the training images is degraded, if the run to compare with degraded none


def train_degradation_pair(
    model: TrainedModel, data: DataFolder, log: Callable[[str], None] = print
) -> dict[str, TrainedModel]:
    """Train a run's model a second time: with degraded images, or without if it had them.

    All other settings and the exclusion list are the run's own, except that a model trained in
    fp16 is trained in fp32 where there is no GPU. The second model goes to `build/ablations/`,
    where only this comparison finds it. Returns both models by WITHOUT and WITH.

    Raises:
        UserError: as `train.fit`, or the run's config.json is missing or damaged.
    """
    data = recorded_exclusions(model.folder, data, log)
    known = {field.name for field in dataclasses.fields(config.Profile)}
    settings = {k: v for k, v in model.config["settings"].items() if k in known}
    other = 0.0 if settings["degradation_probability"] else SHARE
    profile = config.get_profile(**settings | {"degradation_probability": other})
    if profile.precision == "fp16" and not torch.cuda.is_available():
        profile = dataclasses.replace(profile, precision="fp32")
    # The name identifies the settings and images: a changed run gets another second training.
    images = (data.split_fingerprint(split) for split in SPLITS[:2])
    key = content_hash(model.config["model"], repr(profile), *images)[:8]
    second = config.BUILD_DIR / "ablations" / f"{model.folder.parent.name}-{key}" / model.name
    train.fit(model.config["model"], data, second, profile, log)
    pair = model, TrainedModel(second)
    return dict(zip((WITHOUT, WITH) if other else (WITH, WITHOUT), pair, strict=True))


def severity_auc(
    pair: dict[str, TrainedModel], data: DataFolder, images: int = 200, resamples: int = 2000
) -> pd.DataFrame:
    """Return the AUC by severity, a mean over all degradations, of both trainings.

    Args:
        pair: the result of `train_degradation_pair`.
        data: its data set, of which `images` Validation images are degraded in every way.
        resamples: number of bootstrap resamples of the images, stratified by class; the same
            ones for all rows and columns.

    Returns:
        A row per training (WITHOUT, WITH, DIFFERENCE) and severity (0: original images). Columns:
        training, severity, auc, low, high, and drop, drop_low, drop_high: the AUC at severity 0
        minus this one; with 95 % intervals.
    """
    degraded = degraded_predictions(list(pair.values()), data, images=images)
    wins = {}
    for training, table in zip(pair, degraded, strict=True):
        for severity, part in table.groupby("severity"):
            kinds = [_wins(table) for _, table in part.groupby("degradation")]
            wins[training, severity] = np.mean(kinds, axis=0)
    labels = np.repeat([0, 1], next(iter(wins.values())).shape)
    counts = resample_counts(labels, resamples, np.random.default_rng(0))
    real, fake = counts[:, labels == 0], counts[:, labels == 1]
    # Each array: the AUC, then those of the resamples.
    means = {
        key: np.append(shares.mean(), ((real @ shares) * fake).sum(axis=1) / shares.size)
        for key, shares in wins.items()
    }
    pairs = min(real.shape[1], fake.shape[1])
    severities = sorted({severity for _, severity in means})
    means |= {(DIFFERENCE, s): means[WITH, s] - means[WITHOUT, s] for s in severities}
    rows = []
    for (training, severity), auc in means.items():
        interval = _difference(auc) if training == DIFFERENCE else _auc(auc, pairs)
        rows.append((training, severity, *interval, *_difference(means[training, 0] - auc)))
    columns = ["training", "severity", "auc", "low", "high", "drop", "drop_low", "drop_high"]
    return pd.DataFrame(rows, columns=columns)


def _wins(table: pd.DataFrame) -> np.ndarray:
    """Return 1 where a Fake (column) ranks above a Real (row), ties 0.5: the mean is the AUC."""
    real, fake = (table["logit"].to_numpy()[table["label"] == label] for label in (0, 1))
    return (fake > real[:, None]) + 0.5 * (fake == real[:, None])


def _auc(auc: np.ndarray, pairs: int) -> tuple[float, float, float]:
    return auc[0], *metric_interval("auc", auc[0], auc[1:], pairs)


def _difference(auc: np.ndarray) -> tuple[float, float, float]:
    return auc[0], *np.quantile(auc[1:], TAILS)


def auc_on_test(pair: dict[str, TrainedModel], data: DataFolder) -> pd.DataFrame:
    """Return auc, low and high (DeLong, 95 %) on Test of WITHOUT, WITH and DIFFERENCE."""
    evaluate_missing(pair.values(), data)
    tables = {training: model.predictions(data, "Test") for training, model in pair.items()}
    rows = {t: delong_interval(table["label"], table["logit"]) for t, table in tables.items()}
    paired = delong(tables[WITH]["label"], tables[WITH]["logit"], tables[WITHOUT]["logit"])
    rows[DIFFERENCE] = paired["difference"], paired["low"], paired["high"]
    return pd.DataFrame(rows, index=["auc", "low", "high"]).T
