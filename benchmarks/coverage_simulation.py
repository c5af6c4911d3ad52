"""How often 95 % intervals contain the true value, and how often paired tests reject a true null.

    python benchmarks/coverage_simulation.py [--test-sets N]

Simulates N test sets (default: 1,000) of 500 images, with true AUCs of 0.8 and 0.97; a few minutes.
"""

import argparse

import numpy as np
import pandas as pd
from scipy.stats import norm

from dfd_utils.stats.bootstrap import bootstrap
from dfd_utils.stats.paired_tests import delong, delong_interval, mcnemar


def coverage_simulation(
    test_sets: int = 1000, images: int = 500, auc: float = 0.8, resamples: int = 1000, seed: int = 0
) -> dict:
    """Return shares of the test sets, each 0..1; those named after a metric are the bootstrap's.

    Half of the images are Fake. Two models see the same normal signal with noise of their own
    (correlation 0.5), so that their true AUCs and accuracies are equal: the null is true.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % 2
    distance = np.sqrt(2) * norm.ppf(auc)  # between the classes, in standard deviations
    hit = float(norm.cdf(distance / 2))  # recall of either class at the threshold 0.5
    truth = {"auc": auc, "accuracy": hit, "f1": hit}
    rows = []
    for test_set in range(test_sets):
        shared = rng.normal(size=images)
        signals = (shared + rng.normal(size=(2, images))) / np.sqrt(2) + distance * (labels - 0.5)
        a, b = norm.cdf(signals)
        _, low, high = delong_interval(labels, a)
        resampled = bootstrap(labels, {"a": a, "b": b}, resamples, seed=test_set)
        difference = resampled.difference("a", "b")
        rows.append(
            {
                "coverage_delong": low <= auc <= high,
                **{f"coverage_{name}": _contains(resampled.intervals.loc[("a", name)], true)
                   for name, true in truth.items()},
                "rejection_delong": delong(labels, a, b)["p"] < 0.05,
                **{f"rejection_{name}": not _contains(difference.loc[name], 0) for name in truth},
                "rejection_mcnemar": mcnemar(labels, a, b)["p"] < 0.05,
            }
        )  # fmt: skip
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _contains(interval: pd.Series, true: float) -> bool:
    return bool(interval["low"] <= true <= interval["high"])


def main() -> None:
    """Print the shares for both AUCs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--test-sets", type=int, default=1000, metavar="N")
    options = parser.parse_args()
    for auc in (0.8, 0.97):
        shares = coverage_simulation(options.test_sets, auc=auc)
        print(f"AUC {auc}:", ", ".join(f"{name} {share:.1%}" for name, share in shares.items()))


if __name__ == "__main__":
    main()
