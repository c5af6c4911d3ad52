"""Checkpoints of a training: written completely or not at all, and restored exactly.

A run's `checkpoint/` contains the last two, named like `epoch_003_step_0000120` (120 steps of epoch
3 are done). Each contains the state in `state.pt`, and its checksum in SHA256SUMS in the format of
`sha256sum -c`.
"""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn

from dfd_utils.models.trained import best_epoch
from dfd_utils.runtime.distributed import run_on_main
from dfd_utils.training.components import TrainingComponents

KEPT = 2  # if the newest is damaged, the one before it is used
STATE, SUMS = "state.pt", "SHA256SUMS"


class TrainingState:
    """The progress of a training: its history, and the counts of the running epoch."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.rows: list[dict] = []  # the history: a row per complete epoch
        self.best_weights: dict[str, torch.Tensor] = {}  # averaged weights of the best epoch
        self.begin_epoch()

    def add(self, row: dict, model: nn.Module) -> None:
        """Add an epoch to the history; keep its weights if it is the best so far."""
        self.rows.append(row)
        if best_epoch(pd.DataFrame(self.rows)) == row["epoch"]:
            self.best_weights = {k: v.cpu().clone() for k, v in model.state_dict().items()}

    def begin_epoch(self) -> None:
        """Set the counts of the running epoch to zero."""
        self.step = 0
        self.images = 0  # of this process
        self.loss_sum = torch.zeros((), device=self.accelerator.device)  # over these images
        self.loss_sums = torch.zeros(self.accelerator.num_processes)  # of each process, when saved
        self.seconds = 0.0  # of training alone
        self.checkpoint_seconds = 0.0

    @property
    def epoch(self) -> int:
        """The running epoch, from 1."""
        return len(self.rows) + 1

    def gather(self) -> None:
        """Gather the loss sums of all processes, because the main process saves them."""
        self.loss_sums = self.accelerator.gather(self.loss_sum.reshape(1)).cpu()

    def state_dict(self) -> dict:
        names = ("rows", "best_weights", "step", "images", "loss_sums", "seconds")
        return {name: getattr(self, name) for name in (*names, "checkpoint_seconds")}

    def load_state_dict(self, state: dict) -> None:
        self.__dict__.update(state)
        processes = self.accelerator.num_processes
        if len(self.loss_sums) != processes:  # the run was saved by another number of processes
            self.images = self.images * len(self.loss_sums) // processes
            self.loss_sums = (self.loss_sums.sum() / processes).repeat(processes)
        own_sum = self.loss_sums[self.accelerator.process_index].clone()
        self.loss_sum = own_sum.to(self.accelerator.device)


class CheckpointWriter:
    """Writes checkpoints under a temporary name, syncs and renames them; keeps the last two.

    Checksum and sync run in the background. A checkpoint is complete when the next one is written,
    after `wait`, and at the end of the `with` block. If one cannot be written (a full disk, for
    example), a line in `log` gives the reason and the earlier ones are kept.
    """

    def __init__(
        self,
        training: TrainingComponents,
        state: TrainingState,
        out: Path,
        log: Callable[[str], None] = print,
    ):
        self.training, self.state, self.out, self.log = training, state, out, log
        self._partial = out / "checkpoint" / ".partial"
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future | None = None
        self._announcements: list[Callable[[], None]] = []

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self._thread.shutdown()
        if self.training.accelerator.is_main_process:
            shutil.rmtree(self._partial, ignore_errors=True)

    def save(self, on_saved: Callable[[], None] = lambda: None) -> None:
        """Write the current state and add the seconds that this takes to it.

        `on_saved` is called in the main process once this state, or a later one, is on disk.
        """
        start = time.perf_counter()
        self.wait()
        self.state.gather()
        if self.training.accelerator.is_main_process:
            self._announcements.append(on_saved)
            name = f"epoch_{self.state.epoch:03}_step_{self.state.step:07}"
            path = self._partial.with_name(name)
            if not path.exists():  # the same state may have been saved a moment ago
                content = _collect(self.training, self.state)
                problem = _attempt(_write, content, self._partial / STATE)
                self._pending = self._thread.submit(
                    lambda: problem or _attempt(_commit, self._partial, path)
                )
        self.state.checkpoint_seconds += time.perf_counter() - start

    def poll(self) -> None:
        """Announce the last checkpoint if it is complete by now."""
        if self._pending and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is complete, and announce it."""
        pending, self._pending = self._pending, None
        if not pending:
            return
        if problem := pending.result():
            shutil.rmtree(self._partial, ignore_errors=True)
            self.log(
                f"{self.out.name}: no checkpoint could be written ({problem}); "
                "the last good one is kept"
            )
        else:
            self.announce()

    def announce(self) -> None:
        """Call `on_saved` of every state that is on disk now and has not been announced."""
        announcements, self._announcements = self._announcements, []
        for on_saved in announcements:
            on_saved()


