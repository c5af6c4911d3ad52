"""Bootstrap intervals of all metrics, from the same resampled images for all models."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import expit, logit, ndtri
from scipy.stats import beta

from dfd_utils.config import UserError
from dfd_utils.stats.metrics import (
    BINS,
    all_metrics,
    bin_of,
    check_arrays,
    check_ranking,
    confidence,
    confusion_rates,
    operating_points,
)

TAILS = (0.025, 0.975)
Z_95 = float(ndtri(0.975))
EPSILON = float(np.finfo(np.float64).eps)  # as in scikit-learn's log_loss
NO_SPREAD = 1e-12  # a smaller spread of resamples or standard error is rounding
CHUNK = 1_000_000  # weights per step: 8 MB, about 100 MB with all intermediate arrays


@dataclass(frozen=True)
class Bootstrap:
    """Metrics of models on resamples of the same images.

    intervals: index (model, metric), columns value (of the original images), low, high.
    samples: for each model a row per resample and a column per metric.
    """

    intervals: pd.DataFrame
    samples: dict[str, pd.DataFrame]

    def difference(self, a: str, b: str) -> pd.DataFrame:
        """Return a - b: index metric, columns difference, low, high (paired percentiles).

        Where different models differ by the same in all resamples, the interval is composed of
        those of both (Zou & Donner 2008).
        """
        first, second = self.intervals.loc[a], self.intervals.loc[b]
        value = first["value"] - second["value"]
        samples = self.samples[a] - self.samples[b]
        low, high = np.quantile(samples, TAILS, axis=0)
        if not self.samples[a].equals(self.samples[b]):
            fixed = np.ptp(samples, axis=0) < NO_SPREAD
            below = np.hypot(first["value"] - first["low"], second["high"] - second["value"])
            above = np.hypot(first["high"] - first["value"], second["value"] - second["low"])
            low, high = np.where(fixed, [value - below, value + above], [low, high])
        return pd.DataFrame({"difference": value, "low": low, "high": high}, index=samples.columns)


def metric_interval(
    name: str, value: float, samples: ArrayLike, trials: int
) -> tuple[float, float]:
    """Return the ends of a metric's 95 % interval, from its resamples of shape (r,).

    Uses the bootstrap's standard error on the logit scale (Pepe 2003; log_loss: log scale),
    because plain percentiles cover the truth too rarely near 0 and 1. Resampling adds calibration
    error of its own, which the "basic" interval (Davison & Hinkley 1997) subtracts.

    At 0 and 1 resamples hardly differ, and of constant scores not at all: the interval then
    includes the `exact_interval` of `trials` images, for a ranking metric the number of disjoint
    pairs of a Real and a Fake image. It also holds for a mean over images that is no proportion
    (Brier score; log loss as a share of its largest value), because no other values in 0..1 vary
    as much as 0 and 1 (Hoeffding 1963).
    """
    low, high = np.quantile(samples, TAILS)
    if np.ptp(samples) < NO_SPREAD:
        largest = -np.log(EPSILON) if name == "log_loss" else 1.0
        exact = exact_interval(value / largest, trials)
        return float(min(low, exact[0] * largest)), float(max(high, exact[1] * largest))
    if name == "expected_calibration_error":
        return max(0.0, float(2 * value - high)), max(0.0, float(2 * value - low))
    error = float(np.std(samples))
    if name == "log_loss" and value > 0:
        factor = np.exp(Z_95 * error / value)
        return float(value / factor), float(value * factor)
    if value in (0, 1):
        exact = exact_interval(value, trials)
        return float(min(low, exact[0])), float(max(high, exact[1]))
    half_width = Z_95 * error / (value * (1 - value))
    return float(expit(logit(value) - half_width)), float(expit(logit(value) + half_width))


def exact_interval(share: float, trials: int) -> tuple[float, float]:
    """Return the exact binomial 95 % interval (Clopper & Pearson 1934) of a share of `trials`.

    The share may be between two possible ones, as an AUC of 0.5 of an odd number of pairs.
    """
    hits = share * trials
    low = beta.ppf(TAILS[0], hits, trials - hits + 1) if hits > 0 else 0.0
    high = beta.ppf(TAILS[1], hits + 1, trials - hits) if hits < trials else 1.0
    return float(low), float(high)


def bootstrap(
    labels: ArrayLike,
    scores_by_model: dict[str, ArrayLike],
    resamples: int = 2000,
    seed: int = 0,
    threshold: float | dict[str, float] = 0.5,
    logits_by_model: dict[str, ArrayLike] | None = None,
) -> Bootstrap:
    """Return every metric of metrics.all_metrics with its 95 % interval, for each model.

    Images are drawn with replacement within their class, the same for all models (Efron &
    Tibshirani 1993). Arrays have shape (n,); `threshold` is one number or one per model name;
    models without logits are ranked by their scores.

    Raises:
        UserError: as metrics.check_arrays; a class is missing; no model; no resample.
    """
    if not scores_by_model or resamples < 1:
        raise UserError("a bootstrap needs at least one model and one resample")
    if not isinstance(threshold, dict):
        threshold = dict.fromkeys(scores_by_model, threshold)
    logits = dict.fromkeys(scores_by_model) | (logits_by_model or {})
    values = {
        model: all_metrics(labels, scores, threshold[model], logits[model])
        for model, scores in scores_by_model.items()
    }
    labels, rng = np.asarray(labels), np.random.default_rng(seed)
    parts = {model: [] for model in scores_by_model}
    rows = max(1, CHUNK // len(labels))
    for start in range(0, resamples, rows):
        counts = resample_counts(labels, min(rows, resamples - start), rng)
        for model, scores in scores_by_model.items():
            metrics = weighted_metrics(labels, scores, counts, threshold[model], logits[model])
            parts[model].append(pd.DataFrame(metrics))
    samples = {model: pd.concat(part, ignore_index=True) for model, part in parts.items()}
    pairs = int(np.unique(labels, return_counts=True)[1].min())
    called = {m: int(np.sum(np.asarray(s) >= threshold[m])) for m, s in scores_by_model.items()}

    def interval(model: str, name: str, value: float) -> tuple[float, float]:
        trials = max(1, called[model]) if name == "precision" else pairs
        if name == "accuracy" and 0 < value < 1:
            trials = len(labels)
        return metric_interval(name, value, samples[model][name], trials)

    rows = {
        (model, name): (value, *interval(model, name, value))
        for model in samples
        for name, value in values[model].items()
    }
    index = pd.MultiIndex.from_tuples(rows, names=["model", "metric"])
    return Bootstrap(pd.DataFrame(rows.values(), index, ["value", "low", "high"]), samples)


def resample_counts(labels: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Draw how often each image occurs, shape (resamples, n); each class keeps its size."""
    counts = np.empty((resamples, len(labels)))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        size = len(members)
        drawn = rng.integers(size, size=(resamples, size)) + size * np.arange(resamples)[:, None]
        counts[:, members] = np.bincount(drawn.ravel(), minlength=resamples * size).reshape(
            -1, size
        )
    return counts


