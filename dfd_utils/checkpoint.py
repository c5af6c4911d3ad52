"""The state of a training on disk, whole or not at all, and the way back from it.

A run's `checkpoint/` holds the last two, `epoch_003_step_0000120` and so on (in epoch 3, 120 steps
done), each with the checksums of its files in SHA256SUMS, as `sha256sum -c` reads them.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from dfd_utils.processes import on_main

KEPT = 2  # should the newest be damaged, the one before is used
SUMS = "SHA256SUMS"


class TrainingState:
    """Where a training stands, in the form that accelerate keeps in a checkpoint."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.rows: list[dict] = []  # the history so far
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Set the counts of the running epoch to zero."""
        self.step = 0
        self.images = 0  # that this process has seen
        self.loss_sum = torch.zeros((), device=self.accelerator.device)  # over these images
        self.loss_sums = torch.zeros(self.accelerator.num_processes)  # all processes', when saved
        self.seconds = 0.0  # of training alone
        self.checkpoint_seconds = 0.0

    @property
    def epoch(self) -> int:
        """The running epoch, from 1."""
        return len(self.rows) + 1

    def gather(self) -> None:
        """Collect what differs between the processes, for one of them writes it for all."""
        self.loss_sums = self.accelerator.gather(self.loss_sum.reshape(1)).cpu()

    def state_dict(self) -> dict:
        names = ("rows", "step", "images", "loss_sums", "seconds", "checkpoint_seconds")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict) -> None:
        self.__dict__.update(state)
        processes = self.accelerator.num_processes
        if len(self.loss_sums) != processes:  # other devices than before: share what was summed
            self.images = self.images * len(self.loss_sums) // processes
            self.loss_sums = (self.loss_sums.sum() / processes).repeat(processes)
        mine = self.loss_sums[self.accelerator.process_index].clone()
        self.loss_sum = mine.to(self.accelerator.device)


class CheckpointWriter:
    """Writes a run's checkpoints beside their place, syncs and renames them; keeps the last two.

    Checksums and the wait for the disk go on beside the training: the last checkpoint is in its
    place when the next one is written, after `wait`, and at the end of the `with` block. One that
    cannot be written (a full disk, say) is told to `log`; the ones before stay as they were.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        state: TrainingState,
        out: Path,
        log: Callable[[str], None] = print,
    ):
        self.accelerator, self.state, self.out, self.log = accelerator, state, out, log
        self._partial = out / "checkpoint" / ".partial"
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future | None = None
        self._tell: Callable[[], None] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self._thread.shutdown()

    def save(self, tell: Callable[[], None] = lambda: None) -> None:
        """Write the state as it is now; its seconds are counted in the state.

        `tell` is called when it is in its place, in the main process: by `poll` or `wait`.
        """
        start = time.perf_counter()
        self.wait()
        self.state.gather()
        problem = on_main(_attempt, _make_room, self._partial)
        if problem is None:  # each process has a part in it
            problem = _attempt(_save_state, self.accelerator, self._partial)
            self.accelerator.wait_for_everyone()
            problem = on_main(lambda: problem)
        if self.accelerator.is_main_process:
            self._tell = tell
            name = f"epoch_{self.state.epoch:03}_step_{self.state.step:07}"
            place = self._partial.with_name(name)
            self._pending = self._thread.submit(
                lambda: problem or _attempt(_put_in_place, self._partial, place)
            )
        self.state.checkpoint_seconds += time.perf_counter() - start

    def poll(self) -> None:
        """Tell of the last checkpoint if it is in its place by now."""
        if self._pending and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is in its place."""
        pending, self._pending = self._pending, None
        if not pending:
            return
        if problem := pending.result():
            _clear(self._partial)
            self.log(
                f"{self.out.name}: no checkpoint could be written ({problem}); "
                "the last good one is kept"
            )
        self._tell()


def load_checkpoint(
    accelerator: Accelerator, state: TrainingState, out: Path, log: Callable[[str], None]
) -> None:
    """Restore the newest undamaged checkpoint, if there is one; name and remove damaged ones."""
    for place in on_main(checkpoints, out):
        problem = on_main(damage, place)
        if problem is None:
            accelerator.load_state(str(place))
            log(f"{out.name}: going on from checkpoint {place.name}")
            return
        log(f"{out.name}: checkpoint {place.name} is damaged ({problem}); trying the one before")
        on_main(shutil.rmtree, place)


def checkpoints(out: Path) -> list[Path]:
    """Return the run's checkpoints, the newest first."""
    return sorted((out / "checkpoint").glob("epoch_*_step_*"), reverse=True)


def damage(place: Path) -> str | None:
    """Return what is wrong with a checkpoint (a file that is missing or has changed), or None."""
    try:
        lines = (place / SUMS).read_text().splitlines()
        for line in lines:
            expected, name = line.split("  ", 1)
            if _sha256(place / name) != expected:
                return f"{name} has changed"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError) as error:
        return f"unreadable: {error}"
    return None if lines else f"{SUMS} is empty"


def sync(path: Path) -> None:
    """Have the disk hold what was written to a file or, of a folder, what it lists."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _attempt(function: Callable[..., object], *args: object) -> str | None:
    """Call the function; return why it could not write, or None."""
    try:
        function(*args)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have theirs
        return getattr(error, "strerror", None) or str(error).splitlines()[0]
    return None


def _save_state(accelerator: Accelerator, partial: Path) -> None:
    # SHA256SUMS tells damage; torch's own checksums would take a third of the time again.
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        accelerator.save_state(str(partial))
    finally:
        torch.serialization.set_crc32_options(before)


def _make_room(partial: Path) -> None:
    _clear(partial)
    partial.mkdir(parents=True)


def _clear(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, place: Path) -> None:
    files = sorted(partial.iterdir())
    (partial / SUMS).write_text("".join(f"{_sha256(file)}  {file.name}\n" for file in files))
    for path in [*files, partial / SUMS, partial]:
        sync(path)
    shutil.rmtree(place, ignore_errors=True)  # the same state, saved again
    partial.rename(place)
    sync(place.parent)
    for old in checkpoints(place.parent.parent)[KEPT:]:
        shutil.rmtree(old)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
