"""A detector in int8 that OpenVINO computes, on the CPU. Wants `int8`."""

import sys
from copy import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from dfd_utils.config import UserError

FILE = "model.onnx"


class OpenVINODetector(nn.Module):
    """As `models.Detector`: uint8 `[N, 3, S, S]` in, logits float32 `[N, 2]` out, on their device.

    Args:
        content: an ONNX model with the input `images` and the outputs `logits` and `features`.

    Raises:
        UserError: OpenVINO is not installed, or `content` is no model.
    """

    outputs = ("logits",)

    def __init__(self, content: bytes):
        super().__init__()
        openvino = import_openvino()
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",  # of what is not int8, alike on every CPU
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # the cores are shared with those that read pictures
        }
        try:
            core = openvino.Core()
            self.compiled = core.compile_model(core.read_model(content), "CPU", settings)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise UserError(f"not a model that OpenVINO reads ({reason})") from error
        self.request = self.compiled.create_infer_request()

    def with_features(self) -> "OpenVINODetector":
        """Return the same that gives logits and early features, as DetectorWithFeatures does."""
        both = copy(self)
        both.request = self.compiled.create_infer_request()  # two threads cannot share one
        both.outputs = ("logits", "features")
        return both

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        found = self.request.infer(images.contiguous().cpu().numpy())
        tensors = tuple(torch.from_numpy(found[name]).to(images.device) for name in self.outputs)
        return tensors if len(tensors) > 1 else tensors[0]


def import_openvino():
    """Return the module openvino.

    Raises:
        UserError: it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # would tell its makers of every import
    try:
        import openvino
    except ImportError as error:
        raise UserError("int8 models want OpenVINO: pip install 'dfd-utils[int8]'") from error
    return openvino


def read_int8(folder: Path) -> OpenVINODetector:
    """Return the model in a folder.

    Raises:
        UserError: it is missing or damaged, or OpenVINO is not installed.
    """
    path = folder / FILE
    import_openvino()
    try:
        return OpenVINODetector(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; make it again with dfd quantize") from error
    except UserError as error:
        raise UserError(f"{path}: {error}; make it again with dfd quantize") from error
