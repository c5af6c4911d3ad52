"""Every metric against an independent implementation, on random and on degenerate inputs."""

import math

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as tm
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import rankdata
from sklearn import metrics as sk

from dfd_utils.config import UserError
from dfd_utils.stats import metrics
from tests.stats.cases import CASES, EXACT, saturated


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_threshold_metrics_agree_with_scikit_learn(case, threshold):
    labels, scores = CASES[case]
    predicted = [int(score >= threshold) for score in scores.astype(float)]
    result = metrics.threshold_metrics(labels, scores, threshold)
    assert result == pytest.approx(
        {
            "accuracy": sk.accuracy_score(labels, predicted),
            "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
            "precision": sk.precision_score(labels, predicted, zero_division=0),
            "recall": sk.recall_score(labels, predicted),
            "f1": sk.f1_score(labels, predicted),
            "real_called_fake": 1 - sk.recall_score(labels, predicted, pos_label=0),
            "fake_called_real": 1 - sk.recall_score(labels, predicted),
        },
        **EXACT,
    )
    pairs = list(zip(labels, predicted, strict=True))
    counts = [[pairs.count((true, call)) for call in (0, 1)] for true in (0, 1)]
    assert metrics.confusion(labels, scores, threshold).tolist() == counts


@pytest.mark.parametrize("case", CASES)
def test_auc_and_average_precision_agree_with_direct_sums(case):
    labels, scores = CASES[case]
    fake, real = scores[labels == 1], scores[labels == 0]
    wins = (fake[:, None] > real).mean() + (fake[:, None] == real).mean() / 2
    precision_at = [labels[scores >= score].mean() for score in np.unique(scores)[::-1]]
    recall_at = [(fake >= score).mean() for score in np.unique(scores)[::-1]]
    average = sum(np.diff([0, *recall_at]) * precision_at)
    result = metrics.ranking_metrics(labels, scores)
    assert result["auc"] == pytest.approx(wins, **EXACT)
    assert result["average_precision"] == pytest.approx(average, **EXACT)


@pytest.mark.parametrize("case", CASES)
def test_operating_points_agree_with_a_search_along_the_roc_curve(case):
    labels, scores = CASES[case]
    fake, real = scores[labels == 1], scores[labels == 0]
    cuts = [2.0, *np.unique(scores)[::-1]]
    points = [(float((real >= cut).mean()), float((fake >= cut).mean())) for cut in cuts]
    result = metrics.ranking_metrics(labels, scores)
    for percent in (1, 5):
        best = max(tpr for fpr, tpr in points if fpr <= percent / 100)
        assert result[f"recall_at_{percent}_percent_fpr"] == pytest.approx(best, **EXACT)

    def point(t: float) -> np.ndarray:  # on the piecewise linear curve
        return np.array([np.interp(t, range(len(points)), column) for column in zip(*points)])  # noqa: B905

    crossing = brentq(lambda t: 1 - point(t).sum(), 0, len(points) - 1, xtol=1e-14)
    assert result["eer"] == pytest.approx(point(crossing)[0], **EXACT)


def test_a_false_positive_rate_of_exactly_one_percent_is_within_the_limit():
    labels = np.r_[np.zeros(100, int), np.ones(4, int)]
    scores = np.r_[np.linspace(0, 0.5, 99), 0.9, 0.95, 0.8, 0.7, 0.1]
    result = metrics.ranking_metrics(labels, scores)
    assert result["recall_at_1_percent_fpr"] == pytest.approx(0.75, **EXACT)


def test_thresholds_within_a_straight_segment_of_the_curve_count():
    labels = np.r_[np.arange(20) % 2, np.zeros(190, int)]  # ten pairs of a Real and a Fake, tied
    scores = np.r_[np.repeat(np.linspace(0.9, 0.5, 10), 2), np.full(190, 0.1)]
    result = metrics.ranking_metrics(labels, scores)
    assert result["recall_at_1_percent_fpr"] == pytest.approx(0.2, **EXACT)


