"""Files of weights of this project or of the course project, read without running their code."""

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from dfd_utils.config import CLASSES, UserError
from dfd_utils.models.detector import Detector
from dfd_utils.runtime.files import write_atomic


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return a file's weights under the names of a `Detector`; runs no code from the file.

    Raises:
        UserError: there is no such file, or it contains more than weights.
    """
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file of weights") from error
    except Exception as error:  # each format has errors of its own; none may run code
        raise UserError(f"{path}: not a file of weights alone (.safetensors or .pth)") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path}: not a file of weights alone (a state dict)")
    # The course project saved the bare torchvision model, without `Detector` around it;
    # DataParallel puts `module.` before each name.
    bare = {key.removeprefix("module.").removeprefix("backbone."): state[key] for key in state}
    return {f"backbone.{key}": value for key, value in bare.items()}


def load_weights(model: Detector, path: Path, name: str) -> None:
    """Fill the model with the weights of a .safetensors or .pth file.

    Args:
        model: of the architecture `name`.
        path: the file.
        name: appears in the error message.

    Raises:
        UserError: as `read_weights`, or the weights are those of another architecture.
    """
    try:
        model.load_state_dict(read_weights(path))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: its weights are not those of a {name} with {len(CLASSES)} outputs; "
            "name the model that they belong to"
        ) from error


def save_weights(model: Detector, path: Path) -> None:
    """Write the model's weights to a .safetensors file."""
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    write_atomic(path, safetensors.torch.save(weights))
