"""A run's folder: its lock, the settings that a later call must share, and its results."""

import csv
import dataclasses
import fcntl
import hashlib
import io
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

import pandas as pd
import torch

from dfd_utils.config import (
    AUTO_SETTINGS,
    PROJECT_ROOT,
    RESULT_NEUTRAL_SETTINGS,
    SPLITS,
    Profile,
    UserError,
)
from dfd_utils.data.folder import DataFolder, read_exclusions
from dfd_utils.models.description import ModelDescription
from dfd_utils.models.detector import Detector
from dfd_utils.models.trained import best_epoch, read_config
from dfd_utils.models.weights import save_weights
from dfd_utils.runtime.distributed import process_state
from dfd_utils.runtime.files import write_atomic, write_json
from dfd_utils.training.checkpoint import TrainingState, checkpoints
from dfd_utils.training.components import TrainingComponents

LOCK_TIMEOUT = 20  # seconds: a notebook's kernel outlives its killed parent by a moment


@contextmanager
def run_lock(out: Path) -> Iterator[None]:
    """Make the run's folder and hold its lock.

    Raises:
        UserError: it cannot be written, or another process holds the lock for `LOCK_TIMEOUT`.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = open(out / ".lock", "w")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror}); choose another run"
        ) from error
    with lock:
        _acquire(lock, out)
        yield


def _acquire(lock: TextIO, out: Path) -> None:
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise UserError(f"{out}: another process trains here; wait or stop it") from error
            time.sleep(0.5)


def build_run_config(
    model_name: str, data: DataFolder, profile: Profile, requested_weights: str
) -> dict:
    """Return the content of `config.json`: settings, data, versions, commit, device.

    `settings.weights` are the weights that the training starts from, `requested_weights` those
    that were asked for: ImageNet's cannot be downloaded everywhere.
    """
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=PROJECT_ROOT, capture_output=True, text=True
    )
    return {
        "model": model_name,
        "settings": dataclasses.asdict(profile),
        "requested_weights": requested_weights,
        "initial_weights": _identify_weights(profile.weights),
        "data": data.name,
        "data_fingerprint": data.fingerprint,
        "excluded_images": {split: len(data.excluded(split)) for split in SPLITS},
        "classes": {"0": "Real", "1": "Fake"},
        "positive_class": "Fake",
        "processes": process_state().num_processes,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "accelerate", "dfd-utils")},
        },
        "git_commit": commit.stdout.strip() or "unknown",
    }


def _identify_weights(weights: str) -> str:
    if weights in ("none", "imagenet"):
        return weights
    with open(weights, "rb") as file:  # a file of the same name may have other contents later
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def with_recorded_settings(out: Path, profile: Profile) -> Profile:
    """Return the profile with what was chosen automatically when the run in `out` began, if it did.

    The number format and the parts of a batch were chosen on the machine where the run began, and
    its first weights by what could be downloaded there.
    """
    if not (out / "config.json").is_file():
        return profile
    config = read_config(out)
    settings = config["settings"]
    recorded = {
        name: settings[name]
        for name, automatic in AUTO_SETTINGS.items()
        if getattr(profile, name) == automatic and name in settings
    }
    if profile.weights == config.get("requested_weights"):
        recorded["weights"] = settings["weights"]
    return dataclasses.replace(profile, **recorded)


def check_resumable(out: Path, config: dict) -> None:
    """Raise a UserError that names how `config` differs from that of the run already in `out`.

    Settings that do not change the result may differ. More epochs may be requested if there is a
    checkpoint to continue from, because the learning rate does not depend on their number.
    """
    if not (out / "config.json").is_file():
        return
    before, remedy = read_config(out), "choose another run name, or delete that folder"
    if "requested_weights" not in before:
        raise UserError(f"{out}: contains a run of an earlier version of dfd-utils; {remedy}")
    if before["model"] != config["model"]:
        raise UserError(f"{out}: contains a run of {before['model']}; {remedy}")
    if before["data_fingerprint"] != config["data_fingerprint"]:
        raise UserError(
            f"{out}: was trained on other images ('{before['data']}', fingerprint "
            f"{before['data_fingerprint']}) than '{config['data']}' now contains "
            f"({config['data_fingerprint']}); {remedy}"
        )
    old, new = before["settings"], config["settings"]
    neutral = set(RESULT_NEUTRAL_SETTINGS)
    if new["epochs"] > old["epochs"] and (checkpoints(out) or not _has_model(out)):
        neutral.add("epochs")
    changed = [
        f"{name} {old.get(name)} (requested {new[name]})"
        for name in new
        if name not in neutral and old.get(name) != new[name]
    ]
    if not changed and before["initial_weights"] != config["initial_weights"]:
        changed = [f"another content of the file of weights {new['weights']}"]
    if changed:
        raise UserError(
            f"{out}: already contains a run with other settings: {', '.join(changed)}; {remedy}"
        )


def recorded_exclusions(out: Path, data: DataFolder, log: Callable[[str], None]) -> DataFolder:
    """Return the data set with the exclusions that the run in `out` began with, if it did.

    A line in `log` says when the exclusion list has changed since; the run stays usable.
    """
    path = out / "excluded.csv"
    if not path.is_file():
        return data
    recorded = data.with_exclusions(read_exclusions(path))
    if any(recorded.excluded(split) != data.excluded(split) for split in SPLITS[:2]):
        log(
            f"{out.name}: the exclusion list has changed since this run began; "
            "the run keeps the list that it began with"
        )
    return recorded


def write_run_config(out: Path, config: dict, data: DataFolder) -> None:
    """Write config.json, and the images left out of the training to excluded.csv."""
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(
        [["path"], *([path] for path in sorted(data.exclusions))]
    )
    write_atomic(out / "excluded.csv", table.getvalue())
    write_json(out / "config.json", config)


def _has_model(out: Path) -> bool:
    return (out / "model.json").is_file()


def is_complete(out: Path, profile: Profile) -> bool:
    """Return whether the run in `out` has all the epochs that are requested."""
    if not _has_model(out):
        return False
    epochs = ModelDescription.read(out / "model.json").epochs
    return epochs is None or epochs >= profile.epochs


def save_epoch_model(model: Detector, row: dict, out: Path, name: str, profile: Profile) -> None:
    """Save an epoch's averaged weights as a model of its own in `epochs/`."""
    folder = out / "epochs" / f"epoch_{row['epoch']:03}"
    save_weights(model, folder / "model.safetensors")
    _describe(row, name, profile, row["epoch"]).write(folder / "model.json")


