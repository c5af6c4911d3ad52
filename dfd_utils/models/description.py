"""`ModelDescription`: the content of `model.json`, which is needed to use the weights beside it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike

from dfd_utils.config import CLASSES, PRECISIONS, UserError
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
MAX_IMAGE_SIZE = 4096  # pixels
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
        try:
            valid = description._is_valid()
        except TypeError:  # a value of another kind
            valid = False
        if not valid:
            raise UserError(f"{path}: damaged; {_REMEDY}")
        return description

    def _is_valid(self) -> bool:
        band = self.unsure_from, self.unsure_to
        epochs = [number for number in (self.epoch, self.epochs) if number is not None]
        flags = self.flip_at_test, self.instance_norm, self.fused
        return (
            self.architecture in MODELS
            and isinstance(self.image_size, int)
            and 0 <= self.image_size <= MAX_IMAGE_SIZE
            and self.precision in PRECISIONS
            and 0 < self.temperature < float("inf")
            and 0 <= self.threshold <= 1
            and all(isinstance(number, int) and number > 0 for number in epochs)
            and all(isinstance(flag, bool) for flag in flags)
            and (band == (None, None) or 0 <= self.unsure_from <= self.unsure_to <= 1)
        )


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
