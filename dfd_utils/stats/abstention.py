"""When not to answer: a band of scores around the threshold, and what other answers are worth.

Selective classification (Geifman & El-Yaniv 2017, https://arxiv.org/abs/1705.08500). Labels are
0 = Real and 1 = Fake; a score below the band is answered Real, one at or above its upper end Fake.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom, binomtest

from dfd_utils.stats.metrics import check_arrays

LIMIT = 0.05  # of wrong answers, and of Real images called Fake
_CANDIDATES = 200  # ends of the band that are tried on each side of the threshold


def choose_band(
    labels: ArrayLike, scores: ArrayLike, threshold: float, limit: float = LIMIT
) -> tuple[float, float] | None:
    """Return the ends of the band that leaves most images answered; None if no band will do.

    Outside it, the upper ends of two exact 95 % intervals (Clopper & Pearson 1934) are at most
    `limit`: of the share of wrong answers, and of the share of Real images called Fake. The band
    contains `threshold`. Choose it on Validation.
    """
    labels, scores = check_arrays(labels, scores, threshold)
    real, fake = np.sort(scores[labels == 0]), np.sort(scores[labels == 1])
    edges = np.unique(scores)
    cuts = (edges[1:] + edges[:-1]) / 2
    lows = _spread(np.append(cuts[cuts <= threshold], threshold))[:, None]
    highs = _spread(np.insert(cuts[cuts >= threshold], 0, threshold))[None]
    real_below, fake_below = np.searchsorted(real, lows), np.searchsorted(fake, lows)
    real_above = len(real) - np.searchsorted(real, highs)
    fake_above = len(fake) - np.searchsorted(fake, highs)
    answered = real_below + fake_below + real_above + fake_above
    wrong = fake_below + real_above
    # The interval's upper end is at most the limit if so few errors are this unlikely at the limit.
    good = binom.cdf(wrong, answered, limit) <= 0.025
    good &= binom.cdf(real_above, len(real), limit) <= 0.025
    if not good.any():
        return None
    # Of bands with as many answers, the one with fewer errors.
    best = np.argmax(np.where(good, answered - wrong / (len(labels) + 1), -1))
    low, high = np.unravel_index(best, good.shape)
    return float(lows[low, 0]), float(highs[0, high])


def _spread(values: np.ndarray) -> np.ndarray:
    """Return at most `_CANDIDATES` of sorted values, evenly spaced, with the first and last."""
    chosen = np.linspace(0, len(values) - 1, min(len(values), _CANDIDATES)).round().astype(int)
    return values[chosen]


def answer_rates(labels: ArrayLike, answers: ArrayLike) -> dict:
    """Return what answers are worth, each rate as (value, low, high), with exact 95 % intervals.

    Args:
        labels: 0 or 1.
        answers: 0 (Real), 1 (Fake) or -1 (unsure).

    Returns:
        answered: share of the images; wrong: share of the answers that are; real_called_fake and
        fake_called_real: share of the images of that class. nan where there is none to count.
    """
    labels, answers = np.asarray(labels), np.asarray(answers)
    given = answers >= 0
    wrong = given & (answers != labels)
    return {
        "answered": _rate(given),
        "wrong": _rate(wrong[given]),
        "real_called_fake": _rate(wrong[labels == 0]),
        "fake_called_real": _rate(wrong[labels == 1]),
    }


def _rate(events: np.ndarray) -> tuple[float, float, float]:
    if not len(events):
        return (float("nan"),) * 3
    interval = binomtest(int(events.sum()), len(events)).proportion_ci(0.95, "exact")
    return float(events.mean()), interval.low, interval.high
