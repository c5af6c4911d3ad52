import dataclasses
import json

import pytest
import torch

from dfd_utils import precision
from dfd_utils.config import UserError

cpu_only = pytest.mark.skipif(torch.cuda.is_available(), reason="speaks of machines without a GPU")


def test_the_fastest_is_measured_once_and_kept(quick, monkeypatch, tmp_path):
    monkeypatch.setattr(precision, "BUILD_DIR", tmp_path)
    automatic = dataclasses.replace(quick, precision="auto")
    lines = []
    first = precision.resolve_precision("efficientnet_b0", automatic, lines.append)
    kept = json.loads((tmp_path / "precision.json").read_text())
    (rates,) = kept.values()
    assert all(rate > 0 for rate in rates.values())
    assert first.precision in rates
    assert first.precision in lines[0]
    # what is kept decides the next time: turn it round
    other = "fp32" if first.precision != "fp32" else "bf16"
    place = tmp_path / "precision.json"
    place.write_text(json.dumps({key: {"fp32": 1.0, other: 9.0} for key in kept}))
    again = precision.resolve_precision("efficientnet_b0", automatic, lines.append)
    assert again.precision == other


def test_a_gain_within_the_noise_does_not_leave_fp32(quick, monkeypatch, tmp_path):
    monkeypatch.setattr(precision, "BUILD_DIR", tmp_path)
    monkeypatch.setattr(precision, "_measured", lambda *_: {"fp32": 100.0, "bf16": 105.0})
    automatic = dataclasses.replace(quick, precision="auto")
    assert precision.resolve_precision("resnet50", automatic, print).precision == "fp32"


@cpu_only
def test_fp16_without_a_gpu(quick):
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        precision.resolve_precision("resnet50", dataclasses.replace(quick, precision="fp16"), print)
    # a model that was trained in fp16 is used all the same
    assert precision.make_accelerator("fp16").mixed_precision == "no"
