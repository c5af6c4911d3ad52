"""The number format that trains a model fastest on the machine at hand."""

import dataclasses
import json
import platform
import time
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration

from dfd_utils.config import BUILD_DIR, Profile, UserError, write_whole
from dfd_utils.memory import keep_freed_memory
from dfd_utils.models import create_model

MIXED_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
_MINIMUM_GAIN = 1.1  # a smaller gain is within the noise of the measurement


def make_accelerator(precision: str, seed: int = 0) -> Accelerator:
    """Return an Accelerator for `precision` (fp32, bf16 or fp16), with a seeded shuffle.

    A model trained in fp16 on a GPU is used in fp32 where there is none, and one trained in bf16
    likewise on a GPU without it.
    """
    keep_freed_memory()
    cuda = torch.cuda.is_available()
    if precision == "fp16" and not cuda:
        precision = "fp32"
    if precision == "bf16" and cuda and not torch.cuda.is_bf16_supported(False):
        precision = "fp32"
    # accelerate allows one precision a process; a notebook or a test may use several in turn
    AcceleratorState._reset_state()
    loader = DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True, data_seed=seed)
    return Accelerator(mixed_precision=MIXED_PRECISION[precision], dataloader_config=loader)


def resolve_precision(model_name: str, profile: Profile, log: Callable[[str], None]) -> Profile:
    """Replace precision "auto" by the fastest on this machine, measured once and kept.

    Raises:
        UserError: fp16 was asked for and there is no GPU.
    """
    if profile.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("setting precision: fp16 needs a GPU; choose auto, bf16 or fp32")
    if profile.precision != "auto":
        return profile
    place = BUILD_DIR / "precision.json"
    kept = json.loads(place.read_text()) if place.is_file() else {}
    key = f"{model_name} at {profile.image_size} px on {_device_name()}, torch {torch.__version__}"
    if key not in kept:
        kept[key] = _measured(model_name, profile.image_size)
        write_whole(place, json.dumps(kept, indent=2) + "\n")
    rates = kept[key]
    fastest = max(rates, key=rates.get)
    if rates[fastest] < _MINIMUM_GAIN * rates["fp32"]:
        fastest = "fp32"
    shown = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
    log(f"{model_name}: precision {fastest} (images/s in a short training: {shown})")
    return dataclasses.replace(profile, precision=fastest)


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo") as file:
            model = next(line.split(":")[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        model = platform.machine()
    return f"{model} ({torch.get_num_threads()} threads)"


def _measured(model_name: str, image_size: int) -> dict[str, float]:
    """Return images/s of training steps in each precision that the device may be fast in."""
    keep_freed_memory()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    candidates = {"fp32": None, "bf16": torch.bfloat16}
    if cuda and torch.cuda.get_device_capability() < (8, 0):  # a T4 only emulates bf16
        candidates = {"fp32": None, "fp16": torch.float16}
    # As large as in training, or the formats' ratio differs; few where a step takes long.
    batch_size = 64 if cuda else 32 if image_size <= 112 else 8
    images = torch.randint(0, 256, (batch_size, 3, image_size, image_size), dtype=torch.uint8)
    images, labels = images.to(device), torch.arange(batch_size, device=device) % 2
    model = create_model(model_name).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    seconds = {name: [] for name in candidates}
    for _ in range(4):  # in turn, so that a busy moment strikes all; the fastest step counts
        for name, dtype in candidates.items():
            start = time.perf_counter()
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                loss = torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if cuda:
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: batch_size / min(times) for name, times in seconds.items()}
