"""Files of weights, from here or from the course project, read without running code from them."""

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from dfd_utils.config import UserError


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return a file's weights under the names of a `models.Detector`; runs no code from it.

    Raises:
        UserError: no such file, or not a file of weights alone.
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
    # `module.` is what DataParallel puts before each name.
    bare = {key.removeprefix("module.").removeprefix("backbone."): state[key] for key in state}
    return {f"backbone.{key}": value for key, value in bare.items()}
