import json
import shutil

import numpy as np
import pytest
import torch

from dfd_utils import cli
from dfd_utils.data.image_io import decode_untrusted
from dfd_utils.data.transforms import eval_transform
from dfd_utils.inference import predict
from dfd_utils.models.trained import load_model, read_description

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.mark.parametrize(
    ("name", "settings"),
    [("resnet50", {}), ("efficientnet_b0", {"flip_at_test": True, "instance_norm": True})],
)
def test_onnx_gives_the_models_numbers_for_any_batch(
    trained_run, easy_data, tmp_path, name, settings
):
    model, out = tmp_path / name, tmp_path / "out" / f"{name}.onnx"
    shutil.copytree(trained_run / name, model)
    (model / "model.json").write_text(json.dumps(read_description(model) | settings))
    assert cli.main(["export", "--onnx", "--model", str(model), "--out", str(out)]) == 0
    assert [path.name for path in out.parent.iterdir()] == [out.name]  # one file, none beside it
    onnx.checker.check_model(out, full_check=True)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    network, description = load_model(model)
    files = sorted((easy_data / "Test").rglob("*.jpg"))
    resize = eval_transform(description["image_size"])
    images = torch.stack([resize(decode_untrusted(file)) for file in files])
    with torch.inference_mode():
        expected = network(images).numpy()
    for batch in (1, 3, len(files)):
        logits, scores = session.run(None, {"images": images[:batch].numpy()})
        assert np.abs(logits - expected[:batch]).max() < 1e-4
    table = predict.predict(files, model)
    assert scores == pytest.approx(table["score"].astype(float).to_numpy(), abs=1e-4)
    told = session.get_modelmeta().custom_metadata_map
    assert told["classes"] == "Real,Fake"
    assert float(told["threshold"]) == description["threshold"]
    assert told["image_size"] == "32"


def test_without_the_extra_one_line_says_what_to_install(trained_run, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert cli.main(["export", "--onnx", "--model", str(trained_run)]) == 2
    assert "pip install 'dfd-utils[onnx]'" in capsys.readouterr().err
    assert not list(trained_run.rglob("*.onnx"))
