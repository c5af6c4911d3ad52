"""How far a picture lies from the data that a model was trained on."""

from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn
from torch.fx import GraphModule
from torchvision.models.feature_extraction import create_feature_extractor

from dfd_utils import transforms
from dfd_utils.config import SPLITS, UserError, write_whole
from dfd_utils.dataset import data_loader, load_split, scoring_batch_size
from dfd_utils.models import MODELS, Detector, fused
from dfd_utils.openvino_detector import OpenVINODetector

FILE = "training_data.safetensors"
IMAGES = 1000  # of Train and of Validation, about (see DeepFakeDataset.every)
NEARER = 0.99  # share of Validation that lies nearer than the limit


class DetectorWithFeatures(nn.Module):
    """A fused detector: uint8 `[N, 3, H, W]` in, logits `[N, 2]` and early features `[N, C]` out.

    The features are the mean over the image of the last layer at stride 8.
    """

    def __init__(self, model: Detector, name: str):
        super().__init__()
        entry = MODELS[name]
        nodes = {entry.layers_by_stride[8]: "features", entry.head: "logits"}
        extractor = create_feature_extractor(model.backbone.eval(), nodes)
        # Its own class forgets, when copied, that it is in eval mode.
        network = GraphModule(extractor, extractor.graph)
        self.detector = fused(Detector(network, instance_norm=model.instance_norm))
        self.flip_at_test = model.flip_at_test

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.detector(images)
        logits, features = outputs["logits"], outputs["features"].float().mean((2, 3))
        if self.flip_at_test:
            logits = (logits + self.detector(images.flip(-1))["logits"]) / 2
        return logits, features


def with_features(model: Detector | OpenVINODetector, name: str) -> nn.Module:
    """Return what gives logits and early features, as DetectorWithFeatures does, of any model."""
    if isinstance(model, OpenVINODetector):
        return model.with_features()
    return DetectorWithFeatures(model, name)


@dataclass(frozen=True)
class TrainingData:
    """The training data as a model's early features show them: a Gaussian, and a limit.

    `mean` float64 `[C]`, `precision` (the inverse covariance) float64 `[C, C]`, `limit` a scalar.
    """

    mean: Tensor
    precision: Tensor
    limit: Tensor

    def distance(self, features: Tensor) -> Tensor:
        """Return the squared Mahalanobis distance, float64 `[N]`, of features `[N, C]`.

        Source: Lee et al. 2018, https://arxiv.org/abs/1807.03888, without their classes.
        """
        away = features.double().cpu() - self.mean
        return (away @ self.precision * away).sum(1)

    def far(self, features: Tensor) -> list[bool]:
        """Say of each picture whether it lies farther away than `NEARER` of Validation does."""
        return (self.distance(features) > self.limit).tolist()


def fit_training_data(
    model: Detector | OpenVINODetector,
    name: str,
    data: Path,
    image_size: int,
    accelerator: Accelerator,
    num_workers: int | None = None,
) -> TrainingData:
    """Fit the Gaussian to Train, by Ledoit and Wolf's shrinkage, and the limit to Validation.

    Args:
        model: a trained model, in eval mode.
        name: a key of `models.MODELS`.
        data: a data set in the Kaggle layout.
        image_size: of the model, in pixels.
        accelerator: says the device and the number format.
        num_workers: processes that decode, see `dataset.data_loader`.
    """
    extractor = with_features(model, name).to(accelerator.device)
    train, validation = (
        _features(extractor, data, split, image_size, accelerator, num_workers)
        for split in SPLITS[:2]
    )
    mean, scale = train.mean(0), train.std(0) + 1e-6
    shrunk = LedoitWolf(assume_centered=True).fit(((train - mean) / scale).numpy())
    precision = torch.from_numpy(shrunk.precision_) / torch.outer(scale, scale)
    fitted = TrainingData(mean, precision, limit=torch.tensor(torch.inf))
    return replace(fitted, limit=fitted.distance(validation).quantile(NEARER))


@torch.inference_mode()
def _features(
    extractor: nn.Module,
    data: Path,
    split: str,
    image_size: int,
    accelerator: Accelerator,
    num_workers: int | None,
) -> Tensor:
    dataset = load_split(data, split, transforms.eval_transform(image_size)).every(IMAGES)
    at_once = scoring_batch_size(accelerator.device, image_size)
    found = []
    for images, _ in data_loader(dataset, at_once, num_workers=num_workers):
        with accelerator.autocast():
            found.append(extractor(images.to(accelerator.device))[1].double().cpu())
    return torch.cat(found).clone()  # no longer tied to inference mode


def save_training_data(fitted: TrainingData, folder: Path) -> None:
    """Write it beside the model in `folder`."""
    write_whole(folder / FILE, safetensors.torch.save(vars(fitted)))


def read_training_data(model: Path) -> TrainingData | None:
    """Return what was saved beside a model (its folder or file); None for weights alone.

    Raises:
        UserError: the file is damaged.
    """
    if model.is_file() and model.suffix != ".safetensors":
        return None  # a foreign file, whatever run it lies beside
    path = (model.parent if model.is_file() else model) / FILE
    try:
        return TrainingData(**safetensors.torch.load_file(path))
    except FileNotFoundError:
        return None
    except (SafetensorError, TypeError) as error:
        raise UserError(f"{path}: damaged; train the model again, or remove it") from error
