"""A run on disk while it trains: its lock, its settings, and the state to go on from."""

import dataclasses
import fcntl
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

import torch
from accelerate import Accelerator

from dfd_utils.config import PROJECT_ROOT, SPLITS, Profile, UserError
from dfd_utils.dataset import data_fingerprint, read_exclusions

PATIENCE = 20  # seconds: a notebook's kernel outlives its killed parent by a moment


def acquire(lock: TextIO, out: Path) -> None:
    """Take the run's lock for this process, or raise a UserError after `PATIENCE` seconds."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise UserError(f"{out}: another process trains here; wait or stop it") from error
            time.sleep(0.5)


class Progress:
    """The history, in the form that accelerate keeps in a checkpoint."""

    def __init__(self):
        self.rows: list[dict] = []

    def state_dict(self) -> dict:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict) -> None:
        self.rows = state["rows"]


def save_checkpoint(accelerator: Accelerator, out: Path) -> None:
    """Write `checkpoint/` beside its place and swap it in, so that a whole one is always there."""
    partial, place, old = (out / f"checkpoint{suffix}" for suffix in (".partial", "", ".old"))
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    if accelerator.is_main_process:
        shutil.rmtree(old, ignore_errors=True)
        if place.exists():
            place.rename(old)
        partial.rename(place)
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(accelerator: Accelerator, out: Path, log: Callable[[str], None]) -> None:
    """Restore the newest whole checkpoint of the run, if there is one."""
    for place in (out / "checkpoint", out / "checkpoint.old"):
        if place.is_dir():
            log(f"{out.name}: going on from {place.name}")
            return accelerator.load_state(str(place))


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
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "accelerate", "dfd-utils")},
        },
        "git_commit": commit.stdout.strip() or "unknown",
    }


def refuse_other_settings(path: Path, config: dict) -> None:
    """Raise a UserError that names what differs from the run that is there already."""
    if not path.is_file():
        return
    before = json.loads(path.read_text())
    for part in ("model", "data_fingerprint", "settings"):
        old, new = before[part], config[part]
        if part == "settings":  # the number of workers changes no result
            changed = [k for k in new if old.get(k) != new[k] and k != "num_workers"]
            old, new = ({k: side.get(k) for k in changed} for side in (old, new))
        if old != new:
            raise UserError(
                f"{path.parent}: holds a run with {part} {old}, asked for is {new}; "
                "choose another run name, or delete that folder"
            )
