"""Labels and scores that the tests of metrics and of resampling share."""

import numpy as np
from scipy.special import expit
from scipy.stats import norm

EXACT = {"rel": 0, "abs": 1e-9}  # tolerances of pytest.approx


def _make_cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(6)
    labels = rng.integers(0, 2, 300)
    scores = expit(rng.normal(size=300) * 2 + 2 * labels - 1)
    return {
        "random": (labels, scores),
        "ties": (labels, scores.round(1)),
        "float32": (labels, scores.astype(np.float32)),
        "few fakes": (np.r_[np.zeros(290, int), np.ones(10, int)], scores),
        "worse than chance": (1 - labels, scores),
        "all the same score": (labels, np.full(300, 0.5)),
        "only 0 and 1": (labels, scores.round()),
        "perfect": (labels, labels * 0.5 + 0.25),
        "two images": (np.array([0, 1]), np.array([0.2, 0.1])),
    }


CASES = _make_cases()


def two_models(n: int = 300, step: float | None = None, seed: int = 0) -> tuple:
    """Return labels and the scores of two models of the same images."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) < 0.4 * n).astype(int)
    seen = labels + rng.normal(size=n)
    scores = [norm.cdf(seen + rng.normal(size=n) * noise - 0.5) for noise in (0.4, 0.8)]
    if step:  # coarse scores tie often
        scores = [np.round(s / step) * step for s in scores]
    return labels, *scores


def saturated() -> tuple:
    """Return labels, logits and scores at a temperature of 0.05, many of them exactly 1."""
    rng = np.random.default_rng(1)
    labels = np.arange(400) % 2
    logits = rng.normal(size=400) * 1.5 + labels + 1
    return labels, logits, expit(logits / 0.05)
