"""`fit`: what it writes, what it leaves out, and which runs it reads, continues or refuses."""

import dataclasses
import fcntl
import gc
import hashlib
import json
import multiprocessing
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torchvision.transforms import v2

from dfd_utils.config import TimeLimitReached, UserError
from dfd_utils.data import dataset, transforms
from dfd_utils.data.folder import DataFolder
from dfd_utils.evaluation.across_runs import runs_with_other_seeds
from dfd_utils.evaluation.evaluate import score_split
from dfd_utils.models.trained import TrainedModel, best_epoch
from dfd_utils.training import components, run_folder, train
from dfd_utils.training.components import train_transform
from tests.conftest import quiet

NAME = "efficientnet_b0"


@pytest.fixture
def finished(trained_run, tmp_path):
    """A copy of a finished run."""
    return shutil.copytree(trained_run / NAME, tmp_path / "finished" / NAME)


def change_config(out, settings=(), **values):
    """Change what a run's config.json records."""
    config = json.loads((out / "config.json").read_text()) | values
    config["settings"] |= dict(settings)
    (out / "config.json").write_text(json.dumps(config))


def read_config(out):
    return json.loads((out / "config.json").read_text())


def test_files_of_a_run(trained_run, quick, easy_data):
    for name in ("resnet50", NAME):
        history = pd.read_csv(trained_run / name / "history.csv")
        first_six = ["epoch", "training_loss", "accuracy", "precision", "recall", "f1score"]
        assert list(history.columns[:6]) == first_six
        assert {"auc", "degraded_auc", "temperature", "threshold"} <= set(history.columns)
        assert history["epoch"].tolist() == [1, 2]
        config = read_config(trained_run / name)
        assert config["settings"] == dataclasses.asdict(quick)
        assert config["positive_class"] == "Fake"
        assert config["data_fingerprint"] == easy_data.fingerprint
        assert json.loads((trained_run / name / "model.json").read_text())["architecture"] == name


def test_both_models_learn_an_easy_task(easy_data, quick, tmp_path):
    for name in ("resnet50", NAME):
        # With so few steps the average must have a short memory.
        longer = dataclasses.replace(quick, epochs=6, lr=1e-3, ema_decay=0.5)
        history = train.fit(name, easy_data, tmp_path / name, longer, quiet)
        assert history["auc"].max() > 0.95
        assert history["training_loss"].iloc[-1] < 0.5


def test_the_data_set_is_audited_first_and_its_exclusions_are_left_out(
    easy_data, quick, tmp_path, monkeypatch
):
    folder = shutil.copytree(easy_data.path, tmp_path / "data")
    for number in range(3):  # Train images that are also in Test
        copy = folder / "Train" / "Real" / f"copy{number}.jpg"
        shutil.copy(folder / "Test" / "Real" / f"{number:03}.jpg", copy)
    (folder / "Train" / "Fake" / "broken.jpg").write_bytes(b"")
    (folder / "Train" / "Fake" / "notes.txt").touch()
    data, lines, paths = DataFolder(folder), [], []
    original = dataset.read_image
    monkeypatch.setattr(dataset, "read_image", lambda path: paths.append(path) or original(path))
    settings = dataclasses.replace(quick, epochs=1)
    assert not data.is_audited
    train.fit(NAME, data, tmp_path / "run" / NAME, settings, lines.append)
    assert "the audit excludes Train 4, Validation 0, Test 0 images" in lines[0]
    assert data.audit_folder.name in lines[0]
    assert lines[1] == "data: skipped files that are not images: 1 .txt"
    excluded = ["Train/Fake/broken.jpg", *(f"Train/Real/copy{n}.jpg" for n in range(3))]
    config = read_config(tmp_path / "run" / NAME)
    assert config["excluded_images"] == {"Train": 4, "Validation": 0, "Test": 0}
    table = pd.read_csv(tmp_path / "run" / NAME / "excluded.csv")
    assert table["path"].tolist() == excluded
    read = {path.relative_to(folder).as_posix() for path in paths}
    assert len(read) == 48 + 16  # all of Train and Validation
    assert not read & set(excluded)


