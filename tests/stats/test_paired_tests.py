"""Paired tests against slow direct versions and statsmodels."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta, norm
from sklearn import metrics as sk
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar

from dfd_utils.config import UserError
from dfd_utils.stats import paired_tests
from tests.stats.cases import saturated, two_models


def frame_of(labels, scores) -> pd.DataFrame:
    paths = [f"Test/{'Fake' if y else 'Real'}/{i}.jpg" for i, y in enumerate(labels)]
    return pd.DataFrame({"path": paths, "label": labels, "score": scores})


def slow_delong(labels, scores_a, scores_b) -> tuple[np.ndarray, np.ndarray]:
    """Return both AUCs and their covariance by the definition of DeLong et al. 1988."""
    fake, real = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    psi = np.array(
        [
            [[(s[i] > s[j]) + (s[i] == s[j]) / 2 for j in real] for i in fake]
            for s in (scores_a, scores_b)
        ]
    )
    aucs = psi.mean(axis=(1, 2))
    by_fake, by_real = psi.mean(axis=2) - aucs[:, None], psi.mean(axis=1) - aucs[:, None]
    s10 = by_fake @ by_fake.T / (len(fake) - 1)
    s01 = by_real @ by_real.T / (len(real) - 1)
    return aucs, s10 / len(fake) + s01 / len(real)


@pytest.mark.parametrize("step", [None, 0.1, 0.5])
def test_delong_equals_the_direct_covariance(step):
    labels, a, b = two_models(100, step, seed=4)
    aucs, covariance = slow_delong(labels, a, b)
    result = paired_tests.delong(labels, a, b)
    error = math.sqrt(np.array([1, -1]) @ covariance @ np.array([1, -1]))
    difference = aucs[0] - aucs[1]
    expected = {
        "auc_a": aucs[0],
        "auc_b": aucs[1],
        "difference": difference,
        "low": difference - 1.959963984540054 * error,
        "high": difference + 1.959963984540054 * error,
        "z": difference / error,
        "p": 2 * (1 - norm.cdf(abs(difference / error))),
    }
    assert result == pytest.approx(expected, rel=0, abs=1e-9)
    auc, low, high = paired_tests.delong_interval(labels, a)
    odds, slope = aucs[0] / (1 - aucs[0]), 1 / (aucs[0] * (1 - aucs[0]))
    factor = math.exp(1.959963984540054 * math.sqrt(covariance[0, 0]) * slope)
    ends = [o / (1 + o) for o in (odds / factor, odds * factor)]
    assert (auc, low, high) == pytest.approx((aucs[0], *ends), rel=0, abs=1e-9)


def test_delong_without_variance():
    labels, a, _ = two_models()
    same = paired_tests.delong(labels, a, a)
    assert (same["difference"], same["low"], same["high"], same["z"], same["p"]) == (0, 0, 0, 0, 1)
    worst = paired_tests.delong([0, 0, 1, 1], [0.9, 0.9, 0.1, 0.1], [0.1, 0.1, 0.9, 0.9])
    assert (worst["difference"], worst["z"], worst["p"]) == (-1, -math.inf, 0)
    # Two disjoint pairs, both in order: 0.025 ** (1 / 2).
    ends = 1, pytest.approx(0.025**0.5), 1
    assert paired_tests.delong_interval([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]) == ends
    ends = 0, 0, pytest.approx(1 - 0.025**0.5)
    assert paired_tests.delong_interval([0, 0, 1, 1], [0.8, 0.9, 0.1, 0.2]) == ends
    # Equal scores say nothing: 2 of 4 disjoint pairs, and half of 3.
    constant = paired_tests.delong_interval([0, 1] * 4, [0.3] * 8)
    assert constant == pytest.approx((0.5, *beta.ppf([0.025, 0.975], [2, 3], [3, 2])))
    odd = paired_tests.delong_interval([0, 1] * 3, [0.3] * 6)
    assert odd == pytest.approx((0.5, *beta.ppf([0.025, 0.975], [1.5, 2.5], [2.5, 1.5])))
    with pytest.raises(UserError, match="two images of each class"):
        paired_tests.delong([0, 0, 1], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3])


@pytest.mark.parametrize("seed", range(4))
def test_mcnemar_and_agreement_equal_statsmodels(seed):
    labels, a, b = two_models(150, seed=seed)
    right_a, right_b = (a >= 0.4) == labels, (b >= 0.6) == labels
    square = [[sum((right_a == x) & (right_b == y)) for y in (True, False)] for x in (True, False)]
    result = paired_tests.mcnemar(labels, a, b, 0.4, 0.6)
    assert (result["b"], result["c"]) == (square[0][1], square[1][0])
    assert result["p"] == pytest.approx(statsmodels_mcnemar(square, exact=True).pvalue, abs=1e-9)

    table = paired_tests.agreement(labels, a, b, 0.4, 0.6)
    assert table["images"].tolist() == np.ravel(square).tolist()
    assert list(table.index) == ["both_right", "only_a", "only_b", "both_wrong"]
    assert (table["real_images"] + table["fake_images"]).tolist() == table["images"].tolist()
    assert table.loc["only_a", "fake_images"] == (right_a & ~right_b & (labels == 1)).sum()
    for share in ("share", "real_share", "fake_share"):
        assert table[share].sum() == pytest.approx(1)


def test_mcnemar_of_equal_models():
    assert paired_tests.mcnemar([0, 1], [0.1, 0.2], [0.3, 0.4]) == {"b": 0, "c": 0, "p": 1.0}
    assert paired_tests.agreement([1], [0.9], [0.1])["real_share"].isna().all()


def test_a_comparison_is_aligned_by_path_and_strict_json():
    labels, a, b = two_models()
    frame_a, frame_b = frame_of(labels, a), frame_of(labels, b)
    result = paired_tests.compare_models(frame_a, frame_b.sample(frac=1), "A", "B", 0.4, 0.6, 100)
    assert result == paired_tests.compare_models(frame_a[::-1], frame_b, "A", "B", 0.4, 0.6, 100)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (result["positive_class"], result["images"]) == ("Fake", 300)
    model, pair = result["models"]["A"], result["pair"]
    assert model["auc"]["value"] == pytest.approx(sk.roc_auc_score(labels, a))
    assert model["accuracy"]["value"] == pytest.approx(np.mean((a >= 0.4) == labels))
    assert result["models"]["B"]["f1"]["value"] == pytest.approx(sk.f1_score(labels, b >= 0.6))
    test = paired_tests.delong(labels, a, b)
    expected = {"value": test["difference"]} | {key: test[key] for key in ("low", "high", "p")}
    assert pair["auc_difference"] == pytest.approx(expected)
    assert pair["mcnemar"] == paired_tests.mcnemar(labels, a, b, 0.4, 0.6)
    for metric, key in (("auc", "auc_difference_bootstrap"), ("f1", "f1_difference"),
                        ("accuracy", "accuracy_difference")):  # fmt: skip
        gap = model[metric]["value"] - result["models"]["B"][metric]["value"]
        assert pair[key]["value"] == pytest.approx(gap)
        assert pair[key]["low"] < gap < pair[key]["high"]


def test_a_comparison_ranks_by_logits_where_there_are_any():
    labels, logits, scores = saturated()
    other = frame_of(labels, np.random.default_rng(0).random(400))  # a file without logits
    exact, rounded = frame_of(labels, scores).assign(logit=logits), frame_of(labels, scores)
    result = paired_tests.compare_models(exact.sample(frac=1), other, "A", "B", resamples=50)
    auc = sk.roc_auc_score(labels, logits)
    assert auc > sk.roc_auc_score(labels, scores) + 0.01
    assert result["models"]["A"]["auc"]["value"] == pytest.approx(auc)
    test = paired_tests.delong(labels, logits, other["score"])
    assert result["pair"]["auc_difference"]["value"] == pytest.approx(test["difference"])
    assert result["pair"]["auc_difference"]["p"] == pytest.approx(test["p"])
    assert result["pair"]["auc_difference_bootstrap"]["value"] == pytest.approx(test["difference"])
    both = paired_tests.compare_models(exact, rounded, "A", "B", resamples=50)
    assert both["models"]["A"]["accuracy"] == both["models"]["B"]["accuracy"]
    assert both["pair"]["auc_difference"]["value"] > 0.01


def test_different_images_or_labels_and_equal_names_are_refused():
    labels, a, b = two_models()
    frame_a, frame_b = frame_of(labels, a), frame_of(labels, b)
    with pytest.raises(UserError, match="5 are in one of them only"):
        paired_tests.compare_models(frame_a[:-2], frame_b[3:], "A", "B")
    flipped = frame_b.assign(label=[1 - y if i < 4 else y for i, y in enumerate(labels)])
    with pytest.raises(UserError, match="label 4 images differently"):
        paired_tests.compare_models(frame_a, flipped, "A", "B")
    with pytest.raises(UserError, match="both models are named 'A'"):
        paired_tests.compare_models(frame_a, frame_b, "A", "A")
