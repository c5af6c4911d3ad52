import dataclasses
import json

import pytest
import torch

from dfd_utils.config import UserError
from dfd_utils.runtime import accelerator
from dfd_utils.training import autotune, components

cpu_only = pytest.mark.skipif(torch.cuda.is_available(), reason="speaks of machines without a GPU")


@pytest.fixture
def automatic(quick, monkeypatch, tmp_path):
    monkeypatch.setattr(autotune, "BUILD_DIR", tmp_path)
    return dataclasses.replace(quick, precision="auto")


def test_the_fastest_is_measured_once_and_kept(automatic, tmp_path):
    lines = []
    first = autotune.tune("efficientnet_b0", automatic, log=lines.append)
    place = tmp_path / "tuning.json"
    kept = json.loads(place.read_text())
    (rates,) = kept.values()
    assert len(rates) == 4
    assert all(rate > 0 for rate in rates.values())
    assert f"{first.precision} {first.memory_format}" in rates
    assert first.precision in lines[0]
    assert first.compiled is False
    # what is kept decides the next time: make the others faster
    for name in rates:
        faster = {**dict.fromkeys(rates, 1.0), name: 9.0}
        place.write_text(json.dumps(dict.fromkeys(kept, faster)))
        again = autotune.tune("efficientnet_b0", automatic, log=lines.append)
        assert f"{again.precision} {again.memory_format}" == name


def test_a_gain_within_the_noise_does_not_leave_fp32(automatic, monkeypatch):
    rates = {"fp32 channels_last": 100.0, "bf16 channels_last": 105.0}
    monkeypatch.setattr(autotune, "_rates", lambda *_: rates)
    assert autotune.tune("resnet50", automatic, log=print).precision == "fp32"


@pytest.mark.parametrize(("gain", "images", "expected"), [
    (1.5, 10**6, True), (1.05, 10**6, False), (1.5, 1000, False),
])  # fmt: skip
def test_compiled_only_where_long_and_worth_it(automatic, monkeypatch, gain, images, expected):
    asked = []

    def rates(name, size, candidates=None):
        asked.append(candidates)
        return {"fp32 channels_last compiled": 10 * gain} if candidates else dict(plain)

    plain = {"fp32 channels_last": 10.0}
    monkeypatch.setattr(autotune, "_rates", rates)
    assert autotune.tune("resnet50", automatic, images, print).compiled is expected
    assert (len(asked) == 2) is (images == 10**6)  # else it is not even measured
    autotune.tune("resnet50", automatic, images, print)
    assert len(asked) <= 2


def test_a_given_precision_is_not_measured(quick, monkeypatch):
    monkeypatch.setattr(autotune, "_rates", None)
    tuned = autotune.tune("resnet50", quick, 10**9, print)
    assert (tuned.precision, tuned.memory_format, tuned.compiled) == (
        "fp32", "channels_last", False,
    )  # fmt: skip


def test_parts_of_a_batch_give_the_gradients_of_the_whole(easy_data, quick):
    gradients = []
    for micro_batch_size in (None, 3):
        settings = dataclasses.replace(
            quick, micro_batch_size=micro_batch_size, memory_format="contiguous"
        )
        training = components.build_components("efficientnet_b0", easy_data, settings, print)
        training.model.eval()  # batch normalisation sees a part alone
        images, labels = next(iter(training.train_loader))
        loss = training.backward(images, labels)
        gradients.append([loss, *(p.grad for p in training.model.parameters())])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-6)


@cpu_only
def test_fp16_without_a_gpu(quick):
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        autotune.tune("resnet50", dataclasses.replace(quick, precision="fp16"), log=print)
    # a model that was trained in fp16 is used all the same
    assert accelerator.make_accelerator("fp16").mixed_precision == "no"


@pytest.mark.parametrize(("memory", "expected"), [(37, 36), (100, 40), (0, None)])
def test_the_batch_that_fits_is_found(quick, monkeypatch, memory, expected):
    def step(self, images):
        if images > memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(autotune._Step, "__call__", step)
    profile = dataclasses.replace(quick, memory_format="channels_last")
    if expected is None:
        with pytest.raises(UserError, match="not even one image fits"):
            autotune.fitting_batch_size("efficientnet_b0", profile, 40)
    else:
        assert autotune.fitting_batch_size("efficientnet_b0", profile, 40) == expected
