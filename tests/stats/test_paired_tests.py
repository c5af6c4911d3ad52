"""Intervals, tests and verdicts against slow direct versions, and how often they are right."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta, norm
from sklearn import metrics as sk
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar

from dfd_utils.config import UserError
from dfd_utils.evaluation import predictions
from dfd_utils.reporting import comparison_text
from dfd_utils.stats import bootstrap, metrics, paired_tests
from tests.coverage_simulation import coverage_simulation


def _images(n: int = 300, step: float | None = None, seed: int = 0) -> tuple:
    """Return labels and the scores of two models that see the same images."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) < 0.4 * n).astype(int)
    seen = labels + rng.normal(size=n)
    scores = [norm.cdf(seen + rng.normal(size=n) * noise - 0.5) for noise in (0.4, 0.8)]
    if step:  # coarse scores tie often
        scores = [np.round(s / step) * step for s in scores]
    return labels, *scores


def _frame(labels, scores) -> pd.DataFrame:
    paths = [f"Test/{'Fake' if y else 'Real'}/{i}.jpg" for i, y in enumerate(labels)]
    return pd.DataFrame({"path": paths, "label": labels, "score": scores})


# -- bootstrap -----------------------------------------------------------------------------------


def _interval(metric: str, value: float, resamples: pd.Series, called: int):
    """Return the interval by its definition: value +- 1.96 standard errors of the log odds."""
    low, high = np.percentile(resamples, [2.5, 97.5])
    if metric == "expected_calibration_error":
        return max(0, 2 * value - high), max(0, 2 * value - low)
    error = 1.959963984540054 * math.sqrt(((resamples - resamples.mean()) ** 2).mean())
    if metric == "log_loss":
        return value * math.exp(-error / value), value * math.exp(error / value)
    if value in (0, 1):  # Clopper and Pearson's, of 48 Fake images or of those called Fake
        trials = called if metric == "precision" else 48
        end = beta.ppf(0.025, trials, 1)
        return (min(low, end), 1) if value else (0, max(high, 1 - end))
    odds, slope = value / (1 - value), 1 / (value * (1 - value))
    ends = [odds * math.exp(sign * error * slope) for sign in (-1, 1)]
    return tuple(o / (1 + o) for o in ends)


