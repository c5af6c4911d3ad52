"""What a model costs: parameters, FLOPs, size on disk, training time and measured speed."""

import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from dfd_utils.models.inputs import dct_input
from dfd_utils.models.trained import TrainedModel
from dfd_utils.runtime.accelerator import make_accelerator

BATCH_SIZE = 32
REPEATS = 30  # timings of one image, and a tenth as many of a batch; the median counts


def model_cost(model: TrainedModel) -> dict:
    """Return the costs that are the same on every machine: parameters, FLOPs, size, precision.

    GFLOPs are those of scoring one image and count a multiply-add as two. They are without the
    layers that PyTorch's FlopCounterMode does not know (normalisation, activation).
    """
    network = model.load()
    device = next(network.parameters()).device  # Grad-CAM may have moved it
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(_inputs(model, 1).to(device))
    return {
        "parameters (million)": sum(p.numel() for p in network.parameters()) / 1e6,
        "GFLOPs per image": counter.get_total_flops() / 1e9,
        "weights on disk (MB)": model.weights_file.stat().st_size / 1e6,
        "image size (px)": model.description.image_size or "own",
        "precision": model.description.precision,
    }


def _inputs(model: TrainedModel, images: int) -> torch.Tensor:
    """Return the model's input for random images of the Kaggle data's size."""
    pixels = torch.randint(0, 256, (images, 3, 256, 256), dtype=torch.uint8)
    return torch.stack([model.transform(image) for image in pixels])


def _statistics_seconds() -> float:
    """Return the time of the baseline's statistics of one image, on one core."""
    image, times = torch.randint(0, 256, (3, 256, 256), dtype=torch.uint8), []
    for _ in range(REPEATS):
        start = time.perf_counter()
        dct_input(image)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def training_cost(model: TrainedModel) -> dict:
    """Return the costs of the training: device, epochs, minutes, images/s."""
    return {
        "trained on": model.config["device"],
        "epochs": len(model.history),
        "training (min)": model.history["seconds"].sum() / 60,
        "training (images/s)": model.history["images_per_second"].median(),
    }


@torch.inference_mode()
def scoring_cost(model: TrainedModel) -> dict:
    """Measure scoring on this machine: ms for one image, images/s in batches, a GPU's peak MB.

    The images are already decoded and resized, but the baseline's statistics of an image of the
    Kaggle data's size count as scoring. The precision is the model's.
    """
    accelerator = make_accelerator(model.description.precision)
    # fuse_batchnorm returns a copy: accelerate changes the network that it prepares.
    network = accelerator.prepare(model.load().fuse_batchnorm())
    images = _inputs(model, BATCH_SIZE).to(accelerator.device)
    on_gpu = accelerator.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()

    def seconds(batch: torch.Tensor, repeats: int) -> float:
        times = []
        for _ in range(repeats + 2):  # two to warm up
            start = time.perf_counter()
            network(batch).float().cpu()  # to the CPU: waits for the GPU
            times.append(time.perf_counter() - start)
        return statistics.median(times[2:])

    one, many = seconds(images[:1], REPEATS), seconds(images, REPEATS // 10)
    if not model.is_network:
        statistics_seconds = _statistics_seconds()
        one, many = one + statistics_seconds, many + BATCH_SIZE * statistics_seconds
    cost = {
        "scored on": torch.cuda.get_device_name() if on_gpu else "cpu",
        "one image (ms)": one * 1e3,
        f"images/s in batches of {BATCH_SIZE}": BATCH_SIZE / many,
    }
    if on_gpu:
        cost["peak memory (MB)"] = torch.cuda.max_memory_allocated() / 1e6
    return cost
