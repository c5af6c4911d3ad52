"""Paired comparison of models: DeLong, McNemar, bootstrap differences, agreement.

Labels, scores and logits are those of `stats.metrics`. All intervals are 95 % intervals over the
choice of test images; they do not include the randomness of training.
"""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import expit, logit
from scipy.stats import binomtest, norm, rankdata

from dfd_utils.config import CLASSES, UserError
from dfd_utils.stats.bootstrap import NO_SPREAD, Z_95, bootstrap, exact_interval
from dfd_utils.stats.metrics import check_arrays, check_ranking


def delong(labels: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike) -> dict:
    """Return auc_a, auc_b, their difference a - b with low and high, z and two-sided p.

    Paired test of two AUCs on the same images (DeLong et al. 1988), of scores or logits, with the
    mid-rank algorithm of Sun & Xu 2014. If the variance is zero, as for equal scores, p is 1 for
    equal AUCs, else 0.

    Raises:
        UserError: as metrics.check_ranking; fewer than two images of a class.
    """
    auc_a, fake_a, real_a = _auc_components(labels, scores_a)
    auc_b, fake_b, real_b = _auc_components(labels, scores_b)
    difference, error = auc_a - auc_b, _standard_error(fake_a - fake_b, real_a - real_b)
    with np.errstate(divide="ignore"):  # the variance is zero for a perfect and a worst model
        z = float(np.divide(difference, error)) if difference else 0.0
    low, high = difference - Z_95 * error, difference + Z_95 * error
    p = float(2 * norm.sf(abs(z)))
    return dict(auc_a=auc_a, auc_b=auc_b, difference=difference, low=low, high=high, z=z, p=p)


def delong_interval(labels: ArrayLike, scores: ArrayLike) -> tuple[float, float, float]:
    """Return (auc, low, high), each in 0..1, by DeLong's variance; raises as delong.

    Computed on the logit scale (Pepe 2003), because the plain interval covers the truth too rarely
    near 1. Where the variance is zero (a perfect ranking, the worst one, or constant scores), it is
    the exact binomial interval (Clopper & Pearson 1934) of the number of disjoint pairs of a Real
    and a Fake image.
    """
    auc, fake, real = _auc_components(labels, scores)
    error = _standard_error(fake, real)
    if error < NO_SPREAD:
        return auc, *exact_interval(auc, min(len(fake), len(real)))
    half_width = Z_95 * error / (auc * (1 - auc))
    return auc, float(expit(logit(auc) - half_width)), float(expit(logit(auc) + half_width))


