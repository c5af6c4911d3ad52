"""A model as ONNX, with its normalisation and calibration inside. Requires the extra `onnx`."""

from pathlib import Path

import torch
from torch import Tensor, nn

from dfd_utils.config import CLASSES, UserError
from dfd_utils.models.detector import Detector
from dfd_utils.models.trained import TrainedModel, choose_model
from dfd_utils.runtime.files import write_atomic


class _Scorer(nn.Module):
    """Images in, logits and calibrated scores out."""

    def __init__(self, network: Detector, temperature: float):
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(images)
        return logits, torch.sigmoid((logits[:, 1] - logits[:, 0]) / self.temperature)


def export_onnx(model: TrainedModel | str | Path | None = None, out: Path | None = None) -> Path:
    """Write a model as one ONNX file; return its path.

    Input `images`: uint8 RGB `[N, 3, S, S]` for any N, resized to the model's image size S.
    Outputs: `logits` float32 `[N, 2]` (column 0 Real, 1 Fake) and `score` float32 `[N]`, the
    calibrated probability of Fake. The file's metadata contain the classes, the threshold and S.

    Args:
        model: see `trained.choose_model`.
        out: None writes it beside the weights, under their name (`model.onnx`).

    Raises:
        UserError: there is no such model, it has weights that are not finite numbers, the extra
            `onnx` is missing, or `out` cannot be written.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401  (what torch exports with)
    except ImportError as error:
        raise UserError("ONNX is not installed: pip install 'dfd-utils[onnx]'") from error
    trained = choose_model(model)
    description = trained.description
    if not trained.is_network:
        raise UserError(
            f"{trained.folder}: {trained.title} uses statistics of the original image, which ONNX "
            "cannot compute; export the network"
        )
    size, network = description.image_size, trained.load()
    if not all(weights.isfinite().all() for weights in network.state_dict().values()):
        raise UserError(f"{trained.weights_file}: has weights that are not numbers; train it again")
    program = torch.onnx.export(
        _Scorer(network, description.temperature).eval(),
        (torch.zeros(2, 3, size, size, dtype=torch.uint8),),
        input_names=["images"],
        output_names=["logits", "score"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    proto = program.model_proto
    metadata = {
        "architecture": description.architecture,
        "image_size": size,
        "threshold": description.threshold,
        "classes": ",".join(CLASSES),
    }
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=str(value))
    return write_atomic(out or trained.weights_file.with_suffix(".onnx"), proto.SerializeToString())
