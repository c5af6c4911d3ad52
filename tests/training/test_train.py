import dataclasses
import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from dfd_utils.config import UserError
from dfd_utils.data import transforms
from dfd_utils.data.dataset import load_split
from dfd_utils.models.trained import best_epoch, load_model
from dfd_utils.training import components, run_folder, train

TIMING = ["seconds", "images_per_second"]


def quiet(_):
    return None


def assert_same_run(one, two):
    pd.testing.assert_frame_equal(
        *(pd.read_csv(run / "history.csv").drop(columns=TIMING) for run in (one, two))
    )
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    assert (one / "model.json").read_text() == (two / "model.json").read_text()


def test_files_of_a_run(trained_run, quick):
    for name in ("resnet50", "efficientnet_b0"):
        history = pd.read_csv(trained_run / name / "history.csv")
        first_six = ["epoch", "training_loss", "accuracy", "precision", "recall", "f1score"]
        assert list(history.columns[:6]) == first_six
        assert history["epoch"].tolist() == [1, 2]
        told = json.loads((trained_run / name / "config.json").read_text())
        found = dataclasses.replace(quick, memory_format="channels_last", compiled=False)
        assert told["settings"] == dataclasses.asdict(found)
        assert told["positive_class"] == "Fake"
        assert json.loads((trained_run / name / "model.json").read_text())["architecture"] == name


def test_both_models_learn_what_is_easy(easy_data, quick, tmp_path):
    for name in ("resnet50", "efficientnet_b0"):
        # a short average, for these few steps are over before a long one forgets the start
        longer = dataclasses.replace(quick, epochs=6, lr=1e-3, ema_decay=0.5)
        history = train.fit(name, easy_data, tmp_path / name, longer, quiet)
        assert history["auc"].max() > 0.95
        assert history["training_loss"].iloc[-1] < 0.5


def test_cut_images_have_the_labels_of_their_parts(easy_data, quick):
    settings = {"cutmix_probability": 0.5, "memory_format": "contiguous"}
    settings = dataclasses.replace(quick, **settings)
    training = components.build_components("efficientnet_b0", easy_data, settings, quiet)
    labels = torch.arange(8) % 2
    images = (labels * 200).to(torch.uint8).reshape(8, 1, 1, 1).expand(8, 3, 32, 32).contiguous()
    state, cut = torch.get_rng_state(), []
    for step in range(20):
        mixed, shares = training.mix(images, labels, step)
        if shares.ndim == 1:
            assert torch.equal(mixed, images) and torch.equal(shares, labels)
            continue
        cut.append(step)
        assert torch.allclose(mixed.float().mean((1, 2, 3)) / 200, shares[:, 1], atol=1e-6)
        assert torch.allclose(shares.sum(1), torch.ones(8))
    assert 3 < len(cut) < 17
    again, _ = training.mix(images, labels, cut[0])
    assert torch.equal(again, training.mix(images, labels, cut[0])[0])
    assert not torch.equal(again, training.mix(images, labels, cut[1])[0])
    assert torch.equal(state, torch.get_rng_state())  # the model's own draws stay as they were


