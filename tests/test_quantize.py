import json
import shutil
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dfd_utils import cli, demo, metrics
from dfd_utils.compare import read_predictions
from dfd_utils.models import find_models, load_model, read_description

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
# Not importorskip, whose own import would come before the product's.
pytestmark = pytest.mark.skipif(not find_spec("openvino"), reason="the extra int8 is not installed")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def both(trained_run, easy_data, tmp_path_factory):
    """A model and its int8 copy."""
    model, copy = trained_run / "resnet50", tmp_path_factory.mktemp("int8") / "resnet50"
    command = ["quantize", "--model", str(model), "--data", str(easy_data), "--out", str(copy)]
    assert cli.main(command) == 0
    return model, copy


def test_the_copy_scores_nearly_as_the_model_does(both, easy_data, capsys):
    tables = []
    for folder in both:
        assert cli.main(["evaluate", "--data", str(easy_data), str(folder)]) == 0
        tables.append(read_predictions(folder / "predictions_Test.csv"))
    exact, copied = (np.log(t["score"] / (1 - t["score"])) for t in tables)  # margins / temperature
    temperatures = [read_description(folder)["temperature"] for folder in both]
    exact, copied = exact * temperatures[0], copied * temperatures[1]
    assert not np.array_equal(exact, copied)
    assert np.corrcoef(exact, copied)[0, 1] > 0.99
    assert np.abs(copied - exact).max() < 0.15 * (exact.max() - exact.min())
    for folder, table in zip(both, tables, strict=True):
        told = json.loads((folder / "metrics.json").read_text())["Test"]
        assert told["auc"] == pytest.approx(roc_auc_score(table["label"], table["score"]))


@pytest.fixture(scope="module")
def otherwise_described(both, easy_data, tmp_path_factory):
    """An int8 copy of the same weights with other settings."""
    folder = tmp_path_factory.mktemp("described")
    model, copy = folder / "resnet50", folder / "int8"
    shutil.copytree(both[0], model)
    settings = {"temperature": 7.0, "threshold": 0.1, "instance_norm": True}
    (model / "model.json").write_text(json.dumps(read_description(model) | settings))
    command = ["quantize", "--model", str(model), "--data", str(easy_data), "--out", str(copy)]
    assert cli.main(command) == 0
    return copy


def test_instance_norm_is_not_computed_in_8_bits(otherwise_described):
    nodes = onnx.load(otherwise_described / "model.onnx").graph.node
    source = {output: node.op_type for node in nodes for output in node.output}
    norms = [node for node in nodes if node.op_type == "InstanceNormalization"]
    assert norms
    assert all(source[node.input[0]] != "DequantizeLinear" for node in norms)
    assert any(source.get(node.input[0]) == "DequantizeLinear" for node in nodes)


def test_it_is_calibrated_by_its_own_scores_of_validation(otherwise_described, easy_data):
    copy = otherwise_described
    command = ["evaluate", "--data", str(easy_data), "--split", "Validation", str(copy)]
    assert cli.main(command) == 0
    described, table = read_description(copy), read_predictions(copy / "predictions_Validation.csv")
    labels, scores = table["label"], table["score"]
    threshold = metrics.choose_threshold(labels, scores)
    assert described["threshold"] == pytest.approx(threshold, rel=1e-3)  # scores are rounded
    margin = np.log(scores / (1 - scores)) * described["temperature"]
    temperature = metrics.fit_temperature(labels, margin)
    assert described["temperature"] == pytest.approx(temperature, rel=1e-3)


def test_nothing_is_told_to_the_makers_of_openvino(both):
    assert sys.modules["openvino_telemetry"] is None


def test_it_is_a_quarter_of_the_size_and_a_model_like_any_other(both, easy_data, capsys):
    model, copy = both
    assert find_models(copy) == [copy]
    assert (copy / "model.onnx").stat().st_size < (model / "model.safetensors").stat().st_size / 3
    pictures = str(easy_data / "Test" / "Fake")
    assert cli.main(["predict", "--model", str(copy), "--format", "json", pictures]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    table = read_predictions(copy / "predictions_Test.csv")
    assert [row["score"] for row in rows] == pytest.approx(table["score"][table["label"] == 1])


def test_training_data_are_known_by_its_own_features(both, easy_data):
    from dfd_utils.out_of_distribution import read_training_data

    exact, copied = (read_training_data(folder) for folder in both)
    assert not exact.mean.equal(copied.mean)
    assert np.corrcoef(exact.mean, copied.mean)[0, 1] > 0.99


def test_what_an_int8_model_cannot_do_is_said_in_a_line(both, easy_data, tmp_path, capsys):
    _, copy = both
    command = ["quantize", "--model", str(copy), "--data", str(easy_data)]
    assert cli.main([*command, "--out", str(tmp_path / "again")]) == 2
    assert "int8 already" in capsys.readouterr().err
    assert cli.main(["export", "--onnx", "--model", str(copy)]) == 2
    assert "ONNX already" in capsys.readouterr().err
    pictures = str(easy_data / "Test")
    maps = ["--explain", str(tmp_path / "maps"), pictures]
    assert cli.main(["predict", "--model", str(copy), *maps]) == 2
    assert "no heat maps" in capsys.readouterr().err


def test_the_local_page_shows_it_without_a_heat_map(both, easy_data):
    picture = next((easy_data / "Test" / "Fake").iterdir())
    shown = [demo.judge(picture, demo.load_run(folder.parent)) for folder in both]
    assert [page.count("probability of Fake") for page in shown] == [2, 1]
    same = [page.count(page.split('src="')[1].split('"')[0]) for page in shown]
    assert same == [1, 2]  # the picture as it is: once as given, and once instead of the map


def test_a_model_that_is_there_is_kept(both, easy_data, capsys):
    model, copy = both
    before = (copy / "model.onnx").read_bytes()
    command = ["quantize", "--model", str(model), "--data", str(easy_data), "--out", str(copy)]
    assert cli.main(command) == 2
    assert "holds a model already" in capsys.readouterr().err
    assert (copy / "model.onnx").read_bytes() == before


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_file_is_named(both, easy_data, tmp_path, capsys, damage):
    _, copy = both
    for name in ("model.json", "model.onnx"):
        (tmp_path / name).write_bytes((copy / name).read_bytes())
    if damage == "missing":
        (tmp_path / "model.onnx").unlink()
    else:
        (tmp_path / "model.onnx").write_bytes((copy / "model.onnx").read_bytes()[:1000])
    pictures = str(easy_data / "Test")
    assert cli.main(["predict", "--model", str(tmp_path), pictures]) == 2
    assert f"{tmp_path / 'model.onnx'}: " in capsys.readouterr().err


def test_without_the_extra_one_line_says_what_to_install(both, easy_data, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert cli.main(["predict", "--model", str(both[1]), str(easy_data / "Test")]) == 2
    assert "pip install 'dfd-utils[int8]'" in capsys.readouterr().err
    assert load_model(both[0])[1]["precision"] == "fp32"