def test_cutmix_labels_are_the_shares_of_the_classes(easy_data, quick):
    settings = dataclasses.replace(quick, cutmix_probability=0.5)
    training = components.build_components(NAME, easy_data, settings)
    labels = torch.arange(8) % 2
    images = (labels * 200).to(torch.uint8).reshape(8, 1, 1, 1).expand(8, 3, 32, 32).contiguous()
    state, cut = torch.get_rng_state(), []
    for step in range(20):
        mixed, shares = training.apply_cutmix(images, labels, step)
        if shares.ndim == 1:
            assert torch.equal(mixed, images) and torch.equal(shares, labels)
            continue
        cut.append(step)
        assert torch.allclose(mixed.float().mean((1, 2, 3)) / 200, shares[:, 1], atol=1e-6)
        assert torch.allclose(shares.sum(1), torch.ones(8))
    assert 3 < len(cut) < 17
    again, _ = training.apply_cutmix(images, labels, cut[0])
    assert torch.equal(again, training.apply_cutmix(images, labels, cut[0])[0])
    assert not torch.equal(again, training.apply_cutmix(images, labels, cut[1])[0])
    assert torch.equal(state, torch.get_rng_state())  # the model's random numbers do not change


def test_without_warm_up_the_learning_rate_is_the_requested_one(easy_data, quick, tmp_path):
    settings = dataclasses.replace(quick, epochs=1, warmup_steps=0)
    history = train.fit(NAME, easy_data, tmp_path / NAME, settings, quiet)
    assert history["lr"].tolist() == [quick.lr]


def test_a_finished_run_is_only_read(trained_run, easy_data, quick):
    out = trained_run / NAME
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != ".lock"}
    lines = []
    history = train.fit(NAME, easy_data, out, quick, lines.append)
    assert len(history) == quick.epochs
    assert "already trained" in lines[-1]
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.name != ".lock"}


def test_a_finished_run_is_read_on_another_machine(finished, easy_data, quick):
    """A run in fp16, in parts of a batch, was trained on a small GPU."""
    change_config(finished, {"precision": "fp16", "micro_batch_size": 3})
    automatic = dataclasses.replace(quick, precision="auto", micro_batch_size=None)
    assert len(train.fit(NAME, easy_data, finished, automatic, quiet)) == quick.epochs
    with pytest.raises(UserError, match=r"precision fp16 \(requested fp32\)"):
        train.fit(NAME, easy_data, finished, quick, quiet)


def test_a_finished_run_is_read_after_its_exclusion_list_has_changed(finished, easy_data, quick):
    lines = []
    changed = easy_data.with_exclusions(["Train/Real/000.jpg"])
    history = train.fit(NAME, changed, finished, quick, lines.append)
    assert len(history) == quick.epochs
    assert any("the exclusion list has changed since this run began" in line for line in lines)
    lines.clear()  # an image of Test takes no part in a training
    changed = easy_data.with_exclusions(["Test/Real/000.jpg"])
    train.fit(NAME, changed, finished, quick, lines.append)
    assert not any("has changed" in line for line in lines)


@pytest.mark.parametrize(("setting", "value"), [("lr", 0.5), ("seed", 1), ("epochs", 1)])
def test_other_settings_are_refused_by_name(trained_run, easy_data, quick, setting, value):
    other = dataclasses.replace(quick, **{setting: value})
    message = rf"other settings: {setting} {getattr(quick, setting)} \(requested {value}\);"
    with pytest.raises(UserError, match=message):
        train.fit(NAME, easy_data, trained_run / NAME, other, quiet)


def test_another_model_is_refused_by_name(trained_run, easy_data, quick):
    with pytest.raises(UserError, match="contains a run of efficientnet_b0"):
        train.fit("resnet50", easy_data, trained_run / NAME, quick, quiet)


def test_other_images_are_refused_with_both_fingerprints(finished, easy_data, quick, tmp_path):
    folder = shutil.copytree(easy_data.path, tmp_path / "easy")
    (folder / "Train" / "Real" / "000.jpg").unlink()
    other = DataFolder(folder)
    message = rf"'easy', fingerprint {easy_data.fingerprint}.*'easy' now.*{other.fingerprint}"
    with pytest.raises(UserError, match=message):
        train.fit(NAME, other, finished, quick, quiet)


