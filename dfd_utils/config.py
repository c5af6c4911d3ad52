"""Paths, names and settings that every other module shares."""

import dataclasses
import json
import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CLASSES = ("Real", "Fake")  # the label is the position: 0 = Real, 1 = Fake (the positive class)
SPLITS = ("Train", "Validation", "Test")

_package_parent = Path(__file__).resolve().parent.parent
PROJECT_ROOT = _package_parent if (_package_parent / "notebooks").is_dir() else Path.cwd()
# Everything that runs write lies under OUTPUT_ROOT, so that a read-only checkout can be run too.
OUTPUT_ROOT = Path(os.environ.get("DFD_OUTPUT_DIR") or PROJECT_ROOT).resolve()
DATA_DIR = Path(os.environ.get("DFD_DATA_DIR") or OUTPUT_ROOT / "data").resolve()
BUILD_DIR = OUTPUT_ROOT / "build"
FIGURES_DIR = OUTPUT_ROOT / "figures"
STARTED = "DFD_STARTED"  # environment: when the whole run began, in seconds since 1970


class UserError(Exception):
    """A problem the user can mend; its text is the one line that is shown (exit code 2)."""

    def __init__(self, message: str):
        # An error of a DataLoader worker arrives with its traceback as text: keep what it says.
        super().__init__(str(message).rsplit("UserError: ", 1)[-1].strip())


class Stopped(Exception):  # noqa: N818  (no error)
    """A run ended early in good order, to be gone on with by the same command."""

    exit_code = 143  # as after SIGTERM


class TimeIsUp(Stopped):
    """The hours that a run was given are over."""

    exit_code = 75  # "try again", EX_TEMPFAIL of sysexits.h


@dataclass(frozen=True)
class Profile:
    """Every setting of a training run; `None` for num_workers lets the machine decide."""

    name: str
    image_size: int  # pixels, square
    epochs: int
    batch_size: int  # images a step, over all processes
    lr: float  # AdamW's learning rate after the warm-up
    weight_decay: float = 0.05
    warmup_steps: int = 50  # linear, from 1 % of lr
    ema_decay: float = 0.99  # of the averaged weights, which are the ones judged and saved
    label_smoothing: float = 0.0
    degradation_probability: float = 0.0  # share of training images degraded at severity 1 to 3
    cutmix_probability: float = 0.0  # share of training batches whose images are cut and mixed
    instance_norm: bool = False  # each image's channels have mean 0 and standard deviation 1
    flip_at_test: bool = False  # logits are the mean of an image's and its mirror image's
    weights: str = "none"  # none | imagenet | a file of weights
    # The next four are found on the machine, where they are "auto" or None (tuning.py).
    precision: str = "auto"  # auto | fp32 | bf16 | fp16
    memory_format: str = "auto"  # auto | channels_last | contiguous
    compiled: bool | None = None  # by torch.compile
    micro_batch_size: int | None = None  # images that go through the model at once; None: all
    seed: int = 0
    # The rest changes no result (FREE_SETTINGS).
    num_workers: int | None = None  # processes that decode images
    checkpoint_minutes: float = 5.0  # between checkpoints inside an epoch
    max_hours: float | None = None  # stop in good order before; of the whole run, all models
    keep_epochs: bool = False  # keep every epoch's averaged weights, not the best alone


# Settings that are found on the machine, and the values that ask for it.
TUNED = {"precision": "auto", "memory_format": "auto", "compiled": None, "micro_batch_size": None}
FREE_SETTINGS = ("num_workers", "checkpoint_minutes", "max_hours", "keep_epochs")


