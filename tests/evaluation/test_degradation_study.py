"""The same training with and without degraded images."""

import json
import shutil

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from dfd_utils import config
from dfd_utils.config import UserError
from dfd_utils.evaluation import degradation_study
from dfd_utils.evaluation.degradation_study import (
    DIFFERENCE,
    WITH,
    WITHOUT,
    train_degradation_pair,
)
from dfd_utils.evaluation.evaluate import evaluate
from dfd_utils.evaluation.robustness import degraded_predictions
from dfd_utils.models.trained import TrainedModel
from dfd_utils.reporting import evaluation_text
from dfd_utils.stats.bootstrap import bootstrap, metric_interval
from tests.conftest import quiet

NAME = "efficientnet_b0"


@pytest.fixture(scope="module")
def run(trained_run, tmp_path_factory):
    build = tmp_path_factory.mktemp("build")
    ignore = shutil.ignore_patterns("checkpoint", "metrics.json", "predictions_*", "on_*")
    shutil.copytree(trained_run / NAME, build / "runs" / "easy" / NAME, ignore=ignore)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "BUILD_DIR", build)
        yield TrainedModel(build / "runs" / "easy" / NAME)


@pytest.fixture(scope="module")
def pair(run, easy_data):
    return train_degradation_pair(run, easy_data, quiet)


def test_the_second_training_differs_only_in_the_degraded_images(pair):
    first, second = (dict(pair[training].config["settings"]) for training in (WITHOUT, WITH))
    assert first.pop("degradation_probability") == 0
    assert second.pop("degradation_probability") == degradation_study.SHARE
    assert first == second
    weights = [pair[training].weights_file.read_bytes() for training in (WITHOUT, WITH)]
    assert weights[0] != weights[1]
    assert "runs" not in pair[WITH].folder.relative_to(config.BUILD_DIR).parts  # not a run


def test_a_run_with_degraded_images_is_trained_again_without(pair, easy_data):
    other = train_degradation_pair(pair[WITH], easy_data, quiet)
    assert other[WITH] is pair[WITH]
    assert other[WITHOUT].config["settings"]["degradation_probability"] == 0
    weights = [models[WITHOUT].weights_file.read_bytes() for models in (pair, other)]
    assert weights[0] == weights[1]


def test_the_same_call_trains_nothing(pair, run, easy_data):
    lines, second = [], pair[WITH].weights_file
    before = second.stat().st_mtime_ns
    again = train_degradation_pair(run, easy_data, lines.append)
    assert again[WITH].weights_file == second
    assert second.stat().st_mtime_ns == before
    assert lines[-1] == f"{NAME}: already trained, nothing to do"


def test_a_run_keeps_its_exclusion_list_and_works_without_a_gpu(
    run, easy_data, tmp_path, monkeypatch
):
    folder = shutil.copytree(run.folder, tmp_path / "runs" / "recorded" / NAME)
    (folder / "excluded.csv").write_text("path\nTrain/Real/000.jpg\n")
    content = json.loads((folder / "config.json").read_text())
    content["settings"]["precision"] = "fp16"
    (folder / "config.json").write_text(json.dumps(content))
    calls = []

    def fit(name, data, out, profile, log):
        calls.append((data.excluded("Train"), profile.precision, out))
        shutil.copytree(folder, out, dirs_exist_ok=True)

    monkeypatch.setattr(degradation_study.train, "fit", fit)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    train_degradation_pair(TrainedModel(folder), easy_data, quiet)
    assert calls[0][:2] == (["Train/Real/000.jpg"], "fp32")
    # Another list is another training.
    (folder / "excluded.csv").write_text("path\n")
    train_degradation_pair(TrainedModel(folder), easy_data, quiet)
    assert calls[1][0] == []
    assert calls[1][2] != calls[0][2]


def test_a_model_without_its_settings_is_named(run, easy_data, tmp_path):
    for file in ("model.json", "model.safetensors"):
        shutil.copy(run.folder / file, tmp_path)
    with pytest.raises(UserError, match=r"config\.json: missing"):
        train_degradation_pair(TrainedModel(tmp_path), easy_data)


def test_auc_by_severity_is_the_mean_over_degradations(pair, easy_data):
    table = degradation_study.severity_auc(pair, easy_data, resamples=200)
    table = table.set_index(["training", "severity"])
    (scores,) = degraded_predictions([pair[WITH]], easy_data)
    part = scores[scores["severity"] == 5]
    kinds = [
        (one["label"].to_numpy(), expit(one["logit"].to_numpy()))
        for _, one in part.groupby("degradation")
    ]
    row = table.loc[(WITH, 5)]
    auc = np.mean([roc_auc_score(*kind) for kind in kinds])
    assert row["auc"] == pytest.approx(auc, abs=1e-12)
    resampled = bootstrap(kinds[0][0], {str(n): kind[1] for n, kind in enumerate(kinds)}, 200)
    samples = np.mean([each["auc"] for each in resampled.samples.values()], axis=0)
    low, high = metric_interval("auc", auc, samples, len(kinds[0][0]) // 2)
    assert [row["low"], row["high"]] == pytest.approx([low, high], abs=1e-12)
    gain = table.loc[(WITH, 5), "auc"] - table.loc[(WITHOUT, 5), "auc"]
    assert table.loc[(DIFFERENCE, 5), "auc"] == pytest.approx(gain)
    drop = {t: table.loc[(t, 0), "auc"] - table.loc[(t, 5), "auc"] for t in (WITH, WITHOUT)}
    assert table.loc[(DIFFERENCE, 5), "drop"] == pytest.approx(drop[WITH] - drop[WITHOUT])
    assert (table["low"] <= table["auc"]).all()
    assert (table["auc"] <= table["high"]).all()


def test_auc_on_test_reads_existing_results(pair, easy_data):
    evaluate([pair[WITHOUT]], easy_data, "Test", quiet, resamples=50)
    table = degradation_study.auc_on_test(pair, easy_data)
    for training, model in pair.items():
        auc = model.metrics(easy_data, "Test")["auc"]
        assert table.loc[training, "auc"] == pytest.approx(auc)
    difference = table.loc[WITH, "auc"] - table.loc[WITHOUT, "auc"]
    assert table.loc[DIFFERENCE, "auc"] == pytest.approx(difference)
    assert pair[WITHOUT].metrics(easy_data, "Test")["resamples"] == 50


def test_table_and_sentences_state_what_changed(pair, easy_data):
    severities = degradation_study.severity_auc(pair, easy_data, resamples=50)
    on_test = degradation_study.auc_on_test(pair, easy_data)
    table = evaluation_text.degradation_study_table(severities, on_test)
    assert list(table.index) == [WITHOUT, WITH, DIFFERENCE]
    assert [f"severity {severity}" in table.columns for severity in (1, 3, 5)] == [True] * 3
    severities.loc[:, ["drop_low", "drop_high"]] = [-0.03, -0.01]
    on_test.loc[DIFFERENCE] = [0.01, -0.02, 0.04]
    text = evaluation_text.summarize_degradation_study("ResNet50", severities, on_test)
    clear, unclear = text.split("\n")
    assert "severity 3" in clear
    assert clear != unclear
