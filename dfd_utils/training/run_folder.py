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
from dfd_utils.training.validation import CHOSEN

LOCK_TIMEOUT = 20  # seconds: a notebook's kernel outlives its killed parent by a moment
REMEDY = "choose another run name, or delete that folder"


@contextmanager
def run_lock(out: Path) -> Iterator[None]:
    """Create the run's folder and hold its lock.

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
    deadline = time.monotonic() + LOCK_TIMEOUT
    with lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{out}: another process trains here; wait or stop it"
                    ) from error
                time.sleep(0.5)
        yield


def build_run_config(
    model_name: str, data: DataFolder, profile: Profile, requested_weights: str
) -> dict:
    """Return the content of `config.json`: settings, data, versions, commit, device.

    `settings.weights` are the weights that the training starts from. They differ from
    `requested_weights` where ImageNet's could not be downloaded.
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
        "embedded_sample": data.is_sample,
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
    """Identify a file of weights by its content, because a file of the same name may change."""
    if weights in ("none", "imagenet"):
        return weights
    try:
        with open(weights, "rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise UserError(f"{weights}: weights that cannot be read ({error.strerror})") from error


def has_saved(out: Path) -> bool:
    """Return whether `out` contains a checkpoint or a model; if not, its run may begin anew."""
    return bool(checkpoints(out)) or (out / "model.json").is_file()


def _recorded_config(out: Path) -> dict | None:
    """Return the config.json of the run in `out`, or None if no run has saved anything there.

    Raises:
        UserError: it is damaged, or of an earlier version of the package.
    """
    if not ((out / "config.json").is_file() and has_saved(out)):
        return None
    config = read_config(out)
    settings, names = config["settings"], {field.name for field in dataclasses.fields(Profile)}
    if not (
        config.keys() >= {"requested_weights", "initial_weights"}
        and settings.keys() >= names
        and isinstance(settings["epochs"], int)
        and isinstance(settings["weights"], str)
    ):
        raise UserError(
            f"{out}: contains a run of an earlier version of dfd-utils, or config.json is damaged; "
            f"{REMEDY}"
        )
    return config


def with_recorded_settings(out: Path, profile: Profile) -> Profile:
    """Return the profile with the automatic settings of the run in `out`, if it has saved anything.

    Precision and micro-batch size were chosen for the machine where the run began, and ImageNet's
    weights may not have been available there.
    """
    config = _recorded_config(out)
    if config is None:
        return profile
    names = [name for name, auto in AUTO_SETTINGS.items() if getattr(profile, name) == auto]
    if profile.weights == config["requested_weights"]:
        names.append("weights")
    return dataclasses.replace(profile, **{name: config["settings"][name] for name in names})


def check_resumable(out: Path, config: dict) -> None:
    """Raise a UserError that names how `config` differs from that of the run already in `out`.

    Settings that do not change the result may differ. More epochs may be requested if there is a
    checkpoint to continue from, because the learning rate does not depend on their number.
    """
    before = _recorded_config(out)
    if before is None:
        return
    if before["model"] != config["model"]:
        raise UserError(f"{out}: contains a run of {before['model']}; {REMEDY}")
    if before["data_fingerprint"] != config["data_fingerprint"]:
        raise UserError(
            f"{out}: was trained on other images ('{before['data']}', fingerprint "
            f"{before['data_fingerprint']}) than '{config['data']}' now contains "
            f"({config['data_fingerprint']}); {REMEDY}"
        )
    old, new = before["settings"], config["settings"]
    allowed = {"weights", *RESULT_NEUTRAL_SETTINGS}  # weights are compared by content, below
    if new["epochs"] > old["epochs"] and checkpoints(out):
        allowed.add("epochs")
    changed = [
        f"{name} {old.get(name)} (requested {new[name]})"
        for name in new
        if name not in allowed and old.get(name) != new[name]
    ]
    if before["initial_weights"] != config["initial_weights"]:
        other = ", whose content has changed" if old["weights"] == new["weights"] else ""
        changed.append(f"weights {old['weights']} (requested {new['weights']}{other})")
    if changed:
        raise UserError(
            f"{out}: already contains a run with other settings: {', '.join(changed)}; {REMEDY}"
        )


def recorded_exclusions(out: Path, data: DataFolder, log: Callable[[str], None]) -> DataFolder:
    """Return the data set with the exclusions of the run in `out`, if it has saved anything.

    A line in `log` reports that the exclusion list has changed since; the run remains usable.
    """
    if not ((out / "excluded.csv").is_file() and has_saved(out)):
        return data
    recorded = data.with_exclusions(read_exclusions(out / "excluded.csv"))
    if any(recorded.excluded(split) != data.excluded(split) for split in SPLITS[:2]):
        log(
            f"{out.name}: the exclusion list has changed since this run began; "
            "the run keeps the list that it began with"
        )
    return recorded


def write_run_config(out: Path, config: dict, data: DataFolder) -> None:
    """Write config.json, and the paths of the excluded images to excluded.csv."""
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(
        [["path"], *([path] for path in sorted(data.exclusions))]
    )
    write_atomic(out / "excluded.csv", table.getvalue())
    write_json(out / "config.json", config)


def is_complete(out: Path, profile: Profile) -> bool:
    """Return whether the run in `out` has all the epochs that are requested."""
    if not (out / "model.json").is_file():
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
    """Write the history and the model, with the best epoch's weights; keep one checkpoint."""
    rows, model = state.rows, training.ema_model.module
    write_history(rows, out)
    model.load_state_dict(state.best_weights)
    save_weights(model, out / "model.safetensors")
    best = rows[best_epoch(pd.DataFrame(rows)) - 1]
    # Written last, because it marks the run as complete.
    _describe(best, training.model_name, profile, len(rows)).write(out / "model.json")
    for checkpoint in checkpoints(out)[1:]:
        shutil.rmtree(checkpoint)


def _describe(row: dict, name: str, profile: Profile, epochs: int) -> ModelDescription:
    return ModelDescription(
        architecture=name,
        image_size=profile.image_size,
        precision=profile.precision,
        epoch=row["epoch"],
        epochs=epochs,
        flip_at_test=profile.flip_at_test,
        instance_norm=profile.instance_norm,
        **{chosen: row[chosen] for chosen in CHOSEN},
    )