def weighted_metrics(
    labels: ArrayLike,
    scores: ArrayLike,
    weights: np.ndarray,
    threshold: float = 0.5,
    logits: ArrayLike | None = None,
) -> dict[str, np.ndarray]:
    """Return all_metrics of many resamples at once, each metric of shape (r,).

    weights, shape (r, n): how often each image occurs in each resample; every row needs both
    classes. The scores are sorted once for all rows, which makes the bootstrap fast.
    """
    labels, scores = check_arrays(labels, scores, threshold)
    weights = np.asarray(weights, dtype=np.float64)
    images, fakes = weights.sum(axis=1), weights @ labels
    if not ((fakes > 0) & (fakes < images)).all():
        raise UserError("every resample must contain Real and Fake images")

    called = scores >= threshold
    right_score = np.clip(np.where(labels == 1, scores, 1 - scores), EPSILON, 1 - EPSILON)
    in_bin = np.eye(BINS)[bin_of(scores)]
    # Everything that is a sum over images comes from one matrix product.
    terms = [called & (labels == 1), called, (scores - labels) ** 2, -np.log(right_score)]
    sums = weights @ np.column_stack([*terms, in_bin * (scores - labels)[:, None]])
    tp, called_sum, squared_error, log_loss = sums[:, :4].T
    fp = called_sum - tp

    _, ranked = check_ranking(labels, scores if logits is None else logits)
    order = np.argsort(-ranked, kind="stable")
    ends = np.flatnonzero(np.diff(ranked[order], append=-np.inf))  # the last image of each tie
    in_order = weights[:, order]
    passed = np.cumsum(in_order, axis=1)[:, ends]
    caught = np.cumsum(in_order * labels[order], axis=1)[:, ends]
    start = np.zeros((len(weights), 1))
    tpr = np.hstack([start, caught / fakes[:, None]])
    fpr = np.hstack([start, (passed - caught) / (images - fakes)[:, None]])
    precision = caught / np.maximum(passed, 1)
    return {
        **confusion_rates(images - fakes - fp, fp, fakes - tp, tp),
        "auc": np.trapezoid(tpr, fpr, axis=1),
        "average_precision": np.minimum(1, np.sum(np.diff(tpr, axis=1) * precision, axis=1)),
        **operating_points(fpr, tpr),
        "expected_calibration_error": np.abs(sums[:, 4:]).sum(axis=1) / images,
        "brier": squared_error / images,
        "log_loss": log_loss / images,
        "aurc": _aurc(weights, confidence(scores, logits), (scores >= 0.5) != labels),
    }


def _aurc(weights: np.ndarray, sure: ArrayLike, wrong: np.ndarray) -> np.ndarray:
    sure = np.asarray(sure)
    order = np.argsort(-sure, kind="stable")
    ends = np.flatnonzero(np.diff(sure[order], append=-1))
    in_order = weights[:, order]
    taken = np.cumsum(in_order, axis=1)[:, ends]
    errors = np.cumsum(in_order * wrong[order], axis=1)[:, ends]
    risk = errors / np.maximum(taken, 1)
    return np.sum(np.diff(taken, axis=1, prepend=0) * risk, axis=1) / taken[:, -1]