def test_a_finished_run_is_not_trained_again(trained_run, easy_data, quick):
    out = trained_run / "resnet50"
    before = (out / "model.safetensors").stat().st_mtime_ns
    history = train.fit("resnet50", easy_data, out, quick, quiet)
    assert len(history) == quick.epochs
    assert (out / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(("setting", "value"), [("lr", 0.5), ("seed", 1), ("epochs", 1)])
def test_other_settings_are_refused_and_named(trained_run, easy_data, quick, setting, value):
    other = dataclasses.replace(quick, **{setting: value})
    with pytest.raises(UserError, match=f"{setting}.*{value}"):
        train.fit("resnet50", easy_data, trained_run / "resnet50", other, quiet)


def test_no_worker_outlives_its_training(easy_data, quick, tmp_path):
    settings = dataclasses.replace(quick, epochs=1, num_workers=1)
    before = set(multiprocessing.active_children())
    gc.disable()  # it would end them too, much later
    try:
        train.fit("efficientnet_b0", easy_data, tmp_path / "efficientnet_b0", settings, quiet)
        assert set(multiprocessing.active_children()) <= before
    finally:
        gc.enable()


def test_other_data_are_refused(trained_run, tiny_sample, quick):
    with pytest.raises(UserError, match="data_fingerprint"):
        train.fit("resnet50", tiny_sample, trained_run / "resnet50", quick, quiet)


def test_resume_after_kill_is_exact(easy_data, quick, tmp_path):
    """Killed in its second epoch and called again, a run ends bit for bit as one never broken."""
    settings = dataclasses.replace(quick, epochs=3, degradation_probability=0.5, num_workers=1)
    train.fit("efficientnet_b0", easy_data, tmp_path / "whole" / "efficientnet_b0", settings, quiet)
    script = (
        "import sys; from pathlib import Path; from dfd_utils import config; from dfd_utils.training import train\n"
        "fields = {k: v for k, v in eval(sys.argv[3]).items() if k != 'name'}\n"
        "profile = config.get_profile('sample', **fields)\n"
        "train.fit('efficientnet_b0', Path(sys.argv[1]), Path(sys.argv[2]), profile)\n"
    )
    broken = tmp_path / "broken" / "efficientnet_b0"
    command = [sys.executable, "-u", "-c", script, str(easy_data), str(broken)]
    command.append(repr(dataclasses.asdict(settings)))
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        assert any("epoch 1/3" in line for line in run.stdout)
        time.sleep(0.2)
        os.killpg(run.pid, signal.SIGKILL)
    assert not (broken / "model.json").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "going on from checkpoint" in again.stdout
    assert "epoch 1/3" not in again.stdout
    assert_same_run(tmp_path / "whole" / "efficientnet_b0", broken)


def test_averaged_weights_are_an_exponential_moving_average():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=components._ema_update(0.9), use_buffers=True
    )
    expected = None
    for count in range(60):
        with torch.no_grad():
            model[0].weight.copy_(torch.randn(2, 2))
        averaged.update_parameters(model)
        decay = min(0.9, (1 + count) / (10 + count))
        new = model[0].weight.detach().clone()
        expected = new if count == 0 else decay * expected + (1 - decay) * new
    torch.testing.assert_close(averaged.module[0].weight, expected)


def test_kept_weights_are_those_of_the_best_epoch(easy_data, quick, tmp_path):
    """The saved model gives both AUCs of the best row of the history."""
    from sklearn.metrics import roc_auc_score

    from dfd_utils.evaluation.evaluate import score_split

    out = tmp_path / "resnet50"
    settings = dataclasses.replace(quick, flip_at_test=True, instance_norm=True)
    history = train.fit("resnet50", easy_data, out, settings, quiet)
    best = history.set_index("epoch").loc[best_epoch(history)]
    table = score_split(out, easy_data, "Validation")
    assert np.isclose(roc_auc_score(table["label"], table["score"]), best["auc"])
    model, _ = load_model(out)
    assert model.flip_at_test and model.instance_norm
    view = load_split(easy_data, "Validation", transforms.degraded_transform(32), seed=0)
    clean = load_split(easy_data, "Validation", transforms.eval_transform(32))
    images = torch.stack([image for image, _ in map(view.__getitem__, range(len(view)))])
    changed = sum(not torch.equal(image, clean[i][0]) for i, image in enumerate(images))
    assert changed > 0.7 * len(view)
    with torch.inference_mode():
        logits = model(images)
    assert np.isclose(
        roc_auc_score(view.labels, logits[:, 1] - logits[:, 0]), best["degraded_auc"], atol=0.02
    )
    assert set(load_file(out / "model.safetensors")) >= {"backbone.fc.weight"}


def test_broken_training_image_ends_the_run_with_its_name(easy_data, quick, tmp_path):
    import shutil

    shutil.copytree(easy_data, tmp_path / "data")
    (tmp_path / "data" / "Train" / "Fake" / "003.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"Train/Fake/003\.jpg"):
        train.fit("resnet50", tmp_path / "data", tmp_path / "out", quick, quiet)
    assert not (tmp_path / "out" / "model.json").exists()


def test_loss_that_is_not_finite_ends_the_run(easy_data, quick, tmp_path):
    mad = dataclasses.replace(quick, lr=1e30, warmup_steps=1)
    with pytest.raises(UserError, match="not finite"):
        train.fit("resnet50", easy_data, tmp_path / "resnet50", mad, quiet)


def test_a_second_process_is_told_to_wait(easy_data, quick, tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(run_folder, "PATIENCE", 0)
    (tmp_path / ".lock").touch()
    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process"):
            train.fit("resnet50", easy_data, tmp_path, quick, quiet)
