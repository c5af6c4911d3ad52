"""The model registry, and models on disk: `model.safetensors` beside `model.json`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
import torchvision.models as tv
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from dfd_utils import transforms
from dfd_utils.config import CLASSES, UserError, read_json, write_whole
from dfd_utils.weights import read_weights


@dataclass(frozen=True)
class Architecture:
    """A torchvision classifier: how to build it, where its head and its last features are."""

    title: str
    builder: Callable[..., nn.Module]
    imagenet: tv.WeightsEnum
    head: str
    layers_by_stride: dict[int, str]  # last layer of each resolution, where Grad-CAM may look


MODELS = {
    "resnet50": Architecture(
        "ResNet50",
        tv.resnet50,
        tv.ResNet50_Weights.IMAGENET1K_V2,
        "fc",
        {8: "layer2", 16: "layer3", 32: "layer4"},
    ),
    "efficientnet_b0": Architecture(
        "EfficientNet-B0",
        tv.efficientnet_b0,
        tv.EfficientNet_B0_Weights.IMAGENET1K_V1,
        "classifier.1",
        {8: "features.3", 16: "features.5", 32: "features.8"},
    ),
}
MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


class Detector(nn.Module):
    """A classifier with its normalisation inside: uint8 `[N, 3, H, W]` in, logits `[N, 2]` out.

    Column 0 of the logits is Real, column 1 Fake. With `flip_at_test` the logits of eval mode are
    the mean of those of an image and of its mirror image. With `instance_norm` brightness, contrast
    and colour cast of a picture change nothing (see `normalize`).
    """

    def __init__(
        self,
        backbone: nn.Module,
        memory_format: str = "channels_last",
        flip_at_test: bool = False,
        instance_norm: bool = False,
    ):
        super().__init__()
        self.memory_format = MEMORY_FORMATS[memory_format]
        self.flip_at_test = flip_at_test
        self.instance_norm = instance_norm
        self.backbone = backbone.to(memory_format=self.memory_format)

    def forward(self, images: Tensor) -> Tensor:
        if self.flip_at_test and not self.training:
            return (self._outputs(images) + self._outputs(images.flip(-1))) / 2
        return self._outputs(images)

    def normalize(self, images: Tensor) -> Tensor:
        """Turn a uint8 batch `[N, 3, H, W]` into what the backbone takes, float32.

        By ImageNet's statistics, and with `instance_norm` each channel of each image to mean 0 and
        standard deviation 1 (Ulyanov et al. 2016, https://arxiv.org/abs/1607.08022).
        """
        images = transforms.normalize(images)
        if self.instance_norm:
            images = F.instance_norm(images)
        return images.contiguous(memory_format=self.memory_format)

    def _outputs(self, images: Tensor) -> Tensor:
        return self.backbone(self.normalize(images))


def architecture(name: str) -> Architecture:
    """Return the registry's entry.

    Raises:
        UserError: the name is not in the registry.
    """
    if name not in MODELS:
        raise UserError(f"unknown model '{name}': choose from {', '.join(MODELS)}")
    return MODELS[name]


def create_model(
    name: str,
    weights: str = "none",
    log: Callable[[str], None] = print,
    memory_format: str = "channels_last",
) -> Detector:
    """Build the model `name` with two outputs.

    Args:
        name: a key of `MODELS`.
        weights: "none" (from scratch), "imagenet" (torchvision's, downloaded; from scratch, with
            a line that says so, where they cannot be had), or a .safetensors or .pth file.
        log: called with that line.
        memory_format: a key of `MEMORY_FORMATS`.

    Raises:
        UserError: unknown model, or a file of weights that does not fit it.
    """
    entry = architecture(name)
    backbone = _pretrained(entry, log) if weights == "imagenet" else entry.builder(weights=None)
    # Few steps from scratch: random depth and dropout only slow the fit of so few images, and
    # torchvision's wide initialisation of a two-class EfficientNet head starts at a loss of 2.7.
    for module in backbone.modules():
        if isinstance(module, nn.Dropout | StochasticDepth):
            module.p = 0.0
    parent, _, leaf = entry.head.rpartition(".")
    head = nn.Linear(backbone.get_submodule(entry.head).in_features, len(CLASSES))
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    setattr(backbone.get_submodule(parent), leaf, head)
    model = Detector(backbone, memory_format)
    if weights not in ("none", "imagenet"):
        load_weights(model, Path(weights), name)
    return model


def _pretrained(entry: Architecture, log: Callable[[str], None]) -> nn.Module:
    try:
        return entry.builder(weights=entry.imagenet)
    except (OSError, RuntimeError) as error:
        log(f"ImageNet weights of {entry.title} cannot be fetched ({error}): training from scratch")
        return entry.builder(weights=None)


def load_weights(model: Detector, path: Path, name: str) -> None:
    """Fill the model with the weights of a .safetensors or .pth file; runs no code from it.

    Raises:
        UserError: no such file, not a file of weights, or the weights of another architecture.
    """
    try:
        model.load_state_dict(read_weights(path))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: its weights are not those of a {name} with {len(CLASSES)} outputs; "
            f"name the model it was made with ({', '.join(MODELS)})"
        ) from error


def _recognise(path: Path) -> str:
    """Return the name of the model whose weights a file holds, by their names and shapes."""
    found = {key: value.shape for key, value in read_weights(path).items()}
    for name, entry in MODELS.items():
        with torch.device("meta"):
            expected = entry.builder(num_classes=len(CLASSES)).state_dict()
        if found == {f"backbone.{key}": value.shape for key, value in expected.items()}:
            return name
    raise UserError(
        f"{path}: the weights of no model known here with {len(CLASSES)} outputs "
        f"({', '.join(MODELS)})"
    )


def save_model(model: Detector, folder: Path) -> None:
    """Write the weights to `model.safetensors`; `describe` is for `model.json` beside it."""
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    write_whole(folder / "model.safetensors", safetensors.torch.save(weights))


def describe(
    name: str, image_size: int, precision: str, temperature: float, threshold: float
) -> dict:
    """Return what `model.json` says: all that is needed to use the weights beside it."""
    return {
        "architecture": name,
        "image_size": image_size,
        "precision": precision,
        "mean": transforms.MEAN,
        "std": transforms.STD,
        "classes": CLASSES,
        "positive_class": CLASSES[1],
        "temperature": temperature,
        "threshold": threshold,
    }


def fused(model: Detector) -> Detector:
    """Return a copy in eval mode with each batch normalisation folded into its convolution.

    Gives the same logits, to rounding, a tenth to a quarter faster on a CPU. For scoring alone:
    it cannot be trained, and Grad-CAM does not find its layers.
    """
    settings = {"flip_at_test": model.flip_at_test, "instance_norm": model.instance_norm}
    return Detector(fuse(model.backbone), **settings).eval()


def load_model(path: str | Path) -> tuple[Detector, dict]:
    """Load a model in eval mode with its description; runs no code from its files.

    Args:
        path: a model's folder, its .safetensors file, or a file of weights alone. The latter's
            model is recognised by its weights (Real = 0, Fake = 1) and described as the course
            project used it: 224 pixels, threshold 0.5, not calibrated.

    Raises:
        UserError: no model there, or weights of another architecture than `model.json` names.
    """
    path = Path(path)
    folder = path.parent if path.is_file() else path
    if path.is_file() and not (path.suffix == ".safetensors" and (folder / "model.json").is_file()):
        name, weights = _recognise(path), path
        description = describe(name, 224, "fp32", temperature=1.0, threshold=0.5)
    else:
        description = read_description(folder)
        name = description["architecture"]
        weights = path if path.is_file() else folder / "model.safetensors"
    model = create_model(name)
    load_weights(model, weights, name)
    model.flip_at_test = description.get("flip_at_test", False)
    model.instance_norm = description.get("instance_norm", False)
    return model.eval(), description


def read_description(folder: Path) -> dict:
    """Return what `describe` made of the model in a folder.

    Raises:
        UserError: no model there, or its description is damaged.
    """
    path, remedy = folder / "model.json", "train the model again"
    if not path.is_file():
        raise UserError(f"{folder}: no model (model.json is missing); train one first")
    told = read_json(path, describe("", 0, "", 0, 0), remedy)
    numbers = (told[name] for name in ("image_size", "temperature", "threshold"))
    if told["architecture"] not in MODELS or not all(isinstance(n, int | float) for n in numbers):
        raise UserError(f"{path}: damaged; {remedy}")
    return told


def find_models(*paths: str | Path) -> list[Path]:
    """Return the folders of all models at or below `paths`, each once, sorted.

    Raises:
        UserError: a path that is missing or holds no model.
    """
    found = []
    for path in map(Path, paths):
        below = sorted(p.parent for p in path.rglob("model.json")) if path.is_dir() else []
        if not below:
            raise UserError(f"{path}: holds no trained model; run `dfd train … --out {path}` first")
        found += below
    return sorted(set(found))
