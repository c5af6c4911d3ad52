"""A detector that ONNX Runtime computes, on the CPU."""

from pathlib import Path

import torch
from torch import Tensor, nn

from dfd_utils.config import UserError

FILE = "model.onnx"


class OnnxDetector(nn.Module):
    """As `models.Detector`: uint8 `[N, 3, S, S]` in, logits float32 `[N, 2]` out, on their device.

    Args:
        content: an ONNX model with the input `images` and the output `logits`.
        outputs: of the model, to be returned; a tuple of tensors where they are several.

    Raises:
        UserError: ONNX Runtime is not installed, or `content` is no model.
    """

    def __init__(self, content: bytes, outputs: tuple[str, ...] = ("logits",)):
        super().__init__()
        runtime = import_runtime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that wait would take the cores from those that read pictures.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors alone
        try:
            self.session = runtime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors share no class
            raise UserError(f"not a model that ONNX Runtime reads ({error})") from error
        self.content, self.outputs = content, outputs

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        arrays = self.session.run(self.outputs, {"images": images.contiguous().cpu().numpy()})
        tensors = tuple(torch.from_numpy(array).to(images.device) for array in arrays)
        return tensors if len(tensors) > 1 else tensors[0]


def import_runtime():
    """Return the module onnxruntime.

    Raises:
        UserError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("int8 models want ONNX Runtime: pip install 'dfd-utils[onnx]'") from error
    return onnxruntime


def read_onnx(folder: Path, outputs: tuple[str, ...] = ("logits",)) -> OnnxDetector:
    """Return the model in a folder.

    Raises:
        UserError: it is missing or damaged, or ONNX Runtime is not installed.
    """
    path = folder / FILE
    import_runtime()
    try:
        return OnnxDetector(path.read_bytes(), outputs)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; make it again with dfd quantize") from error
    except UserError as error:
        raise UserError(f"{path}: {error}; make it again with dfd quantize") from error
