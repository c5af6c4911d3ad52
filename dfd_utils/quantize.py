"""An int8 copy of a model, for CPUs: calibrated on Train. Wants `int8`."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from scipy.special import expit
from torch import Tensor

from dfd_utils import metrics, transforms
from dfd_utils.compare import delong
from dfd_utils.config import SPLITS, UserError, write_whole
from dfd_utils.dataset import DeepFakeDataset, check_layout, load_split
from dfd_utils.evaluate import margins
from dfd_utils.export import to_onnx
from dfd_utils.models import Detector, load_model
from dfd_utils.openvino_detector import FILE, OpenVINODetector, import_openvino
from dfd_utils.out_of_distribution import fit_training_data, save_training_data, with_features
from dfd_utils.precision import make_accelerator
from dfd_utils.predict import choose_model

CALIBRATION_IMAGES = 256  # of Train, whose activations set the ranges of the 8 bits


def quantize(
    data: Path, out: Path, model: Path | None = None, log: Callable[[str], None] = print
) -> Path:
    """Write an int8 copy of a model into the folder `out`, a model like any other; return `out`.

    Weights and activations become integers of 8 bits, whose ranges about 256 Train images set.
    Temperature, threshold and the limit of the far pictures are fitted again, on Validation, and
    the AUC there is told beside the model's own.

    Args:
        data: the data set that the model was trained on; Test is not read.
        out: receives model.onnx, model.json, training_data.safetensors and config.json.
        model: see `predict.choose_model`.
        log: called with what was found.

    Raises:
        UserError: no such model, or it is int8 already; bad data; `out` holds a model; the extra
            `int8` is not installed.
    """
    import_openvino()
    path = choose_model(model)
    network, description = load_model(path)
    if isinstance(network, OpenVINODetector):
        raise UserError(f"{path}: is int8 already; name the model it was made from")
    if (out / "model.json").is_file():
        raise UserError(f"{out}: holds a model already; choose another --out or delete it")
    check_layout(data)
    name, size = description["architecture"], description["image_size"]
    resize = transforms.eval_transform(size)
    train_set = load_split(data, SPLITS[0], resize).every(CALIBRATION_IMAGES)
    images = (image[None] for image, _ in map(train_set.__getitem__, range(len(train_set))))
    content = to_int8(network, name, size, images)
    quantized = OpenVINODetector(content)
    validation_set = load_split(data, SPLITS[1], resize)
    labels, before = margins(network, validation_set, description)
    described, after = _calibrated(quantized, validation_set, description)
    write_whole(out / FILE, content)
    accelerator = make_accelerator("int8")
    fitted = fit_training_data(quantized, name, data, size, accelerator)
    save_training_data(fitted, out)
    config = (path if path.is_dir() else path.parent) / "config.json"
    if config.is_file():
        write_whole(out / config.name, config.read_bytes())
    write_whole(out / "model.json", json.dumps(described, indent=2) + "\n")
    paired = delong(labels, expit(after), expit(before.astype("float64")))
    log(
        f"Validation AUC {paired['auc_a']:.4f} in int8, {paired['auc_b']:.4f} before: "
        f"{paired['difference']:+.4f} [{paired['low']:+.4f}, {paired['high']:+.4f}]"
    )
    return out


def _calibrated(
    quantized: OpenVINODetector, validation_set: DeepFakeDataset, description: dict
) -> tuple[dict, np.ndarray]:
    """Return the copy's own description, and its margins on Validation, float64 `[N]`."""
    described = description | {"precision": "int8"}
    labels, margin = margins(quantized, validation_set, described)
    margin = margin.astype("float64")
    temperature = metrics.fit_temperature(labels, margin)
    threshold = metrics.choose_threshold(labels, expit(margin / temperature))
    return described | {"temperature": temperature, "threshold": threshold}, margin


def to_int8(network: Detector, name: str, size: int, images: Iterable[Tensor]) -> bytes:
    """Return a model as ONNX in int8, with the outputs `logits` and `features`.

    Args:
        network: in eval mode, on the CPU.
        name: a key of `models.MODELS`.
        size: S, the model's image size in pixels.
        images: batches that its ranges are calibrated on, uint8 `[N, 3, S, S]`.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, quant_pre_process, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.contiguous().numpy()}

    proto = to_onnx(with_features(network, name), size, ["logits", "features"])
    with TemporaryDirectory() as folder:
        exact, place = Path(folder) / "exact.onnx", Path(folder) / FILE
        exact.write_bytes(proto.SerializeToString())
        quant_pre_process(exact, exact, skip_symbolic_shape=True)
        nodes = onnx.load(exact).graph.node
        norms = [node.name for node in nodes if node.op_type == "InstanceNormalization"]
        # 7 bits for weights: with 8, sums overflow on CPUs without VNNI.
        quantize_static(
            exact, place, Reader(), per_channel=True, reduce_range=True, nodes_to_exclude=norms
        )
        return place.read_bytes()
