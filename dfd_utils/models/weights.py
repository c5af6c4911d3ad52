"""Files of weights of this project or of others, read without running their code."""

import argparse
import re
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from dfd_utils.config import CLASSES, UserError
from dfd_utils.models.detector import Detector
from dfd_utils.runtime.files import write_atomic

_CONTAINERS = ("state_dict", "model_state_dict", "model")  # of the weights in a checkpoint
# Put before each name by DataParallel, Lightning and others, torch.compile, and `Detector`.
_PREFIXES = re.compile(r"^((module|model|_orig_mod|backbone)\.)+")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return a file's weights under the names of a `Detector`; runs no code from the file.

    The weights may be inside a checkpoint, beside plain values such as its epoch.

    Raises:
        UserError: there is no such file, or it contains other objects, or no weights.
    """
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            # Checkpoints of torchvision and timm contain their command's options.
            with torch.serialization.safe_globals([argparse.Namespace]):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file of weights") from error
    except Exception as error:  # each format has errors of its own; none may run code
        raise UserError(
            f"{path}: not a file of weights alone; save model.state_dict() as .safetensors or .pth"
        ) from error
    while isinstance(state, dict) and (inner := [key for key in _CONTAINERS if key in state]):
        state = state[inner[0]]
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise UserError(f"{path}: contains no state dict of weights alone")
    named = {f"backbone.{_PREFIXES.sub('', key)}": value for key, value in state.items()}
    if len(named) < len(state):
        raise UserError(f"{path}: contains the weights of several models; save one alone")
    return named


def count_outputs(state: dict[str, Tensor], head: str) -> int:
    """Return the number of outputs of the last layer `head`, 0 if there is none."""
    return state[f"backbone.{head}.bias"].numel() if f"backbone.{head}.bias" in state else 0


def load_weights(model: Detector, path: Path, name: str, head: str | None = None) -> int | None:
    """Fill the model with the weights of a file; see `read_weights`.

    Args:
        model: of the architecture `name`.
        path: the file.
        name: appears in the error message.
        head: the last layer, which stays as it is if the file's has another number of outputs;
            None: such a file is refused.

    Returns:
        the number of outputs in the file if the head stayed as it is, else None.

    Raises:
        UserError: as `read_weights`, or the weights are those of another architecture.
    """
    state, replaced = read_weights(path), None
    if head is not None and (outputs := count_outputs(state, head)) != len(CLASSES):
        own = model.backbone.get_submodule(head).state_dict()
        state |= {f"backbone.{head}.{key}": value for key, value in own.items()}
        replaced = outputs
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: its weights are not those of a {name} with {len(CLASSES)} outputs; "
            "name the model that they belong to"
        ) from error
    return replaced


def save_weights(model: Detector, path: Path) -> None:
    """Write the model's weights to a .safetensors file."""
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    write_atomic(path, safetensors.torch.save(weights))