def load_checkpoint(
    training: TrainingComponents, state: TrainingState, out: Path, log: Callable[[str], None]
) -> None:
    """Restore the newest intact checkpoint, if there is one; report and remove damaged ones."""
    for path in run_on_main(checkpoints, out):
        problem = run_on_main(find_corruption, path)
        if problem is None:
            _restore(training, state, path / STATE)
            log(f"{out.name}: continuing from checkpoint {path.name}")
            return
        log(f"{out.name}: checkpoint {path.name} is damaged ({problem}); trying the one before")
        run_on_main(shutil.rmtree, path)


def checkpoints(out: Path) -> list[Path]:
    """Return the run's checkpoints, the newest first."""

    def epoch_and_step(path: Path) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", path.name)]

    return sorted((out / "checkpoint").glob("epoch_*_step_*"), key=epoch_and_step, reverse=True)


def find_corruption(path: Path) -> str | None:
    """Return how a checkpoint is damaged (a missing or changed file), or None."""
    try:
        if (path / SUMS).read_text() != _sums(path):
            return f"{STATE} has changed"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError) as error:
        return f"unreadable: {error}"
    return None


def _sync(path: Path) -> None:
    """Flush a file's content, or a folder's list of files, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _attempt(function: Callable[..., object], *args: object) -> str | None:
    """Call the function; return the reason if it could not write, else None."""
    try:
        function(*args)
    except (OSError, RuntimeError) as error:
        # torch replaces the system's error by one of its own.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        return getattr(cause, "strerror", None) or str(error).splitlines()[0]
    return None


def _collect(training: TrainingComponents, state: TrainingState) -> dict:
    """Return the whole state; random numbers depend on seed, epoch and step only."""
    scaler = training.accelerator.scaler
    return {
        "model": training.accelerator.unwrap_model(training.model).state_dict(),
        "averaged": training.ema_model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "lr_scheduler": training.lr_scheduler.state_dict(),
        "scaler": scaler.state_dict() if scaler else None,
        "state": state.state_dict(),
    }


def _restore(training: TrainingComponents, state: TrainingState, path: Path) -> None:
    saved = torch.load(path, map_location="cpu", weights_only=True)
    training.accelerator.unwrap_model(training.model).load_state_dict(saved["model"])
    training.ema_model.load_state_dict(saved["averaged"])
    training.optimizer.load_state_dict(saved["optimizer"])
    training.lr_scheduler.load_state_dict(saved["lr_scheduler"])
    if training.accelerator.scaler:
        training.accelerator.scaler.load_state_dict(saved["scaler"])
    state.load_state_dict(saved["state"])


def _write(content: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # SHA256SUMS reveals damage; torch's own checksums would take a third longer.
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        with open(path, "wb") as file:
            torch.save(content, file)
    finally:
        torch.serialization.set_crc32_options(before)


def _commit(partial: Path, final: Path) -> None:
    (partial / SUMS).write_text(_sums(partial))
    for path in (partial / STATE, partial / SUMS, partial):
        _sync(path)
    partial.rename(final)
    _sync(final.parent)
    for old in checkpoints(final.parent.parent)[KEPT:]:
        shutil.rmtree(old)


def _sums(folder: Path) -> str:
    with open(folder / STATE, "rb") as file:
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {STATE}\n"
