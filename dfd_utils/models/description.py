"""`ModelDescription`: the content of `model.json`, which is needed to use the weights beside it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike

from dfd_utils.config import CLASSES, UserError
from dfd_utils.data.transforms import MEAN, STD
from dfd_utils.models.registry import MODELS, NETWORKS
from dfd_utils.models.weights import count_outputs, read_weights
from dfd_utils.runtime.files import read_json, write_json

# The same for all models; a model.json with other values is refused.
_COMMON = {
    "mean": list(MEAN),
    "std": list(STD),
    "classes": list(CLASSES),
    "positive_class": CLASSES[1],
}
_REMEDY = "train the model again"


@dataclass(frozen=True)
class ModelDescription:
    """How a model's weights are used; the defaults fit the course project's files."""

    architecture: str  # a key of MODELS
    image_size: int = 224  # pixels, square; 0: each image's own (the baseline)
    precision: str = "fp32"  # fp32 | bf16 | fp16
    temperature: float = 1.0  # divides the logits
    threshold: float = 0.5  # the lowest score of Fake; chosen on Validation
    epoch: int | None = None  # that the weights are from
    epochs: int | None = None  # of the training
    flip_at_test: bool = False  # see Detector
    instance_norm: bool = False  # see Detector
    fused: bool = False  # with the baseline; see FusedDetector
    # Scores in [unsure_from, unsure_to) get no answer; None: no such band holds the limit (see
    # stats.abstention.choose_band).
    unsure_from: float | None = None
    unsure_to: float | None = None

    def is_close_call(self, scores: ArrayLike) -> np.ndarray:
        """Return whether each score is in the band where answers are too often wrong."""
        if self.unsure_from is None:
            return np.zeros(np.shape(scores), dtype=bool)
        return (self.unsure_from <= np.asarray(scores)) & (np.asarray(scores) < self.unsure_to)

    def write(self, path: Path) -> None:
        """Write `model.json`."""
        write_json(path, {**dataclasses.asdict(self), **_COMMON})

    @classmethod
    def read(cls, path: Path) -> ModelDescription:
        """Read `model.json`.

        Raises:
            UserError: it is missing or damaged, or its classes or normalisation are others.
        """
        content = read_json(
            path, ("architecture", "image_size", "temperature", "threshold"), _REMEDY
        )
        for key, expected in _COMMON.items():
            if content.get(key, expected) != expected:
                raise UserError(f"{path}: {key} is {content[key]}, not {expected}; {_REMEDY}")
        known = {field.name for field in dataclasses.fields(cls)}
        description = cls(**{key: value for key, value in content.items() if key in known})
        numbers = (description.image_size, description.temperature, description.threshold)
        band = description.unsure_from, description.unsure_to
        if None not in band:
            numbers += band
        if (
            description.architecture not in MODELS
            or not all(isinstance(number, int | float) for number in numbers)
            or band.count(None) == 1
        ):
            raise UserError(f"{path}: damaged; {_REMEDY}")
        return description


def recognize_weights(path: Path) -> ModelDescription:
    """Describe a file of weights by their names and shapes.

    Raises:
        UserError: it is no file of weights, or of no known architecture with two outputs.
    """
    state = read_weights(path)
    shapes = {key: value.shape for key, value in state.items()}
    for name in NETWORKS:
        entry = MODELS[name]
        if not (outputs := count_outputs(state, entry.head)):
            continue
        with torch.device("meta"):
            expected = entry.builder(num_classes=outputs).state_dict()
        if shapes != {f"backbone.{key}": value.shape for key, value in expected.items()}:
            continue
        if outputs == len(CLASSES):
            return ModelDescription(name)
        raise UserError(
            f"{path}: a {entry.title} whose number of outputs is {outputs:,}, not {len(CLASSES)} "
            f"({', '.join(CLASSES)}); train it first: dfd train --model {name} --weights {path} …"
        )
    raise UserError(
        f"{path}: the weights of no known model with {len(CLASSES)} outputs ({', '.join(NETWORKS)})"
    )
