"""Every metric against an independent implementation, on random and on awkward inputs."""

import math

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as tm
from scipy.optimize import brentq
from scipy.special import expit
from sklearn import metrics as sk

from dfd_utils.config import UserError
from dfd_utils.stats import bootstrap, metrics

EXACT = {"rel": 0, "abs": 1e-9}


def _case(name: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(len(name))
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
    }[name]


CASES = (
    "random",
    "ties",
    "float32",
    "few fakes",
    "worse than chance",
    "all the same score",
    "only 0 and 1",
    "perfect",
    "two images",
)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_threshold_metrics_agree_with_scikit_learn(case, threshold):
    labels, scores = _case(case)
    called = [int(score >= threshold) for score in scores.astype(float)]
    found = metrics.threshold_metrics(labels, scores, threshold)
    assert found == pytest.approx(
        {
            "accuracy": sk.accuracy_score(labels, called),
            "balanced_accuracy": sk.balanced_accuracy_score(labels, called),
            "precision": sk.precision_score(labels, called, zero_division=0),
            "recall": sk.recall_score(labels, called),
            "f1": sk.f1_score(labels, called),
            "real_called_fake": 1 - sk.recall_score(labels, called, pos_label=0),
            "fake_called_real": 1 - sk.recall_score(labels, called),
        },
        **EXACT,
    )
    pairs = list(zip(labels, called, strict=True))
    counts = [[pairs.count((true, call)) for call in (0, 1)] for true in (0, 1)]
    assert metrics.confusion(labels, scores, threshold).tolist() == counts


@pytest.mark.parametrize("case", CASES)
def test_auc_and_average_precision_agree_with_direct_sums(case):
    labels, scores = _case(case)
    fake, real = scores[labels == 1], scores[labels == 0]
    wins = (fake[:, None] > real).mean() + (fake[:, None] == real).mean() / 2
    precision_at = [labels[scores >= score].mean() for score in np.unique(scores)[::-1]]
    recall_at = [(fake >= score).mean() for score in np.unique(scores)[::-1]]
    average = sum(np.diff([0, *recall_at]) * precision_at)
    found = metrics.ranking_metrics(labels, scores)
    assert found["auc"] == pytest.approx(wins, **EXACT)
    assert found["average_precision"] == pytest.approx(average, **EXACT)


@pytest.mark.parametrize("case", CASES)
def test_operating_points_agree_with_a_walk_along_the_roc_curve(case):
    labels, scores = _case(case)
    fake, real = scores[labels == 1], scores[labels == 0]
    cuts = [2.0, *np.unique(scores)[::-1]]
    points = [(float((real >= cut).mean()), float((fake >= cut).mean())) for cut in cuts]
    found = metrics.ranking_metrics(labels, scores)
    for percent in (1, 5):
        best = max(tpr for fpr, tpr in points if fpr <= percent / 100)
        assert found[f"recall_at_{percent}_percent_fpr"] == pytest.approx(best, **EXACT)

    def along(t: float) -> np.ndarray:  # the curve by its place, in pieces
        return np.array([np.interp(t, range(len(points)), column) for column in zip(*points)])  # noqa: B905

    place = brentq(lambda t: 1 - along(t).sum(), 0, len(points) - 1, xtol=1e-14)
    assert found["eer"] == pytest.approx(along(place)[0], **EXACT)


def test_recall_at_exactly_one_percent_counts_that_threshold():
    labels = np.r_[np.zeros(100, int), np.ones(4, int)]
    scores = np.r_[np.linspace(0, 0.5, 99), 0.9, 0.95, 0.8, 0.7, 0.1]
    found = metrics.ranking_metrics(labels, scores)
    assert found["recall_at_1_percent_fpr"] == pytest.approx(0.75, **EXACT)


def test_a_threshold_on_a_straight_piece_of_the_curve_counts():
    labels = np.r_[np.arange(20) % 2, np.zeros(190, int)]  # ten pairs of a Real and a Fake, tied
    scores = np.r_[np.repeat(np.linspace(0.9, 0.5, 10), 2), np.full(190, 0.1)]
    found = metrics.ranking_metrics(labels, scores)
    assert found["recall_at_1_percent_fpr"] == pytest.approx(0.2, **EXACT)