def test_a_run_of_an_earlier_version_is_refused_but_its_model_can_be_used(
    finished, easy_data, quick
):
    config = read_config(finished)
    del config["requested_weights"]
    (finished / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"{finished}: .*earlier version"):
        train.fit(NAME, easy_data, finished, quick, quiet)
    table = TrainedModel(finished).score(
        easy_data.split("Test", transforms.eval_transform(quick.image_size))
    )
    assert len(table) == 16


def test_unavailable_imagenet_weights_make_a_training_from_scratch(
    easy_data, quick, tmp_path, monkeypatch
):
    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    settings = dataclasses.replace(quick, epochs=1, weights="imagenet")
    out, lines = tmp_path / "a" / NAME, []
    with pytest.raises(TimeLimitReached):
        train.fit(NAME, easy_data, out, dataclasses.replace(settings, max_hours=1e-9), lines.append)
    assert "training from scratch" in lines[0]
    config = read_config(out)
    assert (config["settings"]["weights"], config["requested_weights"]) == ("none", "imagenet")
    assert config["initial_weights"] == "none"
    # The run began without them, so that nothing is downloaded from now on.
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", None)
    train.fit(NAME, easy_data, out, settings, lines.append)
    scratch = dataclasses.replace(settings, weights="none", seed=1)
    train.fit(NAME, easy_data, tmp_path / "b" / NAME, scratch, quiet)
    seeds = [run.folder for run in runs_with_other_seeds(TrainedModel(out))]
    assert seeds == [out, tmp_path / "b" / NAME]


def test_a_file_of_weights_is_identified_by_its_content(easy_data, quick, tmp_path, trained_run):
    first = shutil.copy(trained_run / NAME / "model.safetensors", tmp_path / "first.safetensors")
    settings = dataclasses.replace(quick, epochs=1, weights=str(first))
    out = tmp_path / NAME
    train.fit(NAME, easy_data, out, settings, quiet)
    digest = hashlib.sha256(first.read_bytes()).hexdigest()
    assert read_config(out)["initial_weights"] == f"sha256:{digest}"
    moved = first.rename(tmp_path / "moved.safetensors")
    same = dataclasses.replace(settings, weights=str(moved))
    assert len(train.fit(NAME, easy_data, out, same, quiet)) == 1
    shutil.copy(out / "model.safetensors", first)
    with pytest.raises(UserError, match=r"weights .*first.safetensors.*whose content has changed"):
        train.fit(NAME, easy_data, out, settings, quiet)


def test_weights_of_another_architecture_are_refused_at_once(
    easy_data, quick, tmp_path, trained_run, monkeypatch
):
    monkeypatch.setattr(train, "autotune", None)  # not even speed trials
    weights = str(trained_run / "resnet50" / "model.safetensors")
    settings = dataclasses.replace(quick, weights=weights, precision="auto")
    data = DataFolder(shutil.copytree(easy_data.path, tmp_path / "data"))
    with pytest.raises(UserError, match=r"model\.safetensors: its weights are not those of a eff"):
        train.fit(NAME, data, tmp_path / NAME, settings, quiet)
    assert not data.is_audited
    assert not (tmp_path / NAME / "config.json").exists()


def test_no_worker_outlives_its_training(easy_data, quick, tmp_path):
    settings = dataclasses.replace(quick, epochs=1, num_workers=1)
    before = set(multiprocessing.active_children())
    gc.disable()  # it would end them too, much later
    try:
        train.fit(NAME, easy_data, tmp_path / NAME, settings, quiet)
        assert set(multiprocessing.active_children()) <= before
    finally:
        gc.enable()


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