def write_history(rows: list[dict], out: Path) -> None:
    """Write history.csv."""
    write_atomic(out / "history.csv", pd.DataFrame(rows).to_csv(index=False))


def log_epoch(
    rows: list[dict], saving: float, out: Path, epochs: int, log: Callable[[str], None]
) -> None:
    """Write history.csv and log its last epoch; `saving` are the seconds spent on checkpoints."""
    write_history(rows, out)
    row = rows[-1]
    log(
        f"{out.name} epoch {row['epoch']}/{epochs}: training loss {row['training_loss']:.3f}, "
        f"Validation AUC {row['auc']:.3f} (degraded {row['degraded_auc']:.3f}), "
        f"accuracy {row['accuracy']:.3f}, {row['images_per_second']:.0f} images/s, "
        f"{row['seconds']:.0f} s, including {saving:.1f} s for checkpoints"
    )


def finalize_run(
    state: TrainingState, out: Path, training: TrainingComponents, profile: Profile
) -> None:
    """Make the best epoch's weights the model; keep one checkpoint."""
    rows, model = state.rows, training.ema_model.module
    write_history(rows, out)
    model.load_state_dict(state.best_weights)
    save_weights(model, out / "model.safetensors")
    best = rows[best_epoch(pd.DataFrame(rows)) - 1]
    # Last: with it the run is complete.
    _describe(best, training.model_name, profile, len(rows)).write(out / "model.json")
    for checkpoint in checkpoints(out)[1:]:
        shutil.rmtree(checkpoint)


def _describe(row: dict, name: str, profile: Profile, epochs: int) -> ModelDescription:
    return ModelDescription(
        name, profile.image_size, profile.precision, row["temperature"], row["threshold"],
        row["epoch"], epochs, profile.flip_at_test, profile.instance_norm,
    )  # fmt: skip