@pytest.mark.parametrize("step", [None, 0.1])
def test_bootstrap_equals_a_plain_loop_over_the_same_resamples(step, monkeypatch):
    labels, a, b = _images(120, step)
    monkeypatch.setattr(bootstrap, "CHUNK", 120 * 7)  # several chunks, the last one not full
    found = bootstrap.bootstrap(
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
        pd.testing.assert_frame_equal(found.samples[name], loop[name], rtol=0, atol=1e-9)
        table = found.intervals.loc[name]
        assert table["value"].to_dict() == metrics.all_metrics(labels, scores, cut)
        for metric in loop[name]:
            value, called = table.loc[metric, "value"], (scores >= cut).sum()
            expected = _interval(metric, value, loop[name][metric], called)
            assert table.loc[metric, ["low", "high"]].tolist() == pytest.approx(expected, abs=1e-9)
    paired = found.difference("a", "b")
    assert np.allclose(paired["low"], (loop["a"] - loop["b"]).quantile(0.025), rtol=0, atol=1e-9)
    assert np.allclose(paired["high"], (loop["a"] - loop["b"]).quantile(0.975), rtol=0, atol=1e-9)
    auc = sk.roc_auc_score(labels, a) - sk.roc_auc_score(labels, b)
    assert paired.loc["auc", "difference"] == pytest.approx(auc, abs=1e-9)


def test_resamples_keep_the_class_sizes_and_draw_evenly():
    labels = np.array([1, 0, 0, 1, 0, 0, 0])
    counts = bootstrap.resample_counts(labels, 20_000, np.random.default_rng(0))
    assert (counts[:, labels == 1].sum(axis=1) == 2).all()
    assert (counts[:, labels == 0].sum(axis=1) == 5).all()
    assert np.allclose(counts.mean(axis=0), 1, atol=0.03)
    assert np.allclose(counts[:, labels == 0].var(axis=0), 0.8, atol=0.05)  # binomial(5, 1/5)


def test_bootstrap_repeats_itself_and_pairs_the_models():
    labels, a, _ = _images()
    first, again, other = (bootstrap.bootstrap(labels, {"a": a, "b": a}, 50, s) for s in (1, 1, 2))
    pd.testing.assert_frame_equal(first.intervals, again.intervals)
    assert not first.intervals.equals(other.intervals)
    assert (first.difference("a", "b") == 0).all(axis=None)


def test_a_perfect_test_proves_no_perfect_model():
    labels, scores = np.repeat([0, 1], [30, 20]), np.linspace(0, 1, 50)
    table = bootstrap.bootstrap(labels, {"a": scores}, 50, threshold=0.75).intervals.loc["a"]
    assert table.loc["auc"].tolist() == pytest.approx([1, 0.025 ** (1 / 20), 1])
    # 13 of the 20 Fake images are called so, and no Real one.
    assert table.loc["precision"].tolist() == pytest.approx([1, 0.025 ** (1 / 13), 1])
    called_fake = [0, 0, 1 - 0.025 ** (1 / 20)]
    assert table.loc["real_called_fake"].tolist() == pytest.approx(called_fake)


def test_bootstrap_refuses_what_it_cannot_resample():
    with pytest.raises(UserError, match="Real and Fake"):
        bootstrap.bootstrap([1, 1], {"a": [0.1, 0.2]}, 5)
    for models, resamples in (({}, 5), ({"a": [0.1, 0.2]}, 0)):
        with pytest.raises(UserError, match="at least one"):
            bootstrap.bootstrap([0, 1], models, resamples)


# -- DeLong and McNemar --------------------------------------------------------------------------


def _slow_delong(labels, scores_a, scores_b) -> tuple[np.ndarray, np.ndarray]:
    """Return both AUCs and their covariance as DeLong et al. 1988 write them, by loops."""
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
    labels, a, b = _images(100, step, seed=4)
    aucs, covariance = _slow_delong(labels, a, b)
    found = paired_tests.delong(labels, a, b)
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
    assert found == pytest.approx(expected, rel=0, abs=1e-9)
    auc, low, high = paired_tests.delong_interval(labels, a)
    odds, slope = aucs[0] / (1 - aucs[0]), 1 / (aucs[0] * (1 - aucs[0]))
    factor = math.exp(1.959963984540054 * math.sqrt(covariance[0, 0]) * slope)
    ends = [o / (1 + o) for o in (odds / factor, odds * factor)]
    assert (auc, low, high) == pytest.approx((aucs[0], *ends), rel=0, abs=1e-9)


def test_delong_without_variance():
    labels, a, _ = _images()
    same = paired_tests.delong(labels, a, a)
    assert (same["difference"], same["low"], same["high"], same["z"], same["p"]) == (0, 0, 0, 0, 1)
    worst = paired_tests.delong([0, 0, 1, 1], [0.9, 0.9, 0.1, 0.1], [0.1, 0.1, 0.9, 0.9])
    assert (worst["difference"], worst["z"], worst["p"]) == (-1, -math.inf, 0)
    # Two pairs without a common image, both right: 0.025 ** (1 / 2).
    ends = 1, pytest.approx(0.025**0.5), 1
    assert paired_tests.delong_interval([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]) == ends
    ends = 0, 0, pytest.approx(1 - 0.025**0.5)
    assert paired_tests.delong_interval([0, 0, 1, 1], [0.8, 0.9, 0.1, 0.2]) == ends
    with pytest.raises(UserError, match="two images of each class"):
        paired_tests.delong([0, 0, 1], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3])