def _auc_components(labels: ArrayLike, scores: ArrayLike) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the AUC and its components per Fake and per Real (Sun & Xu 2014, equation 5)."""
    labels, scores = check_ranking(labels, scores)
    fake, real = scores[labels == 1], scores[labels == 0]
    if min(len(fake), len(real)) < 2:
        raise UserError("DeLong's variance needs at least two images of each class")
    rank = rankdata(np.concatenate([fake, real]))
    fake_part = (rank[: len(fake)] - rankdata(fake)) / len(real)
    real_part = 1 - (rank[len(fake) :] - rankdata(real)) / len(fake)
    return float(fake_part.mean()), fake_part, real_part


def _standard_error(*parts: np.ndarray) -> float:
    return float(np.sqrt(sum(part.var(ddof=1) / len(part) for part in parts)))


def agreement(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    threshold_a: float = 0.5,
    threshold_b: float = 0.5,
) -> pd.DataFrame:
    """Count the images that both models, one or none classify correctly, in all and per class.

    Index both_right, only_a, only_b, both_wrong; columns images, share, real_images, real_share,
    fake_images, fake_share (shares in 0..1, nan for a class without images).
    """
    right = []
    for scores, threshold in ((scores_a, threshold_a), (scores_b, threshold_b)):
        true, scores = check_arrays(labels, scores, threshold)
        right.append((scores >= threshold) == true)
    outcome = 3 - 2 * right[0] - right[1]  # the row: 0 both right, 1 only a, 2 only b, 3 none
    table = pd.DataFrame(index=["both_right", "only_a", "only_b", "both_wrong"])
    for prefix, members in (("", true >= 0), ("real_", true == 0), ("fake_", true == 1)):
        table[f"{prefix}images"] = np.bincount(outcome[members], minlength=4)
        table[f"{prefix}share"] = table[f"{prefix}images"] / (members.sum() or np.nan)
    return table


def mcnemar(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    threshold_a: float = 0.5,
    threshold_b: float = 0.5,
) -> dict:
    """Return b (images that only model a classifies correctly), c (only b) and exact p of b = c.

    McNemar's test (1947), two-sided, as a binomial test of b in b + c; p is 1 for b + c = 0.
    """
    images = agreement(labels, scores_a, scores_b, threshold_a, threshold_b)["images"]
    b, c = int(images["only_a"]), int(images["only_b"])
    return {"b": b, "c": c, "p": float(binomtest(b, b + c).pvalue) if b + c else 1.0}


def compare_models(
    frame_a: pd.DataFrame,
    frame_b: pd.DataFrame,
    name_a: str,
    name_b: str,
    threshold_a: float = 0.5,
    threshold_b: float = 0.5,
    resamples: int = 2000,
    seed: int = 0,
) -> dict:
    """Compare two models on the same images; return a dict for JSON.

    The frames (path, label, score; logit where it is known) are aligned by path. Differences are
    a - b. Intervals are the bootstrap's, except that of auc_difference, which is DeLong's.

    Raises:
        UserError: equal names; different images or labels; as delong.
    """
    if name_a == name_b:
        raise UserError(f"both models are named '{name_a}': give them different names")
    both = frame_a.set_index("path").add_suffix("_a")
    both = both.merge(
        frame_b.set_index("path").add_suffix("_b"), "outer", on="path", validate="one_to_one",
        indicator="side",
    )  # fmt: skip
    if len(alone := both.index[both["side"] != "both"]):
        raise UserError(
            f"{name_a} and {name_b} have different images: {len(alone)} are in one of them only, "
            f"such as {alone[0]}"
        )
    if differing := int((both["label_a"] != both["label_b"]).sum()):
        raise UserError(f"{name_a} and {name_b} label {differing} images differently")

    labels, scores_a, scores_b = (both[name] for name in ("label_a", "score_a", "score_b"))
    scores = {name_a: scores_a, name_b: scores_b}
    columns = {name_a: "logit_a", name_b: "logit_b"}
    logits = {name: both[column] for name, column in columns.items() if column in both}
    thresholds = {name_a: threshold_a, name_b: threshold_b}
    resampled = bootstrap(labels, scores, resamples, seed, thresholds, logits)
    ranked = scores | logits
    test = delong(labels, ranked[name_a], ranked[name_b])
    auc_difference = {"value": test["difference"]} | {
        key: test[key] for key in ("low", "high", "p")
    }

    def entry(row: pd.Series) -> dict:
        return dict(zip(("value", "low", "high"), row.tolist(), strict=True))

    names = ("accuracy", "f1", "auc")
    models = {m: {k: entry(resampled.intervals.loc[(m, k)]) for k in names} for m in scores}
    difference = resampled.difference(name_a, name_b)
    pair = {
        "auc_difference": auc_difference,
        "auc_difference_bootstrap": entry(difference.loc["auc"]),
        "accuracy_difference": entry(difference.loc["accuracy"]),
        "f1_difference": entry(difference.loc["f1"]),
        "mcnemar": mcnemar(labels, scores_a, scores_b, threshold_a, threshold_b),
    }
    return {
        "positive_class": CLASSES[1],
        "images": len(labels),
        "thresholds": thresholds,
        "models": models,
        "pair": pair,
    }