def test_the_saved_weights_are_those_of_the_best_epoch(easy_data, quick, tmp_path):
    """The saved model gives both AUCs of the best row of the history."""
    out = tmp_path / "resnet50"
    settings = dataclasses.replace(quick, flip_at_test=True, instance_norm=True)
    history = train.fit("resnet50", easy_data, out, settings, quiet)
    best = history.set_index("epoch").loc[best_epoch(history)]
    model = TrainedModel(out)
    table = score_split(model, easy_data, "Validation")
    assert np.isclose(roc_auc_score(table["label"], table["score"]), best["auc"])
    network = model.load()
    assert network.flip_at_test and network.instance_norm
    degraded = v2.Compose([transforms.RandomDegradation(), transforms.eval_transform(32)])
    view = easy_data.split("Validation", degraded, seed=0)
    clean = easy_data.split("Validation", transforms.eval_transform(32))
    images = torch.stack([image for image, _ in map(view.__getitem__, range(len(view)))])
    changed = sum(not torch.equal(image, clean[i][0]) for i, image in enumerate(images))
    assert changed > 0.7 * len(view)
    with torch.inference_mode():
        logits = network(images)
    assert np.isclose(
        roc_auc_score(view.labels, logits[:, 1] - logits[:, 0]), best["degraded_auc"], atol=0.02
    )
    assert set(load_file(out / "model.safetensors")) >= {"backbone.fc.weight"}


def test_an_image_that_breaks_after_the_audit_ends_the_run_with_its_name(
    easy_data, quick, tmp_path
):
    data = DataFolder(shutil.copytree(easy_data.path, tmp_path / "data"))
    assert data.audit_summary["unreadable"] == 0
    (data.path / "Train" / "Fake" / "003.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"Train/Fake/003\.jpg"):
        train.fit(NAME, data, tmp_path / "out", quick, quiet)
    assert not (tmp_path / "out" / "model.json").exists()


def test_a_loss_that_is_not_finite_ends_the_run(easy_data, quick, tmp_path):
    """Lower lr, says its message; and that works, because nothing has been saved yet."""
    diverging = dataclasses.replace(quick, lr=1e30, warmup_steps=1)
    out, copy = tmp_path / NAME, easy_data.with_exclusions(["Train/Real/000.jpg"])
    with pytest.raises(UserError, match=rf"{out}: .* not finite in epoch 1; lower lr$"):
        train.fit(NAME, copy, out, diverging, quiet)
    lines = []
    settings = dataclasses.replace(quick, epochs=1)
    assert len(train.fit(NAME, easy_data, out, settings, lines.append)) == 1
    assert not any("exclusion list has changed" in line for line in lines)
    assert read_config(out)["settings"] == dataclasses.asdict(settings)
    assert read_config(out)["excluded_images"]["Train"] == 0


def test_a_loss_that_is_not_finite_after_a_checkpoint_asks_for_another_folder(
    easy_data, quick, tmp_path, monkeypatch
):
    original = train.train_one_epoch

    def diverge(training, state, after_step):
        loss = original(training, state, after_step)
        return loss if state.epoch == 1 else float("inf")

    monkeypatch.setattr(train, "train_one_epoch", diverge)
    message = "epoch 2; lower lr, and choose another run name, or delete that folder"
    with pytest.raises(UserError, match=message):
        train.fit(NAME, easy_data, tmp_path / NAME, quick, quiet)


def test_outputs_that_are_not_finite_end_the_run(easy_data, quick, tmp_path, monkeypatch):
    def infinite(*args):
        labels, logits = train_predict_logits(*args)
        return labels, logits + np.array([np.nan, 0], np.float32)

    train_predict_logits = train.predict_logits
    monkeypatch.setattr(train, "predict_logits", infinite)
    with pytest.raises(UserError, match="an output of the model is not finite in epoch 1; lower"):
        train.fit(NAME, easy_data, tmp_path / NAME, quick, quiet)


def test_a_second_process_is_refused(easy_data, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "LOCK_TIMEOUT", 0)
    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process"):
            train.fit(NAME, easy_data, tmp_path, quick, quiet)


def test_training_crops_are_parts_of_the_resized_image(easy_data, quick):
    profile = dataclasses.replace(quick, crop=0.75)
    whole, _ = easy_data.split("Train", transforms.eval_transform(32))[0]
    crops = easy_data.split("Train", train_transform(profile), seed=0)
    seen = set()
    for epoch in range(8):
        crops.epoch = epoch
        crop, _ = crops[0]
        windows = whole.unfold(1, 24, 1).unfold(2, 24, 1)  # [3, 9, 9, 24, 24]
        found = [(windows == part[:, None, None]).all((0, 3, 4)) for part in (crop, crop.flip(-1))]
        assert any(match.any() for match in found)
        seen.add(crop.numpy().tobytes())
    assert len(seen) > 4
