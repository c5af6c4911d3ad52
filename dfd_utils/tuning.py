"""The settings that train a model fastest on the machine at hand, measured once and kept."""

import dataclasses
import json
import platform
import time
from collections.abc import Callable
from itertools import product

import torch
from accelerate.utils import find_executable_batch_size
from torch import nn

from dfd_utils.config import BUILD_DIR, Profile, UserError, read_json, write_whole
from dfd_utils.memory import keep_freed_memory
from dfd_utils.models import MEMORY_FORMATS, create_model
from dfd_utils.processes import processes

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
LONG = 2 * 3600  # seconds of training, from which on minutes of compiling may pay
_MINIMUM_GAIN = 1.1  # a smaller gain is within the noise of the measurement
_ROUNDS = 3


def tune(
    model_name: str, profile: Profile, images: int = 0, log: Callable[[str], None] = print
) -> Profile:
    """Replace the settings that are to be found ("auto", None) by the fastest on this machine.

    Number and memory format are chosen by a few training steps of each, measured once per model,
    image size and machine and kept in build/tuning.json; whether to compile is measured only for
    a training of `images` images that would take `LONG` or more. With a precision given, memory is
    channels last and nothing is compiled, unless asked for. `micro_batch_size` becomes the largest
    part of a batch that fits the GPU's memory; None stays where that is the whole batch.

    Raises:
        UserError: fp16 was asked for and there is no GPU, or not even one image fits the memory.
    """
    if profile.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("setting precision: fp16 needs a GPU; choose auto, bf16 or fp32")
    if profile.precision == "auto":
        profile = _fastest(model_name, profile, images, log)
    if profile.memory_format == "auto":
        profile = dataclasses.replace(profile, memory_format="channels_last")
    if profile.compiled is None:
        profile = dataclasses.replace(profile, compiled=False)
    if profile.micro_batch_size is None and torch.cuda.is_available():
        share = profile.batch_size // processes().num_processes
        fitting = fitting_batch_size(model_name, profile, share)
        if fitting < share:
            log(f"{model_name}: {fitting} of a batch's {share} images fit the memory at once")
            profile = dataclasses.replace(profile, micro_batch_size=fitting)
    return profile


def _fastest(model_name: str, profile: Profile, images: int, log: Callable[[str], None]) -> Profile:
    place = BUILD_DIR / "tuning.json"
    kept = read_json(place, (), "delete it") if place.is_file() else {}
    key = f"{model_name} at {profile.image_size} px on {_device_name()}, torch {torch.__version__}"
    if key not in kept:
        kept[key] = _rates(model_name, profile.image_size)
    rates = kept[key]
    wanted = [profile.memory_format] if profile.memory_format != "auto" else MEMORY_FORMATS
    best = _best({name: rate for name, rate in rates.items() if name.split()[1] in wanted})
    precision, memory_format = best.split()[:2]
    compiled = f"{precision} {memory_format} compiled"
    if profile.compiled is None and images / rates[best] > LONG and compiled not in rates:
        rates |= _rates(model_name, profile.image_size, [(precision, memory_format, True)])
    write_whole(place, json.dumps(kept, indent=2) + "\n")
    faster = rates.get(compiled, 0) >= _MINIMUM_GAIN * rates[best]
    use = faster and images / rates[best] > LONG if profile.compiled is None else profile.compiled
    shown = ", ".join(f"{name.replace('_', ' ')} {rate:.0f}" for name, rate in rates.items())
    chosen = best.replace("_", " ") + (", compiled" if use else "")
    log(f"{model_name}: {chosen} (images/s in a short training: {shown})")
    return dataclasses.replace(
        profile, precision=precision, memory_format=memory_format, compiled=use
    )


def _best(rates: dict[str, float]) -> str:
    """Return the fastest; of those within the noise of it, the first."""
    return next(name for name in rates if rates[name] * _MINIMUM_GAIN > max(rates.values()))


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo") as file:
            model = next(line.split(":")[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        model = platform.machine()
    return f"{model} ({torch.get_num_threads()} threads)"


def _candidates() -> list[tuple[str, str, bool]]:
    """Return what the device may be fast in: (precision, memory format, compiled)."""
    half = "bf16"
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
        half = "fp16"  # a T4 only emulates bf16
    return [(*pair, False) for pair in product(("fp32", half), MEMORY_FORMATS)]


def _rates(
    model_name: str, image_size: int, candidates: list[tuple[str, str, bool]] | None = None
) -> dict[str, float]:
    """Return images/s of training steps in each candidate, 0 for one that cannot be had here."""
    # As large as in training, or the formats' ratio differs; few where a step takes long.
    batch_size = 64 if torch.cuda.is_available() else 32 if image_size <= 112 else 8
    steps, rates = {}, {}
    for precision, memory_format, compiled in candidates or _candidates():
        name = f"{precision} {memory_format}" + " compiled" * compiled
        make = (model_name, memory_format, DTYPES[precision], compiled)
        steps[name], rates[name] = _Step(*make, image_size), 0.0
    for _ in range(_ROUNDS):  # in turn, so that a busy moment strikes all; the fastest step counts
        for name, step in steps.items():
            try:
                start = time.perf_counter()
                step(batch_size)
                rates[name] = max(rates[name], batch_size / (time.perf_counter() - start))
            except RuntimeError as error:  # no compiler, say, or no memory: not a choice here
                rates[name], problem = 0.0, error
    if not any(rates.values()) and not candidates:
        raise UserError(f"{model_name} at {image_size} px cannot train here: {problem}")
    return rates


class _Step:
    """A training step on random images of the device, in one of the candidates."""

    def __init__(
        self,
        model_name: str,
        memory_format: str,
        dtype: torch.dtype | None,
        compiled: bool,
        image_size: int,
    ):
        keep_freed_memory()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = create_model(model_name, memory_format=memory_format).to(self.device)
        if compiled:
            self.model.compile()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        self.dtype, self.image_size = dtype, image_size

    def __call__(self, batch_size: int) -> None:
        shape = batch_size, self.image_size, self.image_size, 3
        images = torch.zeros(shape, dtype=torch.uint8, device=self.device).permute(0, 3, 1, 2)
        labels = torch.arange(batch_size, device=self.device) % 2
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            loss = nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def fitting_batch_size(model_name: str, profile: Profile, batch_size: int) -> int:
    """Return how many of `batch_size` images train at once in this memory, in steps of a tenth.

    Raises:
        UserError: not even one image fits.
    """
    place = model_name, profile.memory_format, DTYPES[profile.precision], False
    step = _Step(*place, profile.image_size)

    @find_executable_batch_size(starting_batch_size=batch_size)
    def attempt(fitting: int) -> int:
        step(fitting)
        return fitting

    try:
        return attempt()
    except RuntimeError as error:
        if "No executable batch size" not in str(error):
            raise
        raise UserError(
            f"{model_name} at {profile.image_size} px: not even one image fits the memory; "
            "choose a smaller image_size"
        ) from error
