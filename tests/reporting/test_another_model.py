"""A third architecture takes one entry in the registry and a copy of notebook 02."""

import nbformat
import pytest
import torchvision.models as tv

from dfd_utils import config
from dfd_utils.config import PROJECT_ROOT
from dfd_utils.evaluation.evaluate import evaluate
from dfd_utils.inference.predict import predict
from dfd_utils.models.gradcam import grad_cam
from dfd_utils.models.registry import MODELS, Architecture
from dfd_utils.models.trained import TrainedModel
from tests.conftest import quiet

NAME = "mobilenet_v3_small"
ENTRY = Architecture(
    "MobileNetV3",
    tv.mobilenet_v3_small,
    tv.MobileNet_V3_Small_Weights.IMAGENET1K_V1,
    "classifier.3",
    {16: "features.8", 32: "features.12"},
)


@pytest.fixture
def notebook(monkeypatch, tmp_path, tiny_sample):
    """Notebook 02 with the parameters of another model, ready to be executed in this process."""
    monkeypatch.setitem(MODELS, NAME, ENTRY)
    monkeypatch.setattr(config, "BUILD_DIR", tmp_path / "build")
    monkeypatch.setattr("dfd_utils.reporting.style.FIGURES_DIR", tmp_path / "figures")
    values = {"run": "third", "data": str(tiny_sample.path), "model": NAME, "chapter": "06"}
    values |= {"epochs": 1, "image_size": 64, "batch_size": 8, "precision": "fp32"}
    book = nbformat.read(PROJECT_ROOT / "notebooks" / "02_train_resnet50.ipynb", as_version=4)
    for cell in book.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += "".join(f"\n{name} = {value!r}" for name, value in values.items())
    return [cell.source for cell in book.cells if cell.cell_type == "code"]


def test_it_is_trained_drawn_evaluated_and_asked(notebook, tiny_sample, tmp_path):
    names = {}
    for source in notebook:
        exec(source, names)
    folder = tmp_path / "build" / "runs" / "third" / NAME
    model = TrainedModel(folder)
    assert model.title == "MobileNetV3"
    figures = {path.name for path in (tmp_path / "figures" / "third").glob("06_*.svg")}
    assert figures == {
        f"06_{n}.svg" for n in ("architecture", "training_curves", "first_layer", "followed")
    }
    table = evaluate([model], tiny_sample, log=quiet, resamples=20)
    assert 0 <= table["auc"].iloc[0] <= 1
    image = tiny_sample.split("Test").path(0)
    assert predict([image], folder)["label"][0] in ("Real", "Fake", "Unsure")
    assert grad_cam(model, [image]).shape[0] == 1
