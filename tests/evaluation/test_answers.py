"""Answers of models that may be unsure, and what was measured of a model elsewhere."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest

from dfd_utils.data.folder import DataFolder
from dfd_utils.evaluation.answers import (
    answers_by_degradation,
    answers_on_test,
    judge,
    measured_on,
)
from dfd_utils.evaluation.evaluate import evaluate
from dfd_utils.models.trained import TrainedModel
from dfd_utils.reporting.evaluation_text import (
    answers_table,
    degraded_answers_table,
    summarize_answers,
)


def quiet(line: str) -> None:
    pass


@pytest.fixture
def model(trained_run, tmp_path):
    folder = tmp_path / "run" / "efficientnet_b0"
    shutil.copytree(trained_run / folder.name, folder, ignore=shutil.ignore_patterns("check*"))
    description = TrainedModel(folder).description
    band = {"threshold": 0.5, "unsure_from": 0.4, "unsure_to": 0.7}
    dataclasses.replace(description, **band).write(folder / "model.json")
    return TrainedModel(folder)


def test_a_score_in_the_band_gets_no_answer(model):
    assert judge(model, [0.1, 0.399, 0.4, 0.5, 0.699, 0.7, 1]).tolist() == [0, 0, -1, -1, -1, 1, 1]
    without = dataclasses.replace(model.description, unsure_from=None, unsure_to=None)
    model.description = without
    assert judge(model, [0.1, 0.4, 0.5, 0.7]).tolist() == [0, 0, 1, 1]


def test_answers_on_test_are_those_of_the_predictions(model, easy_data, tmp_path):
    other = DataFolder(shutil.copytree(easy_data.path, tmp_path / "other"))
    (other.path / "Test" / "Real" / "000.jpg").unlink()
    evaluate([model], easy_data, log=quiet, resamples=20)
    table = answers_on_test({"One": model}, [easy_data, other])
    assert table["images"].tolist() == ["easy, Test"]  # the other has no results
    evaluate([model], other, log=quiet, resamples=20)
    table = answers_on_test({"One": model}, [easy_data, other])
    assert table["images"].tolist() == ["easy, Test", "other, Test"]
    predictions = model.predictions(easy_data, "Test")
    sure = (predictions["score"] < 0.4) | (predictions["score"] >= 0.7)
    assert table["answered"][0][0] == sure.mean()
    shown = answers_table(table, {"One": model})
    assert shown["Unsure"].tolist() == ["0.40 to 0.70"] * 2
    assert shown["answered"].iloc[0].startswith(f"{sure.mean():.3f} [")


def test_metrics_of_each_data_set_by_itself(model, easy_data, tmp_path):
    assert measured_on(model) == {}
    other = DataFolder(shutil.copytree(easy_data.path, tmp_path / "other-one"))
    (other.path / "Test" / "Real" / "000.jpg").unlink()
    evaluate([model], easy_data, log=quiet, resamples=20)
    evaluate([model], other, log=quiet, resamples=20)
    found = measured_on(model)
    assert list(found) == ["easy", "other-one"]
    namesake = DataFolder(shutil.copytree(other.path, tmp_path / "more" / "easy"))
    (namesake.path / "Test" / "Real" / "001.jpg").unlink()
    evaluate([model], namesake, log=quiet, resamples=20)
    names = [name.partition(" (")[0] for name in measured_on(model)]
    assert sorted(names) == ["easy", "easy", "other-one"]
    own = model.metrics(easy_data, "Test")["at_validation_threshold"]
    assert found["easy"]["chosen"]["recall"] == own["recall"]
    # Another model in the same folder: the results are not its own.
    dataclasses.replace(model.description, threshold=0.6).write(model.folder / "model.json")
    assert measured_on(TrainedModel(model.folder)) == {}


def test_wrong_answers_by_degradation(model):
    rows = [("none", 0, 0.1), ("none", 1, 0.2), ("blur", 0, 0.9), ("blur", 1, 0.5)]
    scores = pd.DataFrame(rows, columns=["degradation", "label", "score"])
    shown = degraded_answers_table(answers_by_degradation({"One": model}, [scores]))
    assert shown["One"].to_dict() == {"none": "0.500 of 1.00", "blur": "1.000 of 0.50"}
    unsure = scores.assign(score=0.5)
    shown = degraded_answers_table(answers_by_degradation({"One": model}, [unsure]))
    assert shown["One"].tolist() == ["no answer", "no answer"]


@pytest.mark.parametrize(
    ("wrong", "images", "text"),
    [(0, 400, "was kept"), (2, 40, "neither proven nor refuted"), (60, 400, "was broken")],
)
def test_the_promise_is_judged_by_the_interval(model, wrong, images, text):
    labels = np.arange(images) % 2
    scores = pd.Series(np.where(labels == 1, 0.9, 0.1))
    scores[:wrong] = 1 - scores[:wrong]
    table = pd.DataFrame({"degradation": "none", "label": labels, "score": scores})
    rates = answers_by_degradation({"One": model}, [table])
    assert text in summarize_answers(rates, {"One": model})
