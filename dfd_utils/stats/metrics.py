"""Threshold, ranking and calibration metrics, operating points, thresholds and temperatures.

Labels are 0 = Real and 1 = Fake (the positive class), scores are the probability of Fake in 0..1,
and an image is classified as Fake if its score >= threshold. Logits are the logit of Fake minus
that of Real; images are ranked by them where they are known, because scores close to 0 and 1 are
rounded to equal numbers.
"""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from sklearn import metrics as sk

from dfd_utils.config import UserError

BINS = 15  # of the calibration error, as in Guo et al. 2017
ROC_METRICS = ("eer", "recall_at_1_percent_fpr", "recall_at_5_percent_fpr")  # on the ROC curve


def check_arrays(
    labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels as int64 and scores as float64, both of shape (n,).

    Raises:
        UserError: no image, different lengths, a label other than 0 or 1, a score or the
            threshold outside 0..1.
    """
    labels, scores = check_ranking(labels, scores)
    if len(bad := scores[~((scores >= 0) & (scores <= 1))]):
        raise UserError(f"a score is a probability in 0..1, not {bad[0]}")
    if not 0 <= threshold <= 1:
        raise UserError(f"a threshold is a probability in 0..1, not {threshold}")
    return labels, scores


def check_ranking(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return the same as check_arrays, of scores that are any finite numbers, such as logits."""
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise UserError(f"labels {labels.shape} and scores {scores.shape} are not two equal lists")
    if len(labels) == 0:
        raise UserError("no images: a metric needs at least one label and score")
    if len(bad := labels[~np.isin(labels, (0, 1))]):
        raise UserError(f"a label is 0 (Real) or 1 (Fake), not {bad[0]}")
    if len(bad := scores[~np.isfinite(scores)]):
        raise UserError(f"a score is a finite number, not {bad[0]}: did the training diverge?")
    return labels.astype(np.int64), scores


def confusion(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5) -> np.ndarray:
    """Return image counts, shape (2, 2): rows true Real, Fake; columns predicted Real, Fake."""
    labels, scores = check_arrays(labels, scores, threshold)
    return sk.confusion_matrix(labels, (scores >= threshold).astype(int), labels=[0, 1])


def threshold_metrics(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5) -> dict:
    """Return the metrics that depend on the threshold, each in 0..1.

    precision is 0 if no image is classified as Fake (scikit-learn's zero_division=0); recall, f1
    and fake_called_real are nan without a Fake image, real_called_fake is nan without a Real one,
    and balanced_accuracy is nan if either is missing.
    """
    matrix = confusion(labels, scores, threshold).astype(np.float64)
    return {name: float(value) for name, value in confusion_rates(*matrix.ravel()).items()}


def confusion_rates(tn: ArrayLike, fp: ArrayLike, fn: ArrayLike, tp: ArrayLike) -> dict:
    """Return threshold_metrics of confusion counts, which are numbers or arrays."""
    real, fake = np.add(tn, fp), np.add(fn, tp)
    with np.errstate(invalid="ignore"):
        recall, false_positive_rate = np.divide(tp, fake), np.divide(fp, real)
        f1 = np.where(fake > 0, 2 * tp / np.maximum(2 * tp + fp + fn, 1), np.nan)
    return {
        "accuracy": (tp + tn) / (real + fake),
        "balanced_accuracy": (recall + 1 - false_positive_rate) / 2,
        "precision": tp / np.maximum(tp + fp, 1),
        "recall": recall,
        "f1": f1,
        "real_called_fake": false_positive_rate,
        "fake_called_real": 1 - recall,
    }


def positive_predictive_value(recall: float, false_positive_rate: float, base_rate: float) -> float:
    """Return the share of fakes, 0..1, among the images called Fake, by Bayes' rule.

    `base_rate` is the share of fakes among all images; all three are in 0..1. nan if no image is
    called Fake.
    """
    found, called = base_rate * recall, (1 - base_rate) * false_positive_rate
    return found / (found + called) if found + called else float("nan")


def ranking_metrics(labels: ArrayLike, scores: ArrayLike) -> dict:
    """Return the metrics that depend only on the order of the scores or logits, each in 0..1.

    auc: area under the ROC curve. average_precision: sum of precision times step in recall.
    eer: the rate at which false-positive and false-negative rates are equal, with linear
    interpolation of the ROC curve. recall_at_k_percent_fpr: highest recall of a threshold with a
    false-positive rate of at most k %. All are nan if a class is missing.
    """
    labels, scores = check_ranking(labels, scores)
    if len(np.unique(labels)) < 2:
        return dict.fromkeys(("auc", "average_precision", *ROC_METRICS), float("nan"))
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    auc = float(sk.roc_auc_score(labels, scores))
    # Of a perfect ranking the sum of precisions is 1 only up to rounding.
    average_precision = 1.0 if auc == 1 else float(sk.average_precision_score(labels, scores))
    return {
        "auc": auc,
        "average_precision": average_precision,
        **{name: rate.item() for name, rate in operating_points(fpr[None], tpr[None]).items()},
    }


def operating_points(fpr: np.ndarray, tpr: np.ndarray) -> dict:
    """Return ROC_METRICS of curves, shape (r, points), whose rates both rise from 0 to 1."""
    gap = 1 - tpr - fpr  # false-negative minus false-positive rate: falls from 1 to -1
    after = np.argmax(gap <= 0, axis=1)  # the first point past the crossing, never 0
    here, before = (np.arange(len(gap)), after), (np.arange(len(gap)), after - 1)
    share = gap[before] / (gap[before] - gap[here])
    eer = fpr[before] + share * (fpr[here] - fpr[before])
    # 1 of 100 Real images is 1 %, whatever the rounding of the quotient.
    recalls = [np.where(fpr <= limit + 1e-12, tpr, 0).max(axis=1) for limit in (0.01, 0.05)]
    return dict(zip(ROC_METRICS, (eer, *recalls), strict=True))


def reliability(labels: ArrayLike, scores: ArrayLike) -> pd.DataFrame:
    """Return a reliability diagram's data, a row per bin of equal width in the score.

    Columns: bin_centre, mean_score, fraction_fake (0..1, nan in an empty bin), count (images).
    """
    labels, scores = check_arrays(labels, scores)
    index = bin_of(scores)
    count = np.bincount(index, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean_score = np.bincount(index, scores, minlength=BINS) / count
        fraction_fake = np.bincount(index, labels, minlength=BINS) / count
    centre = (np.arange(BINS) + 0.5) / BINS
    columns = ["bin_centre", "mean_score", "fraction_fake", "count"]
    return pd.DataFrame(dict(zip(columns, (centre, mean_score, fraction_fake, count), strict=True)))


def bin_of(scores: np.ndarray) -> np.ndarray:
    """Return the bin of each score, 0 to BINS - 1; bins have equal width in 0..1."""
    return np.minimum((scores * BINS).astype(np.int64), BINS - 1)  # the last bin includes 1


def calibration_metrics(labels: ArrayLike, scores: ArrayLike) -> dict:
    """Return metrics of the scores as probabilities.

    expected_calibration_error, 0..1: mean over the images of |mean score - fraction of Fake| in
    the image's bin of equal width (Naeini et al. 2015). brier, 0..1: mean squared error of the
    score. log_loss, in nats: of scores clipped to 2e-16 from 0 and 1.
    """
    labels, scores = check_arrays(labels, scores)
    table = reliability(labels, scores).dropna()
    gaps = (table["mean_score"] - table["fraction_fake"]).abs()
    return {
        "expected_calibration_error": float(np.average(gaps, weights=table["count"])),
        "brier": float(np.mean((scores - labels) ** 2)),
        "log_loss": float(sk.log_loss(labels, scores, labels=[0, 1])),
    }


def all_metrics(
    labels: ArrayLike,
    scores: ArrayLike,
    threshold: float = 0.5,
    logits: ArrayLike | None = None,
) -> dict:
    """Return threshold_metrics, ranking_metrics, calibration_metrics and aurc in one flat dict."""
    return {
        **threshold_metrics(labels, scores, threshold),
        **ranking_metrics(labels, scores if logits is None else logits),
        **calibration_metrics(labels, scores),
        "aurc": aurc(labels, scores, logits),
    }


def confidence(scores: ArrayLike, logits: ArrayLike | None = None) -> ArrayLike:
    """Return the distance of logits from 0 or, without them, of scores from 0.5."""
    return np.abs(np.subtract(scores, 0.5) if logits is None else logits)


def risk_coverage(
    labels: ArrayLike, scores: ArrayLike, logits: ArrayLike | None = None
) -> pd.DataFrame:
    """Return the share of errors (risk) among the most confident share of images (coverage).

    At the threshold 0.5. A row per distinct `confidence`, both columns in 0..1 (Geifman & El-Yaniv
    2017).
    """
    labels, scores = check_arrays(labels, scores)
    sure = np.asarray(confidence(scores, logits))
    order = np.argsort(-sure, kind="stable")
    ends = np.flatnonzero(np.diff(sure[order], append=-1))
    risk = np.cumsum((scores >= 0.5)[order] != labels[order])[ends] / (ends + 1)
    return pd.DataFrame({"coverage": (ends + 1) / len(labels), "risk": risk})


def aurc(labels: ArrayLike, scores: ArrayLike, logits: ArrayLike | None = None) -> float:
    """Return the area under the risk-coverage curve, 0..1, smaller is better.

    It is the mean over the images of the risk at the lowest coverage that includes the image
    (Geifman, Uziel & El-Yaniv 2019); equally confident images are included together.
    """
    curve = risk_coverage(labels, scores, logits)
    return float(np.sum(np.diff(curve["coverage"], prepend=0) * curve["risk"]))


def choose_threshold(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the threshold in 0..1 of highest balanced accuracy; choose it on Validation.

    The candidates are the midpoints between neighbouring scores, 0 and 1; among equally good ones
    the closest to 0.5 is chosen.

    Raises:
        UserError: a class is missing.
    """
    labels, scores = check_arrays(labels, scores)
    real, fake = np.sort(scores[labels == 0]), np.sort(scores[labels == 1])
    if len(real) == 0 or len(fake) == 0:
        raise UserError("choosing a threshold needs Real and Fake images")
    edges = np.unique(np.concatenate([[0.0], scores, [1.0]]))
    cuts = (edges[1:] + edges[:-1]) / 2
    true_real, missed = np.searchsorted(real, cuts), np.searchsorted(fake, cuts)
    # Integers proportional to balanced accuracy, so that equally good candidates compare equal.
    quality = true_real * len(fake) + (len(fake) - missed) * len(real)
    best = cuts[quality == quality.max()]
    return float(best[np.argmin(np.abs(best - 0.5))])


def fit_temperature(labels: ArrayLike, logits: ArrayLike) -> float:
    """Return the temperature T in 0.05..20 that minimises the log loss of sigmoid(z / T).

    z are the logits. Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".

    Raises:
        UserError: as check_ranking.
    """
    labels, z = check_ranking(labels, logits)
    wrong_way = np.where(labels == 1, -z, z)

    def log_loss(log_temperature: float) -> float:
        return np.logaddexp(0, wrong_way / np.exp(log_temperature)).mean()

    bounds = (np.log(0.05), np.log(20))
    return float(np.exp(minimize_scalar(log_loss, bounds=bounds, method="bounded").x))
