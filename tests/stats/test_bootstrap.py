"""Bootstrap intervals against slow direct versions, and how often they cover the truth."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta, norm
from sklearn import metrics as sk

from dfd_utils.config import UserError
from dfd_utils.stats import bootstrap, metrics, paired_tests
from tests.stats.cases import CASES, EXACT, saturated, two_models


def expected_interval(metric: str, value: float, resamples: pd.Series, predicted: int):
    """Return the interval by its definition: value ± 1.96 standard errors of the log odds."""
    low, high = np.percentile(resamples, [2.5, 97.5])
    if metric == "expected_calibration_error":
        return max(0, 2 * value - high), max(0, 2 * value - low)
    error = 1.959963984540054 * math.sqrt(((resamples - resamples.mean()) ** 2).mean())
    if metric == "log_loss":
        return value * math.exp(-error / value), value * math.exp(error / value)
    if value in (0, 1):  # Clopper and Pearson's, of 48 Fake images or of those predicted Fake
        trials = predicted if metric == "precision" else 48
        end = beta.ppf(0.025, trials, 1)
        return (min(low, end), 1) if value else (0, max(high, 1 - end))
    odds, slope = value / (1 - value), 1 / (value * (1 - value))
    ends = [odds * math.exp(sign * error * slope) for sign in (-1, 1)]
    return tuple(o / (1 + o) for o in ends)


@pytest.mark.parametrize("step", [None, 0.1])
def test_bootstrap_equals_a_plain_loop_over_the_same_resamples(step, monkeypatch):
    labels, a, b = two_models(120, step)
    monkeypatch.setattr(bootstrap, "CHUNK", 120 * 7)  # several chunks, the last one not full
    result = bootstrap.bootstrap(
        labels, {"a": a, "b": b}, 40, seed=3, threshold={"a": 0.4, "b": 0.6}
    )

    rng = np.random.default_rng(3)
    counts = np.vstack([bootstrap.resample_counts(labels, rows, rng) for rows in [7] * 5 + [5]])
    loop = {"a": [], "b": []}
    for row in counts.astype(int):
        drawn = np.repeat(np.arange(120), row)
        for name, scores, cut in (("a", a, 0.4), ("b", b, 0.6)):
            loop[name].append(metrics.all_metrics(labels[drawn], scores[drawn], cut))
    loop = {name: pd.DataFrame(rows) for name, rows in loop.items()}
    for name, scores, cut in (("a", a, 0.4), ("b", b, 0.6)):
        pd.testing.assert_frame_equal(result.samples[name], loop[name], rtol=0, atol=1e-9)
        table = result.intervals.loc[name]
        assert table["value"].to_dict() == metrics.all_metrics(labels, scores, cut)
        for metric in loop[name]:
            value, predicted = table.loc[metric, "value"], (scores >= cut).sum()
            expected = expected_interval(metric, value, loop[name][metric], predicted)
            assert table.loc[metric, ["low", "high"]].tolist() == pytest.approx(expected, abs=1e-9)
    paired = result.difference("a", "b")
    assert np.allclose(paired["low"], (loop["a"] - loop["b"]).quantile(0.025), rtol=0, atol=1e-9)
    assert np.allclose(paired["high"], (loop["a"] - loop["b"]).quantile(0.975), rtol=0, atol=1e-9)
    auc = sk.roc_auc_score(labels, a) - sk.roc_auc_score(labels, b)
    assert paired.loc["auc", "difference"] == pytest.approx(auc, abs=1e-9)


def test_resamples_are_uniform_and_keep_the_class_sizes():
    labels = np.array([1, 0, 0, 1, 0, 0, 0])
    counts = bootstrap.resample_counts(labels, 20_000, np.random.default_rng(0))
    assert (counts[:, labels == 1].sum(axis=1) == 2).all()
    assert (counts[:, labels == 0].sum(axis=1) == 5).all()
    assert np.allclose(counts.mean(axis=0), 1, atol=0.03)
    assert np.allclose(counts[:, labels == 0].var(axis=0), 0.8, atol=0.05)  # binomial(5, 1/5)


def test_the_bootstrap_is_seeded_and_paired():
    labels, a, _ = two_models()
    first, again, other = (bootstrap.bootstrap(labels, {"a": a, "b": a}, 50, s) for s in (1, 1, 2))
    pd.testing.assert_frame_equal(first.intervals, again.intervals)
    assert not first.intervals.equals(other.intervals)
    assert (first.difference("a", "b") == 0).all(axis=None)


def test_intervals_of_a_perfect_model_have_a_width():
    labels, scores = np.repeat([0, 1], [30, 20]), np.linspace(0, 1, 50)
    table = bootstrap.bootstrap(labels, {"a": scores}, 50, threshold=0.75).intervals.loc["a"]
    assert table.loc["auc"].tolist() == pytest.approx([1, 0.025 ** (1 / 20), 1])
    # 13 of the 20 Fake images are predicted as Fake, and no Real one is.
    assert table.loc["precision"].tolist() == pytest.approx([1, 0.025 ** (1 / 13), 1])
    false_positives = [0, 0, 1 - 0.025 ** (1 / 20)]
    assert table.loc["real_called_fake"].tolist() == pytest.approx(false_positives)


def test_intervals_of_constant_scores_have_a_width():
    """Clopper and Pearson's: of 30 of 50 images, and of 10 of 20 pairs of a Real and a Fake."""
    labels = np.repeat([0, 1], [30, 20])
    table = bootstrap.bootstrap(labels, {"a": np.full(50, 0.4)}, 50).intervals.loc["a"]
    assert ((table["low"] < table["high"]) | table["value"].isin([0, 1])).all(), table
    for metric, hits, trials in (("accuracy", 30, 50), ("auc", 10, 20), ("eer", 10, 20)):
        ends = beta.ppf([0.025, 0.975], [hits, hits + 1], [trials - hits + 1, trials - hits])
        assert table.loc[metric].tolist() == pytest.approx([hits / trials, *ends])
    assert table.loc["recall"].tolist() == pytest.approx([0, 0, 1 - 0.025 ** (1 / 20)])
    # An odd number of pairs, of which half a pair is in order.
    (interval,) = (
        bootstrap.bootstrap([0, 1], {"a": [0.5, 0.5]}, 5).intervals.loc[[("a", "auc")]].values
    )
    assert interval[0] == 0.5
    assert 0 < interval[1] < 0.1 and 0.9 < interval[2] < 1


