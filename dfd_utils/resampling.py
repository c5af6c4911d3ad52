"""Intervals of all metrics by resampling the images, paired over models."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from dfd_utils.config import UserError
from dfd_utils.metrics import all_metrics, weighted_metrics

CHUNK = 1_000_000  # weights worked on at a time: 8 MB, about 100 MB with all that is made of them


@dataclass(frozen=True)
class Bootstrap:
    """Metrics of models on resamples of the same images.

    intervals: index (model, metric), columns value, low, high; value is that of the images as
    they are. samples: for each model a row a resample and a column a metric.
    """

    intervals: pd.DataFrame
    samples: dict[str, pd.DataFrame]

    def difference(self, a: str, b: str) -> pd.DataFrame:
        """Return a less b: index metric, columns difference, low, high (paired by resample)."""
        value = self.intervals.loc[a, "value"] - self.intervals.loc[b, "value"]
        return _interval_table(value, self.samples[a] - self.samples[b], "difference")


def _interval_table(value: pd.Series, samples: pd.DataFrame, name: str) -> pd.DataFrame:
    low, high = np.quantile(samples, [0.025, 0.975], axis=0)
    return pd.DataFrame({name: value, "low": low, "high": high}, index=samples.columns)


def bootstrap(
    labels: ArrayLike,
    scores_by_model: dict[str, ArrayLike],
    resamples: int = 2000,
    seed: int = 0,
    threshold: float | dict[str, float] = 0.5,
) -> Bootstrap:
    """Return every metric of metrics.all_metrics with its percentile interval, for each model.

    Real and Fake images are drawn with replacement within their class, the same images for all
    models (Efron & Tibshirani 1993). Arrays have shape (n,); threshold is one for all models or
    one by model name. Resampling adds calibration error of its own, so that the interval of
    expected_calibration_error lies high: it can miss the value of a well-calibrated model.

    Raises:
        UserError: as metrics.check_arrays; a class is missing; no model or no resample.
    """
    if not scores_by_model or resamples < 1:
        raise UserError("a bootstrap needs at least one model and one resample")
    if not isinstance(threshold, dict):
        threshold = dict.fromkeys(scores_by_model, threshold)
    values = {m: all_metrics(labels, s, threshold[m]) for m, s in scores_by_model.items()}
    labels, rng = np.asarray(labels), np.random.default_rng(seed)
    parts = {model: [] for model in scores_by_model}
    rows = max(1, CHUNK // len(labels))
    for start in range(0, resamples, rows):
        counts = resample_counts(labels, min(rows, resamples - start), rng)
        for model, scores in scores_by_model.items():
            metrics = weighted_metrics(labels, scores, counts, threshold[model])
            parts[model].append(pd.DataFrame(metrics))
    samples = {model: pd.concat(part, ignore_index=True) for model, part in parts.items()}
    tables = {m: _interval_table(pd.Series(values[m]), samples[m], "value") for m in samples}
    return Bootstrap(pd.concat(tables, names=["model", "metric"]), samples)


def resample_counts(labels: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each image is drawn, shape (resamples, n); each class keeps its size."""
    counts = np.empty((resamples, len(labels)))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        size = len(members)
        drawn = rng.integers(size, size=(resamples, size)) + size * np.arange(resamples)[:, None]
        counts[:, members] = np.bincount(drawn.ravel(), minlength=resamples * size).reshape(
            -1, size
        )
    return counts
