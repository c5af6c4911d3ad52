"""What is chosen on Validation, and that it reaches the model's description."""

import numpy as np
import pytest
from scipy.special import expit

from dfd_utils.models.description import ModelDescription
from dfd_utils.stats.abstention import answer_rates
from dfd_utils.training.validation import CHOSEN, validation_metrics


def make_margins(images: int, distance: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(images) * 2 // images  # Real first, as in the folders
    return labels, np.random.default_rng(seed).normal(size=images) + distance * (labels - 0.5)


def test_the_band_holds_on_as_many_degraded_images_as_there_are_others(tmp_path):
    """Of 20 times as many clean images, which are easier, only a part counts."""
    clean, degraded = make_margins(8000, 8.0, 0), make_margins(400, 2.5, 1)
    metrics = validation_metrics(*clean, *degraded)
    low, high = metrics["unsure_from"], metrics["unsure_to"]
    assert low < metrics["threshold"] < high

    def wrong(labels: np.ndarray, margins: np.ndarray) -> float:
        scores = expit(margins / metrics["temperature"])
        answers = np.where(scores < low, 0, np.where(scores >= high, 1, -1))
        return answer_rates(labels, answers)["wrong"][0]

    assert wrong(*clean) < 0.01
    assert 0.02 < wrong(*degraded) < 0.15  # as many of each: 5 % on average
    description = ModelDescription("resnet50", **{name: metrics[name] for name in CHOSEN})
    description.write(tmp_path / "model.json")
    assert ModelDescription.read(tmp_path / "model.json") == description
    assert description.is_close_call([low, high, 0.0]).tolist() == [True, False, False]


def test_without_a_band_there_is_none_in_the_description():
    metrics = validation_metrics(*make_margins(200, 0.5, 0), *make_margins(200, 0.5, 1))
    assert metrics["unsure_from"] is metrics["unsure_to"] is None


@pytest.mark.parametrize("damage", ['"unsure_to": null', '"unsure_to": "0.9"'])
def test_half_a_band_is_refused(tmp_path, damage):
    path = tmp_path / "model.json"
    ModelDescription("resnet50", unsure_from=0.2, unsure_to=0.9).write(path)
    path.write_text(path.read_text().replace('"unsure_to": 0.9', damage))
    with pytest.raises(Exception, match="damaged"):
        ModelDescription.read(path)
