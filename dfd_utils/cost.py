"""What a model costs: parameters, FLOPs, weights, training time; measured: speed and memory."""

import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from dfd_utils.models import load_model
from dfd_utils.precision import make_accelerator
from dfd_utils.run import read_configuration

BATCH_SIZE = 32
RUNS = 30  # of one image, 3 of a batch; the median counts


def model_cost(folder: Path) -> dict:
    """Return what is the same on every machine: parameters, FLOPs, weights, size, and precision.

    GFLOPs are those of scoring one image, with a multiply-add counted as two; layers that PyTorch's
    FlopCounterMode does not know (normalisation, activation) are left out.
    """
    model, description = load_model(folder)
    size = description["image_size"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    return {
        "parameters (million)": sum(p.numel() for p in model.parameters()) / 1e6,
        "GFLOPs an image": counter.get_total_flops() / 1e9,
        "weights on disk (MB)": (folder / "model.safetensors").stat().st_size / 1e6,
        "image size (px)": size,
        "precision": description["precision"],
    }


def training_cost(folder: Path) -> dict:
    """Return what the training took: device, epochs, minutes, images/s."""
    history = pd.read_csv(folder / "history.csv")
    return {
        "trained on": read_configuration(folder)["device"],
        "epochs": len(history),
        "training (min)": history["seconds"].sum() / 60,
        "training (images/s)": history["images_per_second"].median(),
    }


def scoring_cost(folder: Path) -> dict:
    """Measure scoring on this machine: ms for one image, images/s in batches, peak memory in MB.

    From decoded images of the model's size, in the model's precision; decoding is not in it. Runs
    in a process of its own, so that the peak is the model's: of the GPU's memory, or, where there
    is none, of what the process took from the time it had imported PyTorch (nan outside Linux).
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, folder).result()


def _measured(folder: Path) -> dict:
    before = _memory("VmRSS")
    model, description = load_model(folder)
    accelerator = make_accelerator(description["precision"])
    model, size = accelerator.prepare(model), description["image_size"]
    images = torch.randint(0, 256, (BATCH_SIZE, 3, size, size), dtype=torch.uint8)
    images = images.to(accelerator.device)

    def seconds(batch: torch.Tensor, runs: int) -> float:
        times = []
        for _ in range(runs + 2):  # the first few make up their minds about kernels
            start = time.perf_counter()
            with torch.inference_mode(), accelerator.autocast():
                model(batch).float().cpu()  # to the CPU: waits for the GPU
            times.append(time.perf_counter() - start)
        return float(pd.Series(times[2:]).median())

    one, many = seconds(images[:1], RUNS), seconds(images, RUNS // 10)
    return {
        "scored on": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "one image (ms)": one * 1e3,
        f"images/s in batches of {BATCH_SIZE}": BATCH_SIZE / many,
        "peak memory (MB)": _peak_memory(before) / 1e6,
    }


def _memory(key: str) -> float:
    """Return this process's memory in bytes: now (VmRSS) or at its peak (VmHWM); nan if unknown."""
    try:  # not getrusage: its peak is inherited from the process that started this one
        told = dict(
            line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines()
        )
        return float(told[key].split()[0]) * 1024
    except (OSError, KeyError):
        return math.nan


def _peak_memory(before: float) -> float:
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    return _memory("VmHWM") - before
