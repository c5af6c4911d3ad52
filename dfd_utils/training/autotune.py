"""Automatic settings: the fastest precision on this machine, and a batch that fits its memory."""

import dataclasses
import os
import platform
import time
from collections.abc import Callable

import torch
from accelerate.utils import find_executable_batch_size
from torch import nn

from dfd_utils.config import BUILD_DIR, Profile, UserError
from dfd_utils.models.registry import create_model
from dfd_utils.runtime.distributed import process_state
from dfd_utils.runtime.files import content_hash, read_json, write_json
from dfd_utils.runtime.workers import configure_malloc

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_MINIMUM_GAIN = 1.1  # a smaller gain may be noise
FIRST_STEP = 6, 64  # images and their size in pixels
HOPELESS = 2.5  # times slower in the first step, which includes the compilation of kernels
TRIAL_SECONDS = 4  # for all trials of a model at up to 112 pixels; four times that beyond


def autotune(model_name: str, profile: Profile, log: Callable[[str], None] = print) -> Profile:
    """Replace the automatic settings ("auto", None) by those that suit this machine.

    A few training steps in each precision find the fastest one; their rates are kept in
    build/tuning.json per model, image size and machine. `micro_batch_size` becomes the largest part
    of a batch that fits into the GPU's memory, or remains None if the whole batch does.

    Raises:
        UserError: fp16 is requested and there is no GPU, or not even one image fits into memory.
    """
    if profile.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("setting precision: fp16 needs a GPU; choose auto, bf16 or fp32")
    if profile.precision == "auto":
        precision = _fastest_precision(model_name, profile.image_size, log)
        profile = dataclasses.replace(profile, precision=precision)
    if profile.micro_batch_size is None and torch.cuda.is_available():
        share = profile.batch_size // process_state().num_processes
        fitting = fitting_batch_size(model_name, profile, share)
        if fitting < share:
            log(f"{model_name}: {fitting} of a batch's {share} images fit into memory at once")
            profile = dataclasses.replace(profile, micro_batch_size=fitting)
    return profile


def _fastest_precision(model_name: str, image_size: int, log: Callable[[str], None]) -> str:
    path = BUILD_DIR / "tuning.json"
    tuning = read_json(path, (), "delete it") if path.is_file() else {}
    key = f"{model_name} at {image_size} px on {_device_name()}, torch {torch.__version__}"
    if set(tuning.get(key, ())) != set(_candidates()):
        start = time.perf_counter()
        tuning[key] = _rates(model_name, image_size)
        write_json(path, tuning)
        seconds = time.perf_counter() - start
        log(f"{model_name}: found the fastest precision for this machine in {seconds:.1f} s")
    rates = tuning[key]
    # The first whose rate is the highest or within the noise of it.
    best = next(name for name in rates if rates[name] * _MINIMUM_GAIN > max(rates.values()))
    measured = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
    log(f"{model_name}: training in {best} (images/s in a short test: {measured})")
    return best


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo") as file:
            fields = (line.partition(":")[::2] for line in file)
            cpu = {name.strip(): value.strip() for name, value in fields}
    except OSError:
        cpu = {}
    model = cpu.get("model name", platform.machine())
    # Virtual machines of one name differ in their instructions, and settings can hide some.
    instructions = content_hash(
        cpu.get("flags", cpu.get("Features", "")),  # x86 and ARM
        torch.backends.cpu.get_cpu_capability(),
        os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
    )
    return f"{model} ({torch.get_num_threads()} threads, instructions {instructions[:8]})"


def _candidates() -> tuple[str, str]:
    """Return the precisions that the device may be fast in."""
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
        return "fp32", "fp16"  # a T4 only emulates bf16
    return "fp32", "bf16"


def _rates(model_name: str, image_size: int) -> dict[str, float]:
    """Return images/s of training steps in each precision, 0 where one is not possible here."""
    start = time.perf_counter()
    step = _Step(model_name)
    # A few small images show which precisions the device only emulates, at a tenth of the speed.
    rates = {name: _rate(step, name, *FIRST_STEP) for name in _candidates()}
    names = [name for name in rates if rates[name] * HOPELESS > max(rates.values())]
    # The ratio of the others depends on the batch size: about as in training, but quick.
    batch_size = 64 if torch.cuda.is_available() else 32 if image_size <= 112 else 8
    limit, rounds = TRIAL_SECONDS * (1 if image_size <= 112 else 4), 0
    while len(names) > 1 and rounds < 3:
        for name in names:  # alternating, so that other load affects both; the fastest counts
            rate = _rate(step, name, batch_size, image_size)
            rates[name] = max(rates[name], rate) if rounds else rate
        rounds += 1
        if (time.perf_counter() - start) * (rounds + 1) / rounds > limit:
            break
    if not any(rates.values()):
        raise UserError(f"{model_name} at {image_size} px cannot train here: {step.problem}")
    return rates


def _rate(step: "_Step", precision: str, batch_size: int, image_size: int) -> float:
    start = time.perf_counter()
    try:
        step(DTYPES[precision], batch_size, image_size)
    except RuntimeError as error:  # out of memory, for example
        step.problem = error
        return 0.0
    return batch_size / (time.perf_counter() - start)


class _Step:
    """A training step on black images in the device's memory."""

    def __init__(self, model_name: str):
        configure_malloc()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = create_model(model_name).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        self.problem = None  # the last error

    def __call__(self, dtype: torch.dtype | None, batch_size: int, image_size: int) -> None:
        shape = batch_size, image_size, image_size, 3
        images = torch.zeros(shape, dtype=torch.uint8, device=self.device).permute(0, 3, 1, 2)
        labels = torch.arange(batch_size, device=self.device) % 2
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            loss = nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def fitting_batch_size(model_name: str, profile: Profile, batch_size: int) -> int:
    """Return how many of `batch_size` images fit into memory in a training step.

    Each trial has a tenth fewer images than the one before.

    Raises:
        UserError: not even one image fits.
    """
    step = _Step(model_name)

    @find_executable_batch_size(starting_batch_size=batch_size)
    def attempt(fitting: int) -> int:
        step(DTYPES[profile.precision], fitting, profile.image_size)
        return fitting

    try:
        return attempt()
    except RuntimeError as error:
        if "No executable batch size" not in str(error):
            raise
        raise UserError(
            f"{model_name} at {profile.image_size} px: not even one image fits into memory; "
            "choose a smaller image_size"
        ) from error
