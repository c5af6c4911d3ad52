"""Paths, names, settings and errors that all modules share."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

CLASSES = ("Real", "Fake")  # the label is the position: 0 = Real, 1 = Fake (the positive class)
SPLITS = ("Train", "Validation", "Test")
_package_parent = Path(__file__).resolve().parent.parent
PROJECT_ROOT = _package_parent if (_package_parent / "notebooks").is_dir() else Path.cwd()
# All output is under OUTPUT_ROOT, so that a read-only checkout works, too.
OUTPUT_ROOT = Path(os.environ.get("DFD_OUTPUT_DIR") or PROJECT_ROOT).resolve()
DATA_DIR = Path(os.environ.get("DFD_DATA_DIR") or OUTPUT_ROOT / "data").resolve()
BUILD_DIR = OUTPUT_ROOT / "build"
FIGURES_DIR = OUTPUT_ROOT / "figures"
START_TIME_ENV = "DFD_STARTED"  # environment variable: start of the run, seconds since 1970


class UserError(Exception):
    """A problem that the user can solve; its one-line text is all that is printed (exit code 2)."""

    def __init__(self, message: str):
        # A DataLoader worker's error arrives with its traceback as text: keep only the message.
        super().__init__(str(message).rsplit("UserError: ", 1)[-1].strip())


class RunInterrupted(Exception):  # noqa: N818  (no error)
    """A run stopped early with its state saved; the same command continues it."""

    exit_code = 143  # as after SIGTERM


class TimeLimitReached(RunInterrupted):
    """A run reached its time limit."""

    exit_code = 75  # "try again", EX_TEMPFAIL of sysexits.h


@dataclass(frozen=True)
class Profile:
    """Every setting of a training run; `None` for num_workers lets the machine decide."""

    name: str
    image_size: int  # pixels, square
    epochs: int
    batch_size: int  # images per step, over all processes
    lr: float  # AdamW's learning rate after the warm-up
    weight_decay: float = 0.05
    warmup_steps: int = 50  # linear, from 1 % of lr
    ema_decay: float = 0.99  # of the averaged weights, which are evaluated and saved
    crop: float = 1.0  # side of a random crop in training, as a share of the image's
    degradation_probability: float = 0.0  # share of training images degraded
    cutmix_probability: float = 0.0  # share of training batches whose images are cut and mixed
    instance_norm: bool = False  # scale each image's channels to mean 0, standard deviation 1
    flip_at_test: bool = False  # average the logits of an image and its mirror image
    weights: str = "none"  # none | imagenet | a file of weights
    # "auto" or None: chosen for the machine by training/autotune.py.
    precision: str = "auto"  # auto | fp32 | bf16 | fp16
    micro_batch_size: int | None = None  # images per forward pass; None: the whole batch
    seed: int = 0
    # The rest does not change the result (RESULT_NEUTRAL_SETTINGS).
    num_workers: int | None = None  # processes that decode images
    checkpoint_minutes: float = 5.0  # between checkpoints inside an epoch
    max_hours: float | None = None  # time limit of the whole run, all models
    keep_epochs: bool = False  # keep the averaged weights of every epoch, not only the best


PRECISIONS = ("fp32", "bf16", "fp16")
# Settings that can be chosen for the machine, and the values that request it.
AUTO_SETTINGS = {"precision": "auto", "micro_batch_size": None}
RESULT_NEUTRAL_SETTINGS = ("num_workers", "checkpoint_minutes", "max_hours", "keep_epochs")
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
    # the embedded sample: minutes on two CPU cores
    "sample": Profile("sample", image_size=64, epochs=8, batch_size=32, lr=1e-3),
    # the Kaggle data: one four-hour session on a T4
    "studio-lab": _SESSION,
    # any larger GPU, without a time limit
    "full": dataclasses.replace(_SESSION, name="full", image_size=256, epochs=20, ema_decay=0.9995),
    # about a thousand images and ImageNet weights: 10 to 20 minutes on two CPU cores
    "fine-tuning": Profile(
        "fine-tuning",
        image_size=256,
        epochs=24,
        batch_size=32,
        lr=5e-4,
        warmup_steps=100,
        crop=0.75,
        degradation_probability=0.8,
        flip_at_test=True,
        weights="imagenet",
    ),
    # about a thousand images, no pretrained weights: half an hour per model on two CPU cores
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
_SHARES = ("crop", "ema_decay", "degradation_probability", "cutmix_probability")
_MINIMUM = {"image_size": 32, "crop": 0.25, "epochs": 1, "batch_size": 2, "micro_batch_size": 1}


def get_profile(name: str, **overrides: object) -> Profile:
    """Return the profile `name`, changed by those `overrides` that are not None.

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
            changes[key] = _validate(key, value, known[key])
    return dataclasses.replace(profile, **changes)


def _validate(key: str, value: object, expected: type) -> object:
    numbers = (int, float)
    accepted = {float: numbers, float | None: numbers, str: str}.get(expected, int)
    yes_or_no = expected in (bool, bool | None)
    if isinstance(value, bool) != yes_or_no or not isinstance(value, accepted):
        raise UserError(f"setting {key}: {value!r} is not of the kind {expected}")
    if isinstance(value, int | float) and not value >= _MINIMUM.get(key, 0):
        raise UserError(f"setting {key}: {value} is less than {_MINIMUM.get(key, 0)}")
    if key == "precision" and value not in ("auto", *PRECISIONS):
        raise UserError(f"setting precision: '{value}' is not auto, fp32, bf16 or fp16")
    if key == "weights" and value not in ("none", "imagenet") and not Path(value).is_file():
        raise UserError(f"setting weights: {value} is neither none, imagenet nor a file")
    if key in _SHARES and value > 1:
        raise UserError(f"setting {key}: {value} is more than 1")
    return value
