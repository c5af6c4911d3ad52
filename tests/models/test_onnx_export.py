import json
import shutil

import numpy as np
import pytest
import torch

from dfd_utils import cli
from dfd_utils.data.dataset import read_image
from dfd_utils.data.transforms import eval_transform
from dfd_utils.inference import predict
from dfd_utils.models.trained import TrainedModel

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
    folder, out = tmp_path / name, tmp_path / "out" / f"{name}.onnx"
    shutil.copytree(trained_run / name, folder)
    described = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(described | settings))
    assert cli.main(["export", "--onnx", "--model", str(folder), "--out", str(out)]) == 0
    assert [path.name for path in out.parent.iterdir()] == [out.name]  # one file, none beside it
    onnx.checker.check_model(out, full_check=True)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    model = TrainedModel(folder)
    files = sorted((easy_data.path / "Test").rglob("*.jpg"))
    resize = eval_transform(model.description.image_size)
    images = torch.stack([resize(read_image(file)) for file in files])
    with torch.inference_mode():
        expected = model.load()(images).numpy()
    for batch in (1, 3, len(files)):
        logits, scores = session.run(None, {"images": images[:batch].numpy()})
        np.testing.assert_allclose(logits, expected[:batch], rtol=1e-5, atol=1e-4)
    table = predict.predict(files, folder)
    assert scores == pytest.approx(table["score"].astype(float).to_numpy(), abs=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["classes"] == "Real,Fake"
    assert float(metadata["threshold"]) == model.description.threshold
    assert metadata["image_size"] == "32"


def test_without_the_extra_one_line_says_what_to_install(trained_run, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert cli.main(["export", "--onnx", "--model", str(trained_run)]) == 2
    assert "pip install 'dfd-utils[onnx]'" in capsys.readouterr().err
    assert not list(trained_run.rglob("*.onnx"))