@pytest.mark.parametrize("seed", range(4))
def test_mcnemar_and_agreement_equal_statsmodels(seed):
    labels, a, b = _images(150, seed=seed)
    right_a, right_b = (a >= 0.4) == labels, (b >= 0.6) == labels
    square = [[sum((right_a == x) & (right_b == y)) for y in (True, False)] for x in (True, False)]
    found = paired_tests.mcnemar(labels, a, b, 0.4, 0.6)
    assert (found["b"], found["c"]) == (square[0][1], square[1][0])
    assert found["p"] == pytest.approx(statsmodels_mcnemar(square, exact=True).pvalue, abs=1e-9)

    table = paired_tests.agreement(labels, a, b, 0.4, 0.6)
    assert table["images"].tolist() == np.ravel(square).tolist()
    assert list(table.index) == ["both_right", "only_a", "only_b", "both_wrong"]
    assert (table["real_images"] + table["fake_images"]).tolist() == table["images"].tolist()
    assert table.loc["only_a", "fake_images"] == (right_a & ~right_b & (labels == 1)).sum()
    for share in ("share", "real_share", "fake_share"):
        assert table[share].sum() == pytest.approx(1)


def test_mcnemar_of_models_that_never_differ():
    assert paired_tests.mcnemar([0, 1], [0.1, 0.2], [0.3, 0.4]) == {"b": 0, "c": 0, "p": 1.0}
    assert paired_tests.agreement([1], [0.9], [0.1])["real_share"].isna().all()


# -- how often the intervals and tests are right ---------------------------------------------------


def test_intervals_cover_and_tests_rarely_cry_wolf():
    found = coverage_simulation(test_sets=200, images=200, auc=0.8, resamples=200)
    assert 0.90 <= found["coverage_delong"] <= 0.99
    for metric in ("auc", "accuracy", "f1"):
        assert 0.90 <= found[f"coverage_{metric}"] <= 0.99
        assert 0.01 <= found[f"rejection_{metric}"] <= 0.10
    assert 0.01 <= found["rejection_delong"] <= 0.10
    assert found["rejection_mcnemar"] <= 0.10  # the exact test stays below its level


# -- files, whole comparisons and verdicts -------------------------------------------------------


def test_predictions_come_back_as_they_were_written(tmp_path):
    labels, a, _ = _images()
    frame = _frame(labels, a)
    frame.loc[0, "path"] = "NA"
    frame.assign(more="x").to_csv(tmp_path / "p.csv", index=False)
    pd.testing.assert_frame_equal(predictions.read_predictions(tmp_path / "p.csv"), frame)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file"),
        ("", "not a readable CSV"),
        ("path,label,score\n", "no predictions"),
        ("path,score\na,0.5\n", "column label is missing"),
        ("path,label,score\na,0,0.5\na,1,0.5\n", "1 paths repeated, as a"),
        ("path,label,score\na,0,0.5\nb,2,0.5\n", "found 'b,2,0.5'"),
        ("path,label,score\na,0,1.5\n", "found 'a,0,1.5'"),
        ("path,label,score\na,0,\n", "found 'a,0,"),
        ("path,label,score\na,0,nan\n", "found 'a,0,nan'"),
        ("path,label,score\na,Fake,0.5\n", "found 'a,Fake,0.5'"),
        ("path,label,score\na,0,0.5\nb,1,0.5,7,8\n", "not a readable CSV"),
    ],
)
def test_bad_files_of_predictions_are_named(tmp_path, text, words):
    path = tmp_path / "predictions_Test.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        predictions.read_predictions(path)
    assert str(path) in str(caught.value)


def test_comparison_aligns_by_path_and_is_ready_for_json():
    labels, a, b = _images()
    frame_a, frame_b = _frame(labels, a), _frame(labels, b)
    found = paired_tests.compare_models(frame_a, frame_b.sample(frac=1), "A", "B", 0.4, 0.6, 100)
    assert found == paired_tests.compare_models(frame_a[::-1], frame_b, "A", "B", 0.4, 0.6, 100)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["positive_class"], found["images"]) == ("Fake", 300)
    model, pair = found["models"]["A"], found["pair"]
    assert model["auc"]["value"] == pytest.approx(sk.roc_auc_score(labels, a))
    assert model["accuracy"]["value"] == pytest.approx(np.mean((a >= 0.4) == labels))
    assert found["models"]["B"]["f1"]["value"] == pytest.approx(sk.f1_score(labels, b >= 0.6))
    test = paired_tests.delong(labels, a, b)
    expected = {"value": test["difference"]} | {key: test[key] for key in ("low", "high", "p")}
    assert pair["auc_difference"] == pytest.approx(expected)
    assert pair["mcnemar"] == paired_tests.mcnemar(labels, a, b, 0.4, 0.6)
    for metric, key in (("auc", "auc_difference_bootstrap"), ("f1", "f1_difference"),
                        ("accuracy", "accuracy_difference")):  # fmt: skip
        gap = model[metric]["value"] - found["models"]["B"][metric]["value"]
        assert pair[key]["value"] == pytest.approx(gap)
        assert pair[key]["low"] < gap < pair[key]["high"]


