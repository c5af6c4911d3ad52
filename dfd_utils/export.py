"""A model as ONNX, with its normalisation and calibration inside. Requires the extra `onnx`."""

from pathlib import Path

import torch
from torch import Tensor, nn

from dfd_utils.config import CLASSES, UserError, write_whole
from dfd_utils.models import Detector, load_model
from dfd_utils.predict import choose_model


class _Scorer(nn.Module):
    """Images in, logits and calibrated scores out."""

    def __init__(self, network: Detector, temperature: float):
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(images)
        return logits, torch.sigmoid((logits[:, 1] - logits[:, 0]) / self.temperature)


def export_onnx(model: str | Path | None = None, out: Path | None = None) -> Path:
    """Write a model as one ONNX file; return its path.

    Input `images`: uint8 RGB `[N, 3, S, S]`, resized to the model's image size S, N at will.
    Outputs: `logits` float32 `[N, 2]` (column 0 Real, 1 Fake) and `score` float32 `[N]`, the
    calibrated probability of Fake. The file's metadata name the classes, the threshold and S.

    Args:
        model: see `predict.choose_model`.
        out: None writes `model.onnx` beside the model.

    Raises:
        UserError: no such model, the extra `onnx` is not installed, or `out` cannot be written.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401  (what torch exports with)
    except ImportError as error:
        raise UserError("ONNX is not installed: pip install 'dfd-utils[onnx]'") from error
    path = choose_model(model)
    network, description = load_model(path)
    size = description["image_size"]
    program = torch.onnx.export(
        _Scorer(network, description["temperature"]).eval(),
        (torch.zeros(2, 3, size, size, dtype=torch.uint8),),
        input_names=["images"],
        output_names=["logits", "score"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    proto = program.model_proto
    metadata = {key: description[key] for key in ("architecture", "image_size", "threshold")}
    for key, value in (metadata | {"classes": ",".join(CLASSES)}).items():
        proto.metadata_props.add(key=key, value=str(value))
    out = out or (path if path.is_dir() else path.parent) / "model.onnx"
    return write_whole(out, proto.SerializeToString())
