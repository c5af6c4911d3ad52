"""The architectures that can be trained, and how a model is created."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torchvision.models as tv
from torch import nn
from torchvision.ops import StochasticDepth

from dfd_utils.config import CLASSES, UserError
from dfd_utils.models.detector import Detector, FusedDetector, LinearDetector
from dfd_utils.models.efficientnet_lite import PackagedWeights, efficientnet_lite0
from dfd_utils.models.weights import load_weights

BASELINE = "linear_dct"
FUSION = f"+{BASELINE}"  # behind a network's name: the network and the baseline as one model


@dataclass(frozen=True)
class Architecture:
    """A torchvision classifier: its builder, its weights, and the names of its layers.

    The baseline has a title and a builder alone.
    """

    title: str
    builder: Callable[..., nn.Module]
    imagenet: tv.WeightsEnum | PackagedWeights | None = None
    head: str = ""
    # The last layer of each resolution, for Grad-CAM.
    layers_by_stride: dict[int, str] = field(default_factory=dict)


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
    "efficientnet_lite0": Architecture(
        "EfficientNet-Lite0",
        efficientnet_lite0,
        PackagedWeights(),
        "classifier.1",
        {8: "features.3", 16: "features.5", 32: "features.8"},
    ),
    BASELINE: Architecture("DCT baseline", LinearDetector),
}
NETWORKS = tuple(name for name in MODELS if name != BASELINE)
COMPARED = NETWORKS[:2]  # by the report


def get_architecture(name: str) -> Architecture:
    """Return the entry of `MODELS`.

    Raises:
        UserError: the name is not in the registry.
    """
    if name not in MODELS:
        raise UserError(f"unknown model '{name}': choose from {', '.join(MODELS)}")
    return MODELS[name]


def available_weights(name: str, weights: str, log: Callable[[str], None] = print) -> str:
    """Return the weights that a training can start from: `weights`, or "none".

    It is "none" where ImageNet's weights cannot be downloaded into torch's cache; a line in `log`
    gives the reason. Another line says if the last layer of a file is not used.

    Raises:
        UserError: unknown model, or a file of weights that does not fit it.
    """
    entry = get_architecture(name)
    if weights == "imagenet":
        try:
            entry.imagenet.get_state_dict(check_hash=True)
        except (OSError, RuntimeError) as error:
            log(f"ImageNet weights of {entry.title} cannot be had ({error}): training from scratch")
            return "none"
    elif weights != "none":
        create_model(name, weights, log)
    return weights


def create_model(
    name: str, weights: str = "none", log: Callable[[str], None] | None = None
) -> nn.Module:
    """Build the model `name` with two outputs: a `Detector`, or the baseline's `LinearDetector`.

    Args:
        name: a key of `MODELS`.
        weights: "none" (from scratch), "imagenet" (torchvision's, downloaded; see
            `available_weights`), or a file (see `read_weights`), whose last layer is used only
            if it has two outputs.
        log: receives a line if the file's last layer is not used.

    Raises:
        UserError: unknown model, or a file of weights that does not fit it.
    """
    entry = get_architecture(name)
    if name == BASELINE:
        return entry.builder()
    backbone = entry.builder(weights=entry.imagenet if weights == "imagenet" else None)
    # Training from scratch takes few steps: random depth and dropout only slow it down, and
    # torchvision's wide initialisation of a two-class EfficientNet head starts at a loss of 2.7.
    for module in backbone.modules():
        if isinstance(module, nn.Dropout | StochasticDepth):
            module.p = 0.0
    parent, _, leaf = entry.head.rpartition(".")
    head = nn.Linear(backbone.get_submodule(entry.head).in_features, len(CLASSES))
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    setattr(backbone.get_submodule(parent), leaf, head)
    model = Detector(backbone)
    if weights not in ("none", "imagenet"):
        outputs = load_weights(model, Path(weights), name, entry.head)
        if outputs is not None and log:
            log(f"{weights}: its last layer has {outputs:,} outputs; a new one with 2 replaces it")
    return model


def create_fusion(network: str) -> FusedDetector:
    """Build the fusion of the model `network` with the baseline."""
    return FusedDetector(create_model(network), create_model(BASELINE))


def swap_outputs(model: Detector, name: str) -> None:
    """Exchange the two outputs of a model of the architecture `name`."""
    for parameter in model.backbone.get_submodule(get_architecture(name).head).parameters():
        parameter.data = parameter.data.flip(0)