def test_comparison_refuses_other_images_other_labels_and_one_name():
    labels, a, b = _images()
    frame_a, frame_b = _frame(labels, a), _frame(labels, b)
    with pytest.raises(UserError, match="5 are in one alone"):
        paired_tests.compare_models(frame_a[:-2], frame_b[3:], "A", "B")
    flipped = frame_b.assign(label=[1 - y if i < 4 else y for i, y in enumerate(labels)])
    with pytest.raises(UserError, match="label 4 images differently"):
        paired_tests.compare_models(frame_a, flipped, "A", "B")
    with pytest.raises(UserError, match="both models are named 'A'"):
        paired_tests.compare_models(frame_a, frame_b, "A", "A")


def _comparison(value: float, low: float, high: float, accuracy_low: float = -0.005) -> dict:
    return {
        "images": 1000,
        "thresholds": {"model_a": 0.5, "model|b": 0.5},
        "models": {"model_a": {"auc": {"value": 0.9 + value}}, "model|b": {"auc": {"value": 0.9}}},
        "pair": {
            "auc_difference": {"value": value, "low": low, "high": high, "p": 0.0123},
            "accuracy_difference": {"value": 0.01, "low": accuracy_low, "high": 0.025},
            "mcnemar": {"b": 30, "c": 20, "p": 0.5 if accuracy_low < 0 else 0.0001},
        },
    }


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (
            (0.02, 0.01, 0.03),
            "`model_a` ranks the images better than `model b` (AUC 0.9200 against 0.9000 on 1,000 "
            "images, difference 0.0200, 95 % interval 0.0100 to 0.0300, DeLong p = 0.012).",
        ),
        (
            (-0.02, -0.03, -0.01),
            "`model b` ranks the images better than `model_a` (AUC 0.9000 against 0.8800 on 1,000 "
            "images, difference 0.0200, 95 % interval 0.0100 to 0.0300, DeLong p = 0.012).",
        ),
        ((0.01, -0.01, 0.03), "would take about 8,200 test images"),  # 1000 (2 * 2.8016 / 1.96)^2
        ((-0.01, -0.03, 0.01), "would take about 8,200 test images"),
        ((0.01, 0.0, 0.02), "No difference in AUC between `model_a` and `model b` is shown"),
        ((1e-6, -0.01, 0.01), "would take over 10,000,000 test images"),
    ],
)
def test_verdict_names_a_winner_only_outside_the_interval(numbers, words):
    text = comparison_text.conclusion(_comparison(*numbers))
    assert words in text
    assert ("better" in text) == (numbers[1] > 0 or numbers[2] < 0)
    assert ("square root" in text) == ("better" not in text)
    assert "no difference in accuracy is shown (+0.010, 95 % interval -0.005 to +0.025" in text
    assert "McNemar, p = 0.5)" in text
    assert "ignore the variance of training" in text
    assert text.count("\n") == 0 and 2 <= text.count(". ") + 1 <= 5


def test_verdict_tells_a_difference_in_accuracy():
    text = comparison_text.conclusion(_comparison(0.01, -0.01, 0.03, accuracy_low=0.001))
    told = (
        "At the threshold 0.5 `model_a` alone is right on 30 images and `model b` alone on 20: a "
    )
    assert told + "difference in accuracy is shown" in text
    assert "p < 0.001" in text