@pytest.mark.parametrize("case", CASES)
def test_calibration_metrics_agree_with_torchmetrics_and_scikit_learn(case):
    labels, scores = _case(case)
    scores = scores.astype(float)
    found = metrics.calibration_metrics(labels, scores)
    # torchmetrics computes in single precision; its bins are closed on the other side.
    off_edge = torch.tensor(np.where(scores < 1, scores + 1e-6, scores))
    other = tm.binary_calibration_error(off_edge, torch.tensor(labels), n_bins=15)
    assert found["expected_calibration_error"] == pytest.approx(float(other), abs=1e-5)
    direct = sum(
        abs(sum(scores[inside] - labels[inside]))
        for k in range(15)
        if (inside := (scores * 15 >= k) & ((scores * 15 < k + 1) | (k == 14))).any()
    )
    assert found["expected_calibration_error"] == pytest.approx(direct / len(scores), **EXACT)
    assert found["brier"] == pytest.approx(sk.brier_score_loss(labels, scores), **EXACT)
    clipped = np.clip(scores, 2.0**-52, 1 - 2.0**-52)
    own = -np.mean([math.log(s if y else 1 - s) for y, s in zip(labels, clipped, strict=True)])
    assert found["log_loss"] == pytest.approx(own, abs=1e-9)


def test_reliability_counts_every_image_in_its_bin():
    table = metrics.reliability([0, 1, 1, 0], [0.0, 0.1, 1.0, 0.9], bins=2)
    assert table["count"].tolist() == [2, 2]
    assert table["bin_centre"].tolist() == [0.25, 0.75]
    assert table["mean_score"].tolist() == pytest.approx([0.05, 0.95])
    assert table["fraction_fake"].tolist() == [0.5, 0.5]
    empty = metrics.reliability([0], [0.9], bins=2).iloc[0]
    assert empty["count"] == 0 and math.isnan(empty["fraction_fake"])


@pytest.mark.parametrize("label", [0, 1])
def test_one_image_leaves_what_needs_both_classes_undefined(label):
    found = metrics.all_metrics([label], [0.75])
    undefined = {"balanced_accuracy", "auc", "average_precision", "eer"}
    undefined |= {"recall_at_1_percent_fpr", "recall_at_5_percent_fpr"}
    undefined |= {"real_called_fake"} if label else {"recall", "f1", "fake_called_real"}
    assert {name for name, value in found.items() if math.isnan(value)} == undefined
    assert found["accuracy"] == found["precision"] == label
    assert found["expected_calibration_error"] == pytest.approx(abs(0.75 - label))
    assert all(type(value) is float for value in found.values())


@pytest.mark.parametrize("case", CASES)
def test_weighted_metrics_agree_with_the_metrics_of_the_resampled_images(case):
    labels, scores = _case(case)
    rng = np.random.default_rng(5)
    drawn = rng.integers(len(labels), size=(12, len(labels)))
    drawn = np.array([row for row in drawn if len(set(labels[row])) == 2])
    weights = np.array([np.bincount(row, minlength=len(labels)) for row in drawn])
    found = bootstrap.weighted_metrics(labels, scores, weights, 0.4)
    for place, row in enumerate(drawn):
        expected = metrics.all_metrics(labels[row], scores[row], 0.4)
        assert {k: v[place] for k, v in found.items()} == pytest.approx(expected, **EXACT)
    with pytest.raises(UserError, match="Real and Fake"):
        bootstrap.weighted_metrics(labels, scores, labels[None])


