"""Automatic settings: the precision that trains fastest, and the batch that fits into memory."""

import dataclasses
import json

import pytest
import torch

from dfd_utils.config import UserError
from dfd_utils.runtime import accelerator
from dfd_utils.training import autotune, components

NAME = "efficientnet_b0"
cpu_only = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")


@pytest.fixture
def automatic(quick, monkeypatch, tmp_path):
    monkeypatch.setattr(autotune, "BUILD_DIR", tmp_path)
    return dataclasses.replace(quick, precision="auto")


def test_the_fastest_precision_is_measured_once_and_kept(automatic, tmp_path, monkeypatch):
    lines = []
    first = autotune.autotune(NAME, automatic, lines.append)
    path = tmp_path / "tuning.json"
    tuning = json.loads(path.read_text())
    (rates,) = tuning.values()
    assert len(rates) == 2
    assert all(rate > 0 for rate in rates.values())
    assert first.precision in rates
    assert "found the fastest precision" in lines[0]
    assert f"training in {first.precision}" in lines[1]
    # From now on the file decides.
    monkeypatch.setattr(autotune, "create_model", None)
    for name in rates:
        path.write_text(
            json.dumps({key: dict.fromkeys(rates, 1.0) | {name: 9.0} for key in tuning})
        )
        assert autotune.autotune(NAME, automatic, lines.append).precision == name


def test_rates_of_an_earlier_version_are_measured_again(automatic, tmp_path):
    path = tmp_path / "tuning.json"
    autotune.autotune(NAME, automatic, print)
    earlier = {"fp32 channels_last": 1.0, "bf16 channels_last": 9.0, "bf16 contiguous": 1.0}
    tuning = dict.fromkeys(json.loads(path.read_text()), earlier)
    path.write_text(json.dumps(tuning | {"another machine": earlier}))
    assert autotune.autotune(NAME, automatic, print).precision in ("fp32", "bf16", "fp16")
    (key,) = tuning
    measured = json.loads(path.read_text())
    assert not set(measured[key]) & set(earlier)
    assert measured["another machine"] == earlier


@cpu_only
def test_other_instructions_of_the_processor_are_measured_by_themselves(
    automatic, tmp_path, monkeypatch
):
    monkeypatch.setattr(autotune, "_rates", lambda *_: dict.fromkeys(autotune._candidates(), 1.0))
    autotune.autotune(NAME, automatic, print)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    autotune.autotune(NAME, automatic, print)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    autotune.autotune(NAME, automatic, print)
    assert len(json.loads((tmp_path / "tuning.json").read_text())) == 3


def test_a_gain_within_the_noise_does_not_leave_fp32(automatic, monkeypatch):
    rates = dict.fromkeys(autotune._candidates(), 105.0) | {"fp32": 100.0}
    monkeypatch.setattr(autotune, "_rates", lambda *_: rates)
    assert autotune.autotune(NAME, automatic, print).precision == "fp32"


def timed_steps(monkeypatch, seconds_per_image: dict) -> list:
    """Let a training step take so long as `seconds_per_image` says; return the list of steps."""
    clock, steps = [0.0], []

    def step(self, dtype, images, image_size):
        steps.append((dtype, images, image_size))
        clock[0] += images * seconds_per_image[dtype]

    monkeypatch.setattr(autotune._Step, "__call__", step)
    monkeypatch.setattr(autotune.time, "perf_counter", lambda: clock[0])
    return steps


@cpu_only
def test_an_emulated_precision_is_given_up_after_a_step_of_a_few_small_images(monkeypatch):
    steps = timed_steps(monkeypatch, {None: 0.03, torch.bfloat16: 0.3})
    rates = autotune._rates(NAME, 224)
    assert rates["fp32"] == pytest.approx(1 / 0.03) and rates["bf16"] == pytest.approx(1 / 0.3)
    assert steps == [(None, 6, 64), (torch.bfloat16, 6, 64)]


@cpu_only
@pytest.mark.parametrize(("image_size", "seconds", "limit"), [(64, 0.03, 5), (224, 0.5, 20)])
def test_the_trials_of_a_slow_machine_are_bounded(monkeypatch, image_size, seconds, limit):
    steps = timed_steps(monkeypatch, {None: seconds, torch.bfloat16: seconds / 2})
    rates = autotune._rates(NAME, image_size)
    assert rates["bf16"] == pytest.approx(2 / seconds)
    spent = sum(n * (seconds if dtype is None else seconds / 2) for dtype, n, _ in steps)
    assert spent < limit
    assert {(dtype, size) for dtype, _, size in steps[2:]} == {
        (None, image_size), (torch.bfloat16, image_size)
    }  # fmt: skip


def test_a_requested_precision_is_not_measured(quick, monkeypatch):
    monkeypatch.setattr(autotune, "_rates", None)
    profile = dataclasses.replace(quick, micro_batch_size=4)
    assert autotune.autotune(NAME, profile, print) == profile


def test_micro_batches_give_the_gradients_of_the_whole_batch(easy_data, quick):
    gradients = []
    for micro_batch_size in (None, 3):
        settings = dataclasses.replace(quick, micro_batch_size=micro_batch_size)
        training = components.build_components(NAME, easy_data, settings)
        training.model.eval()  # batch normalisation depends on the micro-batch
        images, labels = next(iter(training.train_loader))
        loss = training.accumulate_gradients(images, labels)
        gradients.append([loss, *(p.grad for p in training.model.parameters())])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-6)


@cpu_only
def test_fp16_requires_a_gpu_to_train_but_not_to_score(quick):
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        autotune.autotune(NAME, dataclasses.replace(quick, precision="fp16"), print)
    assert accelerator.make_accelerator("fp16").mixed_precision == "no"


@pytest.mark.parametrize(("memory", "expected"), [(37, 36), (100, 40), (0, None)])
def test_the_batch_that_fits_is_found(quick, monkeypatch, memory, expected):
    def step(self, dtype, images, image_size):
        if images > memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(autotune._Step, "__call__", step)
    if expected is None:
        with pytest.raises(UserError, match="not even one image fits"):
            autotune.fitting_batch_size(NAME, quick, 40)
    else:
        assert autotune.fitting_batch_size(NAME, quick, 40) == expected