@pytest.mark.parametrize("case", CASES)
def test_calibration_metrics_agree_with_torchmetrics_and_scikit_learn(case):
    labels, scores = CASES[case]
    scores = scores.astype(float)
    result = metrics.calibration_metrics(labels, scores)
    # torchmetrics computes in single precision; its bins are closed on the other side.
    off_edge = torch.tensor(np.where(scores < 1, scores + 1e-6, scores))
    other = tm.binary_calibration_error(off_edge, torch.tensor(labels), n_bins=15)
    assert result["expected_calibration_error"] == pytest.approx(float(other), abs=1e-5)
    direct = sum(
        abs(sum(scores[inside] - labels[inside]))
        for k in range(15)
        if (inside := (scores * 15 >= k) & ((scores * 15 < k + 1) | (k == 14))).any()
    )
    assert result["expected_calibration_error"] == pytest.approx(direct / len(scores), **EXACT)
    assert result["brier"] == pytest.approx(sk.brier_score_loss(labels, scores), **EXACT)
    clipped = np.clip(scores, 2.0**-52, 1 - 2.0**-52)
    own = -np.mean([math.log(s if y else 1 - s) for y, s in zip(labels, clipped, strict=True)])
    assert result["log_loss"] == pytest.approx(own, abs=1e-9)


def test_reliability_counts_every_image_in_its_bin():
    table = metrics.reliability([0, 1, 1, 0, 1], [0.0, 0.06, 1.0, 0.94, 0.5])
    assert table["count"].tolist() == [2, *[0] * 6, 1, *[0] * 6, 2]
    assert table["bin_centre"].tolist() == pytest.approx([(i + 0.5) / 15 for i in range(15)])
    assert table["mean_score"][[0, 7, 14]].tolist() == pytest.approx([0.03, 0.5, 0.97])
    assert table["fraction_fake"][[0, 7, 14]].tolist() == [0.5, 1, 0.5]
    assert table[["mean_score", "fraction_fake"]][1:7].isna().all(axis=None)


@pytest.mark.parametrize("label", [0, 1])
def test_metrics_of_both_classes_are_nan_for_one_image(label):
    result = metrics.all_metrics([label], [0.75])
    undefined = {"balanced_accuracy", "auc", "average_precision", "eer"}
    undefined |= {"recall_at_1_percent_fpr", "recall_at_5_percent_fpr"}
    undefined |= {"real_called_fake"} if label else {"recall", "f1", "fake_called_real"}
    assert {name for name, value in result.items() if math.isnan(value)} == undefined
    assert result["accuracy"] == result["precision"] == label
    assert result["expected_calibration_error"] == pytest.approx(abs(0.75 - label))
    assert all(type(value) is float for value in result.values())


def test_risk_is_the_error_rate_of_the_most_confident_images():
    labels, scores = CASES["random"]
    table = metrics.risk_coverage(labels, scores)
    wrong, confidence = (scores >= 0.5) != labels, abs(scores - 0.5)
    for row in (0, 10, 150, 299):
        kept = confidence >= np.sort(confidence)[::-1][row]
        assert table["coverage"][row] == pytest.approx(kept.mean())
        assert table["risk"][row] == pytest.approx(wrong[kept].mean())
    assert table["risk"].iloc[-1] == pytest.approx(wrong.mean())
    assert metrics.risk_coverage([0, 1, 1], [0.0, 1.0, 0.5])["coverage"][0] == 2 / 3


@pytest.mark.parametrize("case", CASES)
def test_area_under_risk_coverage_agrees_with_a_direct_mean(case):
    labels, scores = CASES[case]
    scores = scores.astype(float)
    wrong, confidence = (scores >= 0.5) != labels, abs(scores - 0.5)
    risks = [wrong[confidence >= own].mean() for own in confidence]
    assert metrics.aurc(labels, scores) == pytest.approx(np.mean(risks), **EXACT)


def test_logits_rank_images_whose_scores_are_rounded_to_one():
    labels, logits, scores = saturated()
    assert (scores == 1).sum() > 50
    rounded, exact = (metrics.all_metrics(labels, scores, logits=z) for z in (None, logits))
    ranks = rankdata(logits)  # other scores in the same order, without ties
    expected = metrics.ranking_metrics(labels, ranks / len(ranks))
    assert {name: exact[name] for name in expected} == pytest.approx(expected, **EXACT)
    assert exact["auc"] == pytest.approx(sk.roc_auc_score(labels, logits), **EXACT)
    assert exact["auc"] > rounded["auc"]
    assert exact["recall_at_5_percent_fpr"] > rounded["recall_at_5_percent_fpr"] == 0
    wrong = (scores >= 0.5) != labels
    risks = [wrong[abs(logits) >= own].mean() for own in abs(logits)]
    assert exact["aurc"] == pytest.approx(np.mean(risks), **EXACT)
    same = set(exact) - {*expected, "aurc"}  # those of probabilities
    assert {name: exact[name] for name in same} == {name: rounded[name] for name in same}


