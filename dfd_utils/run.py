"""A run's folder: its lock, the settings that a later call must share, and its results."""

import dataclasses
import fcntl
import json
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

from dfd_utils.checkpoint import TrainingState, checkpoints
from dfd_utils.config import (
    FREE_SETTINGS,
    PROJECT_ROOT,
    SPLITS,
    TUNED,
    Profile,
    UserError,
    read_json,
    write_whole,
)
from dfd_utils.dataset import data_fingerprint, read_exclusions
from dfd_utils.history import best_epoch
from dfd_utils.models import Detector, describe, read_description, save_model
from dfd_utils.processes import processes
from dfd_utils.recipe import Training

PATIENCE = 20  # seconds: a notebook's kernel outlives its killed parent by a moment


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Make the run's folder and hold its lock.

    Raises:
        UserError: it cannot be written, or another process has the lock for `PATIENCE` seconds.
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
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise UserError(f"{out}: another process trains here; wait or stop it") from error
            time.sleep(0.5)


def configuration(model_name: str, data: Path, profile: Profile) -> dict:
    """Return what `config.json` says: settings, data fingerprint, versions, commit, device."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=PROJECT_ROOT, capture_output=True, text=True
    )
    excluded = read_exclusions(data)
    return {
        "model": model_name,
        "settings": dataclasses.asdict(profile),
        "data": data.name,
        "data_fingerprint": data_fingerprint(data),
        "excluded_images": {s: sum(p.startswith(f"{s}/") for p in excluded) for s in SPLITS},
        "classes": {"0": "Real", "1": "Fake"},
        "positive_class": "Fake",
        "processes": processes().num_processes,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "accelerate", "dfd-utils")},
        },
        "git_commit": commit.stdout.strip() or "unknown",
    }


def read_configuration(folder: Path) -> dict:
    """Return what `configuration` told of a run when it was begun.

    Raises:
        UserError: config.json is missing or damaged.
    """
    keys = "model", "settings", "data", "data_fingerprint", "device", "versions", "git_commit"
    return read_json(folder / "config.json", keys, "delete that folder and train again")


def as_begun(out: Path, profile: Profile) -> Profile:
    """Return the profile with what the machine of the run in `out` chose, if it was begun.

    What is to be found on the machine was found when the run began, maybe on another one.
    """
    if not (out / "config.json").is_file():
        return profile
    begun = read_configuration(out)["settings"]
    found = {k: begun[k] for k, v in TUNED.items() if getattr(profile, k) == v and k in begun}
    return dataclasses.replace(profile, **found)


def refuse_other_settings(path: Path, config: dict) -> None:
    """Raise a UserError that names what differs from the run that is there already.

    What changes no result may differ; and more epochs may be asked for, since the learning rate
    does not depend on their number, where the run can go on from its last one.
    """
    if not path.is_file():
        return
    before = read_configuration(path.parent)
    for part in ("model", "data_fingerprint", "settings"):
        old, new = before[part], config[part]
        if part == "settings":
            free = FREE_SETTINGS
            resumable = checkpoints(path.parent) or not (path.parent / "model.json").is_file()
            if resumable and new["epochs"] > old["epochs"]:
                free += ("epochs",)
            changed = [k for k in new if old.get(k) != new[k] and k not in free]
            old, new = ({k: side.get(k) for k in changed} for side in (old, new))
        if old != new:
            raise UserError(
                f"{path.parent}: holds a run with {part} {old}, asked for is {new}; "
                "choose another run name, or delete that folder"
            )


def finished(out: Path, profile: Profile) -> bool:
    """Say whether the run in `out` has all the epochs that are asked for."""
    if not (out / "model.json").is_file():
        return False
    return read_description(out).get("epochs", profile.epochs) >= profile.epochs


def keep_epoch(model: Detector, row: dict, out: Path, name: str, profile: Profile) -> None:
    """Save an epoch's averaged weights as a model of its own in `epochs/`."""
    folder = out / "epochs" / f"epoch_{row['epoch']:03}"
    save_model(model, folder)
    write_whole(folder / "model.json", _description(row, name, profile))


def write_history(rows: list[dict], out: Path) -> None:
    """Write history.csv."""
    write_whole(out / "history.csv", pd.DataFrame(rows).to_csv(index=False))


def tell_epoch(
    rows: list[dict], saving: float, out: Path, epochs: int, log: Callable[[str], None]
) -> None:
    """Write history.csv and log its last epoch."""
    write_history(rows, out)
    row = rows[-1]
    log(
        f"{out.name} epoch {row['epoch']}/{epochs}: training loss {row['training_loss']:.3f}, "
        f"Validation AUC {row['auc']:.3f} (degraded {row['degraded_auc']:.3f}), "
        f"accuracy {row['accuracy']:.3f}, "
        f"{row['images_per_second']:.0f} images/s, {row['seconds']:.0f} s, "
        f"{saving:.1f} s of them for checkpoints"
    )


def finish(state: TrainingState, out: Path, training: Training, profile: Profile) -> None:
    """Make the best epoch's weights the model; keep one checkpoint."""
    name, model, rows = training.model_name, training.averaged.module, state.rows
    write_history(rows, out)
    model.load_state_dict(state.best_weights)
    save_model(model, out)
    # Last: it says that the run is finished.
    best = rows[best_epoch(pd.DataFrame(rows)) - 1]
    write_whole(out / "model.json", _description(best, name, profile, len(rows)))
    for place in checkpoints(out)[1:]:
        shutil.rmtree(place)


def _description(row: dict, name: str, profile: Profile, epochs: int | None = None) -> str:
    described = describe(
        name, profile.image_size, profile.precision, row["temperature"], row["threshold"]
    )
    described |= {
        "epoch": row["epoch"],
        "epochs": epochs or row["epoch"],
        "flip_at_test": profile.flip_at_test,
        "instance_norm": profile.instance_norm,
    }
    return json.dumps(described, indent=2) + "\n"