@pytest.mark.parametrize("threshold", [0.2, 0.5, 1.0])
def test_risk_falls_as_the_doubtful_images_are_left_out(threshold):
    labels, scores = _case("random")
    table = metrics.risk_coverage(labels, scores, threshold)
    wrong = (scores >= threshold) != labels
    sure = [(s - threshold) / (1 - threshold) if s >= threshold else (threshold - s) / threshold
            for s in scores]  # fmt: skip
    for row in (0, 10, 150, 299):
        kept = np.array(sure) >= sorted(sure, reverse=True)[row]
        assert table["coverage"][row] == pytest.approx(kept.mean())
        assert table["risk"][row] == pytest.approx(wrong[kept].mean())
    assert table["risk"].iloc[-1] == pytest.approx(wrong.mean())
    assert metrics.risk_coverage([0, 1, 1], [0.0, 1.0, 0.5], 0.3)["coverage"][0] == 2 / 3


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_area_under_risk_coverage_agrees_with_a_direct_mean(case, threshold):
    labels, scores = _case(case)
    scores = scores.astype(float)
    wrong = (scores >= threshold) != labels
    sure = np.where(scores >= threshold, (scores - threshold) / (1 - threshold),
                    (threshold - scores) / threshold)  # fmt: skip
    risks = [wrong[sure >= own].mean() for own in sure]  # when this image is taken in
    assert metrics.aurc(labels, scores, threshold) == pytest.approx(np.mean(risks), **EXACT)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_undone_temperature_gives_the_models_own_probability(temperature):
    margin = np.array([-30.0, -4, -0.1, 0, 0.3, 5, 8])
    own = metrics.remove_temperature(expit(margin / temperature), temperature)
    assert own == pytest.approx(expit(margin), **EXACT)
    ends = metrics.remove_temperature([0.0, 1.0], temperature)
    assert 0 <= ends[0] < 1e-6 and 1 - 1e-6 < ends[1] <= 1


@pytest.mark.parametrize("case", CASES)
def test_no_threshold_beats_the_chosen_one(case):
    labels, scores = _case(case)
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
        ([0, 1], [0.7, 0.7], 0.35),  # every image Fake or every image Real: no cut is better
    ],
)
def test_the_threshold_lies_midway_and_near_one_half(labels, scores, threshold):
    assert metrics.choose_threshold(labels, scores) == pytest.approx(threshold)


@pytest.mark.parametrize("true_temperature", [0.4, 1.0, 3.0])
def test_temperature_is_recovered_and_the_best_of_a_grid(true_temperature):
    rng = np.random.default_rng(0)
    z = rng.normal(size=20_000) * 2
    labels = (rng.random(20_000) < expit(z)).astype(int)
    found = metrics.fit_temperature(labels, z * true_temperature)
    assert found == pytest.approx(true_temperature, rel=0.05)

    def loss(temperature: float) -> float:
        return sk.log_loss(labels, expit(z * true_temperature / temperature))

    assert all(loss(found) <= loss(found * factor) + 1e-9 for factor in (0.9, 0.99, 1.01, 1.1))


def test_temperature_stays_within_its_bounds():
    assert 0.05 <= metrics.fit_temperature([0, 1], [-9.0, 9.0]) < 0.051
    assert 19.9 < metrics.fit_temperature([1, 0], [-9.0, 9.0]) <= 20
    with pytest.raises(UserError, match="not finite"):
        metrics.fit_temperature([0, 1], [math.nan, 1.0])


FUNCTIONS = (
    metrics.threshold_metrics,
    metrics.ranking_metrics,
    metrics.calibration_metrics,
    metrics.all_metrics,
    metrics.confusion,
    metrics.reliability,
    metrics.choose_threshold,
    lambda labels, scores: metrics.risk_coverage(labels, scores, 0.5),
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
def test_bad_arrays_are_named_in_one_line(function, labels, scores, words):
    with pytest.raises(UserError, match=words) as caught:
        function(labels, scores)
    assert "\n" not in str(caught.value)


def test_bad_thresholds_and_missing_classes_are_refused():
    for threshold in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match="threshold"):
            metrics.threshold_metrics([0, 1], [0.1, 0.9], threshold)
    with pytest.raises(UserError, match="Real and Fake"):
        metrics.choose_threshold([1, 1], [0.1, 0.9])
