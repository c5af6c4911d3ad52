"""Bands of scores that get no answer, against statsmodels' exact intervals and a full search."""

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from dfd_utils.stats.abstention import answer_rates, choose_band
from dfd_utils.stats.metrics import choose_threshold


def make_scores(images: int, distance: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(images) % 2
    logits = np.random.default_rng(seed).normal(size=images) + distance * (labels - 0.5)
    return labels, 1 / (1 + np.exp(-1.5 * logits))


def answers_of(scores: np.ndarray, band: tuple[float, float]) -> np.ndarray:
    return np.where(scores < band[0], 0, np.where(scores >= band[1], 1, -1))


def upper(events: int, images: int) -> float:
    return proportion_confint(events, images, 0.05, "beta")[1] if images else 1.0


@pytest.mark.parametrize("seed", range(5))
def test_no_other_band_within_the_limits_answers_more(seed):
    labels, scores = make_scores(160, 2.5, seed)
    threshold = choose_threshold(labels, scores)
    edges = np.unique(scores)
    cuts = [*(edges[1:] + edges[:-1]) / 2, threshold]
    most = 0
    for low in (cut for cut in cuts if cut <= threshold):
        for high in (cut for cut in cuts if cut >= threshold):
            answers = answers_of(scores, (low, high))
            wrong = (answers >= 0) & (answers != labels)
            limits = upper(wrong.sum(), (answers >= 0).sum()), upper(wrong[::2].sum(), 80)
            if max(limits) <= 0.05:
                most = max(most, (answers >= 0).sum())
    band = choose_band(labels, scores, threshold)
    assert band[0] <= threshold <= band[1]
    assert (answers_of(scores, band) >= 0).sum() == most > 0


def test_the_limits_hold_for_many_images():
    labels, scores = make_scores(40_000, 2.5)
    band = choose_band(labels, scores, choose_threshold(labels, scores))
    rates = answer_rates(labels, answers_of(scores, band))
    assert 0.04 < rates["wrong"][2] <= 0.05
    assert rates["real_called_fake"][2] <= 0.05
    assert rates["answered"][0] > 0.8


def test_a_model_that_knows_nothing_has_no_band():
    labels, scores = make_scores(400, 0.0)
    assert choose_band(labels, scores, choose_threshold(labels, scores)) is None
    assert choose_band(*make_scores(20, 9.0), 0.5) is None  # too few images to be sure of it


def test_a_model_that_knows_all_answers_all():
    labels, scores = make_scores(400, 20.0)
    band = choose_band(labels, scores, 0.5)
    assert (answers_of(scores, band) == labels).all()


def test_rates_and_their_exact_intervals():
    labels = np.array([0] * 10 + [1] * 10)
    answers = np.array([0] * 6 + [1, 1, -1, -1] + [1] * 7 + [0, -1, -1])
    rates = answer_rates(labels, answers)
    expected = {
        "answered": (16, 20), "wrong": (3, 16), "real_called_fake": (2, 10),
        "fake_called_real": (1, 10),
    }  # fmt: skip
    for name, (events, images) in expected.items():
        low, high = proportion_confint(events, images, 0.05, "beta")
        assert rates[name] == pytest.approx((events / images, low, high))
    assert np.isnan(answer_rates([0, 1], [-1, -1])["wrong"]).all()


def test_few_real_images_are_protected_by_themselves():
    """Wrong answers about them hardly count among the answers to so many fakes."""
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1], [100, 3000])
    scores = np.concatenate([rng.beta(2, 4, 100), rng.beta(6, 2, 3000)])
    band = choose_band(labels, scores, choose_threshold(labels, scores))
    called_fake = (scores[:100] >= band[1]).sum()
    assert upper(called_fake, 100) <= 0.05
    assert upper((scores[:100] >= choose_threshold(labels, scores)).sum(), 100) > 0.05