_SESSION = Profile(
    "studio-lab",
    image_size=224,
    epochs=8,
    batch_size=64,
    lr=5e-4,
    warmup_steps=500,
    ema_decay=0.999,
    degradation_probability=0.5,
    flip_at_test=True,
    weights="imagenet",
)
PROFILES = {
    # minutes on two CPU cores, with the embedded sample
    "sample": Profile("sample", image_size=64, epochs=8, batch_size=32, lr=1e-3),
    # one four-hour session on a T4, with the Kaggle data
    "studio-lab": _SESSION,
    # as long as it takes, on any larger GPU
    "full": dataclasses.replace(_SESSION, name="full", image_size=256, epochs=20, ema_decay=0.9995),
    # about a thousand images and no pretrained weights; half an hour a model on two CPU cores
    "few-images": Profile(
        "few-images",
        image_size=64,
        epochs=100,
        batch_size=32,
        lr=1e-3,
        degradation_probability=1.0,
        cutmix_probability=1.0,
        instance_norm=True,
        flip_at_test=True,
    ),
}

_SHARES = ("ema_decay", "label_smoothing", "degradation_probability", "cutmix_probability")
_MINIMUM = {"image_size": 32, "epochs": 1, "batch_size": 2, "micro_batch_size": 1}


def get_profile(name: str, **overrides: object) -> Profile:
    """Return the profile `name` with the settings in `overrides` that are not None.

    Raises:
        UserError: unknown profile or setting, wrong type, or a value out of range.
    """
    if name not in PROFILES:
        raise UserError(f"unknown profile '{name}': choose from {', '.join(PROFILES)}")
    profile = PROFILES[name]
    known = {field.name: field.type for field in dataclasses.fields(Profile)}
    changes = {}
    for key, value in overrides.items():
        if key not in known:
            raise UserError(f"unknown setting '{key}': choose from {', '.join(known)}")
        if value is not None:
            changes[key] = _checked(key, value, known[key])
    return dataclasses.replace(profile, **changes)


def _checked(key: str, value: object, expected: type) -> object:
    numbers = (int, float)
    accepted = {float: numbers, float | None: numbers, str: str}.get(expected, int)
    yes_or_no = expected in (bool, bool | None)
    if isinstance(value, bool) != yes_or_no or not isinstance(value, accepted):
        raise UserError(f"setting {key}: {value!r} is not of the kind {expected}")
    if isinstance(value, int | float) and not value >= _MINIMUM.get(key, 0):
        raise UserError(f"setting {key}: {value} is less than {_MINIMUM.get(key, 0)}")
    if key == "precision" and value not in ("auto", "fp32", "bf16", "fp16"):
        raise UserError(f"setting precision: '{value}' is not auto, fp32, bf16 or fp16")
    if key == "memory_format" and value not in ("auto", "channels_last", "contiguous"):
        raise UserError(f"setting memory_format: '{value}' is not auto, channels_last, contiguous")
    if key == "weights" and value not in ("none", "imagenet") and not Path(value).is_file():
        raise UserError(f"setting weights: {value} is neither none, imagenet nor a file")
    if key in _SHARES and value > 1:
        raise UserError(f"setting {key}: {value} is more than 1")
    return value


def data_folder(data: str | Path | None = None) -> Path:
    """Return the data set's folder; a relative path counts from the project's root.

    Raises:
        UserError: there is no such folder.
    """
    folder = (PROJECT_ROOT / data).resolve() if data else DATA_DIR / "sample"
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such data folder; make the sample with `dfd sample {folder}`"
        )
    return folder


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write a file beside its place and rename it, so that it is never seen half-written.

    Raises:
        UserError: the place cannot be written to.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()  # of no use, and it may hold the disk's last bytes
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); "
            "free the place or set DFD_OUTPUT_DIR to a folder of yours"
        ) from error
    return path


def read_json(path: Path, keys: Collection[str], remedy: str) -> dict:
    """Return the object in a JSON file that holds at least these keys.

    Raises:
        UserError: the file is missing or damaged; names it and the remedy.
    """
    try:
        content = json.loads(path.read_text())
        if isinstance(content, dict) and content.keys() >= set(keys):
            return content
        problem = "damaged"
    except FileNotFoundError:
        problem = "missing"
    except (OSError, ValueError):
        problem = "damaged"
    raise UserError(f"{path}: {problem}; {remedy}")


def duration(seconds: float) -> str:
    """Return seconds in words: "45 s", "3 min 20 s", "2 h 5 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