@pytest.mark.parametrize("case", CASES)
def test_no_threshold_is_better_than_the_chosen_one(case):
    labels, scores = CASES[case]
    chosen = metrics.choose_threshold(labels, scores)
    best = sk.balanced_accuracy_score(labels, scores >= chosen)
    for cut in np.linspace(0, 1, 101):
        other = sk.balanced_accuracy_score(labels, scores >= cut)
        assert other <= best + 1e-12


@pytest.mark.parametrize(
    ("labels", "scores", "threshold"),
    [
        ([0, 1], [0.2, 0.4], 0.3),
        ([0, 1, 0, 1], [0.1, 0.2, 0.6, 0.9], 0.75),  # as good as 0.15, but closer to 0.5
        ([0, 1], [0.7, 0.7], 0.35),  # all images Fake or all Real: no threshold is better
    ],
)
def test_the_threshold_is_a_midpoint_close_to_one_half(labels, scores, threshold):
    assert metrics.choose_threshold(labels, scores) == pytest.approx(threshold)


@pytest.mark.parametrize("true_temperature", [0.4, 1.0, 3.0])
def test_the_temperature_is_recovered_and_minimises_the_loss(true_temperature):
    rng = np.random.default_rng(0)
    z = rng.normal(size=20_000) * 2
    labels = (rng.random(20_000) < expit(z)).astype(int)
    result = metrics.fit_temperature(labels, z * true_temperature)
    assert result == pytest.approx(true_temperature, rel=0.05)

    def loss(temperature: float) -> float:
        return sk.log_loss(labels, expit(z * true_temperature / temperature))

    assert all(loss(result) <= loss(result * factor) + 1e-9 for factor in (0.9, 0.99, 1.01, 1.1))


def test_the_temperature_has_bounds_and_needs_finite_logits():
    assert 0.05 <= metrics.fit_temperature([0, 1], [-9.0, 9.0]) < 0.051
    assert 19.9 < metrics.fit_temperature([1, 0], [-9.0, 9.0]) <= 20
    with pytest.raises(UserError, match="finite number, not nan"):
        metrics.fit_temperature([0, 1], [math.nan, 1.0])


FUNCTIONS = (
    metrics.threshold_metrics,
    metrics.calibration_metrics,
    metrics.all_metrics,
    metrics.confusion,
    metrics.reliability,
    metrics.choose_threshold,
    metrics.risk_coverage,
)
BAD = (
    ([0, 1], [0.5], "two equal lists"),
    ([], [], "no images"),
    ([0, 2], [0.5, 0.5], "not 2"),
    ([0, math.nan], [0.5, 0.5], "not nan"),
    ([0, 1], [0.5, 1.01], "not 1.01"),
    ([0, 1], [-0.01, 0.5], "not -0.01"),
    ([0, 1], [0.5, math.nan], "not nan"),
)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("labels", "scores", "words"), BAD)
def test_invalid_arrays_are_refused_in_one_line(function, labels, scores, words):
    with pytest.raises(UserError, match=words) as caught:
        function(labels, scores)
    assert "\n" not in str(caught.value)


def test_any_finite_numbers_can_be_ranked():
    assert metrics.ranking_metrics([0, 1, 0, 1], [-7, 3, 900, 1e6])["auc"] == 0.75
    for number in (math.nan, math.inf):
        with pytest.raises(UserError, match=f"a score is a finite number, not {number}"):
            metrics.ranking_metrics([0, 1], [0, number])


def test_invalid_thresholds_and_missing_classes_are_refused():
    for threshold in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match="threshold"):
            metrics.threshold_metrics([0, 1], [0.1, 0.9], threshold)
    with pytest.raises(UserError, match="Real and Fake"):
        metrics.choose_threshold([1, 1], [0.1, 0.9])