def test_differences_of_constant_scores_have_a_width():
    labels, models = np.repeat([0, 1], 15), {"a": np.full(30, 0.9), "b": np.full(30, 0.1)}
    result = bootstrap.bootstrap(labels, models | {"same": models["a"]}, 50)
    difference = result.difference("a", "b")
    assert (difference["low"] < difference["high"]).all(), difference
    _, low, high = result.intervals.loc[("a", "accuracy")]  # as of b
    width = math.hypot(0.5 - low, high - 0.5)
    assert difference.loc["accuracy"].tolist() == pytest.approx([0, -width, width])
    assert (result.difference("a", "same") == 0).all(axis=None)  # that is certain


def test_logits_rank_the_images_of_the_bootstrap():
    labels, logits, scores = saturated()
    models = {"rounded": scores, "exact": scores}
    result = bootstrap.bootstrap(labels, models, 30, logits_by_model={"exact": logits})
    counts = bootstrap.resample_counts(labels, 30, np.random.default_rng(0)).astype(int)
    for model, z in (("rounded", scores), ("exact", logits)):
        aucs = [sk.roc_auc_score(np.repeat(labels, row), np.repeat(z, row)) for row in counts]
        assert result.samples[model]["auc"].to_numpy() == pytest.approx(aucs, **EXACT)
    drawn = np.repeat(np.arange(len(labels)), counts[0])
    expected = metrics.all_metrics(labels[drawn], scores[drawn], logits=logits[drawn])
    assert result.samples["exact"].iloc[0].to_dict() == pytest.approx(expected, **EXACT)


def test_the_bootstrap_needs_both_classes_a_model_and_a_resample():
    with pytest.raises(UserError, match="Real and Fake"):
        bootstrap.bootstrap([1, 1], {"a": [0.1, 0.2]}, 5)
    for models, resamples in (({}, 5), ({"a": [0.1, 0.2]}, 0)):
        with pytest.raises(UserError, match="at least one"):
            bootstrap.bootstrap([0, 1], models, resamples)


def test_a_perfect_ranking_has_an_average_precision_of_exactly_one():
    for size in (*range(2, 80), 500):
        labels, scores = np.repeat([0, 1], size), np.linspace(0, 1, 2 * size)
        table = bootstrap.bootstrap(labels, {"a": scores}, 20).intervals.loc["a"]
        value, low, high = table.loc["average_precision"]
        assert value == high == 1.0
        assert 0 < low < 1


@pytest.mark.parametrize("case", CASES)
def test_weighted_metrics_agree_with_the_metrics_of_the_resampled_images(case):
    labels, scores = CASES[case]
    rng = np.random.default_rng(5)
    drawn = rng.integers(len(labels), size=(12, len(labels)))
    drawn = np.array([row for row in drawn if len(set(labels[row])) == 2])
    weights = np.array([np.bincount(row, minlength=len(labels)) for row in drawn])
    result = bootstrap.weighted_metrics(labels, scores, weights, 0.4)
    for number, row in enumerate(drawn):
        expected = metrics.all_metrics(labels[row], scores[row], 0.4)
        assert {k: v[number] for k, v in result.items()} == pytest.approx(expected, **EXACT)
    with pytest.raises(UserError, match="Real and Fake"):
        bootstrap.weighted_metrics(labels, scores, labels[None])


def test_intervals_cover_the_truth_and_tests_rarely_reject_a_true_null():
    """Two models of equal AUC (0.8) and accuracy, on 200 sets of 200 images."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    distance = math.sqrt(2) * norm.ppf(0.8)  # between the classes, in standard deviations
    truth = {"auc": 0.8, "accuracy": norm.cdf(distance / 2), "f1": norm.cdf(distance / 2)}
    covered, rejected = [], []
    for seed in range(200):
        noise = (rng.normal(size=200) + rng.normal(size=(2, 200))) / math.sqrt(2)
        a, b = norm.cdf(noise + distance * (labels - 0.5))
        result = bootstrap.bootstrap(labels, {"a": a, "b": b}, 200, seed)
        intervals, difference = result.intervals.loc["a"], result.difference("a", "b")
        _, low, high = paired_tests.delong_interval(labels, a)
        covered.append({"delong": low <= truth["auc"] <= high})
        rejected.append(
            {
                "delong": paired_tests.delong(labels, a, b)["p"] < 0.05,
                "mcnemar": paired_tests.mcnemar(labels, a, b)["p"] < 0.05,
            }
        )
        for name, value in truth.items():
            covered[-1][name] = intervals.low[name] <= value <= intervals.high[name]
            rejected[-1][name] = not difference.low[name] <= 0 <= difference.high[name]
    covered, rejected = pd.DataFrame(covered).mean(), pd.DataFrame(rejected).mean()
    assert covered.between(0.90, 0.99).all(), covered
    assert rejected.pop("mcnemar") <= 0.10  # an exact test rejects less often than its level
    assert rejected.between(0.01, 0.10).all(), rejected
