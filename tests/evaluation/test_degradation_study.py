"""The same training with and without degraded images."""

import json
import shutil

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dfd_utils import config
from dfd_utils.config import UserError
from dfd_utils.evaluation import degradation_study
from dfd_utils.evaluation.degradation_study import DIFFERENCE, WITH, WITHOUT
from dfd_utils.evaluation.robustness import degraded_predictions
from dfd_utils.reporting import evaluation_text
from dfd_utils.stats.bootstrap import bootstrap, metric_interval


@pytest.fixture(scope="module")
def pair(trained_run, easy_data, tmp_path_factory):
    build = tmp_path_factory.mktemp("build")
    run = shutil.copytree(trained_run, build / "runs" / "easy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "BUILD_DIR", build)
        yield degradation_study.train_degradation_pair(run / "efficientnet_b0", easy_data)


def test_the_second_training_differs_in_the_degraded_images_alone(pair):
    first, second = (
        json.loads((pair[t] / "config.json").read_text())["settings"] for t in (WITHOUT, WITH)
    )
    assert first.pop("degradation_probability") == 0
    assert second.pop("degradation_probability") == degradation_study.SHARE
    assert first == second
    weights = [(pair[t] / "model.safetensors").read_bytes() for t in (WITHOUT, WITH)]
    assert weights[0] != weights[1]
    assert "runs" not in pair[WITH].relative_to(config.BUILD_DIR).parts  # nothing else finds it


def test_a_run_with_degraded_images_is_trained_again_without(pair, easy_data):
    other = degradation_study.train_degradation_pair(pair[WITH], easy_data)
    assert other[WITH] == pair[WITH]
    settings = json.loads((other[WITHOUT] / "config.json").read_text())["settings"]
    assert settings["degradation_probability"] == 0
    weights = [
        (place / "model.safetensors").read_bytes() for place in (pair[WITHOUT], other[WITHOUT])
    ]
    assert weights[0] == weights[1]


def test_a_model_that_was_not_trained_is_named(pair, easy_data):
    with pytest.raises(UserError, match="alexnet: no trained model"):
        degradation_study.train_degradation_pair(pair[WITHOUT].with_name("alexnet"), easy_data)


def test_auc_by_severity_is_the_mean_over_kinds(pair, easy_data):
    table = degradation_study.severity_auc(pair, easy_data, resamples=200)
    table = table.set_index(["training", "severity"])
    scores = degraded_predictions(list(pair.values()), easy_data)[pair[WITH]]
    part = scores[scores["severity"] == 5]
    kinds = [
        (one["label"].to_numpy(), one["score"].to_numpy()) for _, one in part.groupby("degradation")
    ]
    row = table.loc[(WITH, 5)]
    value = np.mean([roc_auc_score(*kind) for kind in kinds])
    assert row["auc"] == pytest.approx(value, abs=1e-12)
    resampled = bootstrap(kinds[0][0], {str(n): kind[1] for n, kind in enumerate(kinds)}, 200)
    samples = np.mean([each["auc"] for each in resampled.samples.values()], axis=0)
    low, high = metric_interval("auc", value, samples, len(kinds[0][0]) // 2)
    assert [row["low"], row["high"]] == pytest.approx([low, high], abs=1e-12)
    gain = table.loc[(WITH, 5), "auc"] - table.loc[(WITHOUT, 5), "auc"]
    assert table.loc[(DIFFERENCE, 5), "auc"] == pytest.approx(gain)
    lost = {t: table.loc[(t, 0), "auc"] - table.loc[(t, 5), "auc"] for t in (WITH, WITHOUT)}
    assert table.loc[(DIFFERENCE, 5), "lost"] == pytest.approx(lost[WITH] - lost[WITHOUT])
    assert (table["low"] <= table["auc"]).all() and (table["auc"] <= table["high"]).all()


def test_table_and_words_tell_what_changed(pair, easy_data):
    severities = degradation_study.severity_auc(pair, easy_data, resamples=50)
    on_test = degradation_study.auc_on_test(pair, easy_data)
    shown = evaluation_text.degradation_study_table(severities, on_test)
    assert list(shown.index) == [WITHOUT, WITH, DIFFERENCE]
    assert list(shown.columns) == ["as they are", "severity 1", "severity 3", "severity 5", "Test"]
    severities.loc[:, ["lost_low", "lost_high"]] = [-0.03, -0.01]
    on_test.loc[DIFFERENCE] = [0.01, -0.02, 0.04]
    first, second = evaluation_text.summarize_degradation_study(
        "ResNet50", severities, on_test
    ).split("\n")
    assert "severity 3" in first and first.endswith("more than the choice of images explains.")
    assert "within what the choice of images explains" in second
