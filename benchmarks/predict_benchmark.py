"""How fast `dfd predict` is, how exact and fast the ONNX file is, what the face check catches.

    python benchmarks/predict_benchmark.py speed --model MODEL --faces DIR…
    python benchmarks/predict_benchmark.py onnx --model MODEL… --faces DIR…
    python benchmarks/predict_benchmark.py warnings --faces DIR…

MODEL is a trained model's folder. DIR is a folder of face images: the JPEGs in it and below. Files
that a call makes are kept in --work and used again by the next call.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from audit_benchmark import ResourceMonitor
from sklearn.datasets import load_sample_images
from torch import Tensor

from dfd_utils.data.dataset import read_image
from dfd_utils.data.loader import inference_batch_size
from dfd_utils.data.transforms import eval_transform
from dfd_utils.inference.face_check import has_face
from dfd_utils.inference.predict import UntrustedImages
from dfd_utils.models.onnx_export import export_onnx
from dfd_utils.models.trained import TrainedModel
from dfd_utils.runtime.accelerator import make_accelerator

# The course project's way: each image starts a process and loads the model.
ONE_IMAGE = """
import sys, torch, torchvision
from PIL import Image
from safetensors.torch import load_file
from torchvision import transforms
name, weights, file, size = sys.argv[1:]
model = getattr(torchvision.models, name)(num_classes=2)
state = {key.removeprefix("backbone."): value for key, value in load_file(weights).items()}
model.load_state_dict(state)
model.eval()
normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
steps = [transforms.Resize((int(size),) * 2), transforms.ToTensor(), normalize]
with torch.no_grad():
    print(model(transforms.Compose(steps)(Image.open(file).convert("RGB"))[None]).argmax())
"""


def print_table(rows: Iterable[dict]) -> None:
    """Print rows with the same keys as a Markdown table."""
    rows = list(rows)
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")


def rate(call: Callable, images: int, seconds: float = 3) -> float:
    """Return images/s of a call that handles `images` of them, repeated for some seconds."""
    call()
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        call()
        done += images
    return done / (time.perf_counter() - start)


def network_rate(model: TrainedModel) -> float:
    """Return images/s of the network alone, as `dfd predict` runs it."""
    accelerator, size = make_accelerator(model.description.precision), model.description.image_size
    batch = inference_batch_size(accelerator.device, size)
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    images = images.to(accelerator.device)
    scorer = model.load().fuse_batchnorm().to(accelerator.device)
    with torch.inference_mode(), accelerator.autocast():
        return rate(lambda: scorer(images)[0, 0].item(), batch)


def reading_ms(files: list[str], model: TrainedModel, find_faces: bool) -> float:
    """Return milliseconds of one core for reading, resizing and checking an image."""
    images, threads = UntrustedImages(files[:300], model, find_faces), torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.process_time()
    for i in range(len(images)):
        images[i]
    torch.set_num_threads(threads)
    return 1000 * (time.process_time() - start) / len(images)


def link(files: list[str], folder: Path, images: int) -> Path:
    """Fill a folder with as many links to the files, each file several times if necessary."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(images):
        path = folder / f"{i:06}.jpg"
        if not path.is_symlink():
            path.symlink_to(os.path.abspath(files[i % len(files)]))
    return folder


def run_predict(folder: Path, model: TrainedModel, *options: str) -> tuple[float, float]:
    """Run `dfd predict` on a folder; return its seconds, and the memory of all its processes."""
    out = folder.with_suffix(".csv")
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "dfd_utils", "predict", "--model", model.folder, *options]
    command += ["--format", "csv", "--output", out, folder]
    start = time.perf_counter()
    with ResourceMonitor() as monitor:
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start, monitor.memory


def measure_speed(model: TrainedModel, files: list[str], images: int, work: Path) -> list[dict]:
    """Return what `dfd predict` reaches, with and without the face check, and its limits."""
    size, cores = model.description.image_size, torch.get_num_threads()
    few, many = (link(files, work / str(n), n) for n in (images // 10, images))
    rows = []
    for option in ("--no-face-check", "--face-check"):
        before = network_rate(model)
        run_predict(few, model, option)  # once before: cold files are not what is measured
        start, _ = run_predict(few, model, option)
        seconds, memory = run_predict(many, model, option)
        network = (before + network_rate(model)) / 2  # the machine varies
        reading = reading_ms(files, size, option == "--face-check")
        shared = cores / (cores / network + reading / 1000)  # both on the same cores
        reached = (images - images // 10) / (seconds - start)
        rows.append({
            f"{model.title}, {size} px": option,
            "network alone, images/s": round(network),
            "reading, core-ms per image": round(reading, 2),
            "limit of both on the same cores": round(shared),
            f"reached, {images} files": round(reached),
            "of the network": f"{reached / network:.0%}",
            "of the limit of both": f"{reached / shared:.0%}",
            "memory (MB)": round(memory / 1e6),
        })  # fmt: skip
    return rows


def measure_start(model: TrainedModel, files: list[str], work: Path) -> list[dict]:
    """Return seconds for 100 images: a process per image (from five of them), and `dfd predict`."""
    name, size = model.description.architecture, str(model.description.image_size)
    arguments = [sys.executable, "-c", ONE_IMAGE, name, model.weights_file]
    times = []
    for file in files[:5]:
        start = time.perf_counter()
        subprocess.run([*arguments, file, size], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    separate = 100 * float(np.median(times))
    folder = link(files, work / "100", 100)
    together = float(np.median([run_predict(folder, model)[0] for _ in range(3)]))
    return [{
        "100 images": model.title, "a process per image": f"{separate:.0f} s",
        "`dfd predict`": f"{together:.1f} s", "times faster": round(separate / together),
    }]  # fmt: skip


def measure_onnx(model: TrainedModel, files: list[str], work: Path) -> dict:
    """Return how well the ONNX file agrees with PyTorch on images, its size and its speed."""
    import onnxruntime

    out = export_onnx(model.folder, work / f"{model.name}.onnx")
    network, size = model.load(), model.description.image_size
    resize = eval_transform(size)
    images = torch.stack([resize(read_image(file)) for file in files[:350]])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(out, options, providers=["CPUExecutionProvider"])

    def run_onnx(batch: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": batch.numpy()})[0])

    row = {"model": f"{model.title}, {size} px"}
    callers = (network, network.fuse_batchnorm(), run_onnx)
    with torch.inference_mode():
        differences = [(network(b) - run_onnx(b)).abs().max().item() for b in images.split(64)]
        row["largest difference of logits"] = f"{max(differences):.1e}"
        row["size"] = f"{out.stat().st_size / 1e6:.1f} MB"
        for n in (1, 64):
            rates = [rate(partial(call, images[:n]), n) for call in callers]
            key = f"images/s of torch / fused / onnxruntime, batch {n}"
            row[key] = " / ".join(f"{value:.0f}" for value in rates)
    return row


def faceless_images(count: int = 100, seed: int = 0) -> dict[str, list[np.ndarray]]:
    """Return images without a face by kind, uint8 `[H, W, 3]`."""
    rng = np.random.default_rng(seed)
    kinds = {
        "noise": lambda: rng.integers(0, 256, (224, 224, 3), np.uint8),
        "noise at 64 px": lambda: rng.integers(0, 256, (64, 64, 3), np.uint8),
        "one colour": lambda: np.full((224, 224, 3), rng.integers(256, size=3), np.uint8),
        "gradients": lambda: (
            np.linspace(*rng.integers(256, size=(2, 1, 3)), 224).astype(np.uint8).repeat(224, 1)
        ),
    }
    for name, photograph in zip(("temple", "flower"), load_sample_images().images, strict=True):
        kinds[f"parts of a photograph: {name}"] = partial(_part, photograph, rng)
    return {name: [make() for _ in range(count)] for name, make in kinds.items()}


def _part(photograph: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    side = rng.integers(150, 427)
    top, left = (rng.integers(0, length - side + 1) for length in photograph.shape[:2])
    return photograph[top : top + side, left : left + side]


def warned_share(images: Iterable[Tensor], size: int) -> str:
    """Return the share of images in which no face is found at the model's size."""
    resize = eval_transform(size)
    return f"{np.mean([not has_face(resize(image)) for image in images]):.1%}"


def measure_warnings(folders: list[Path]) -> Iterator[dict]:
    """Yield the shares with the warning "no face found": ideally no face, every other image."""
    groups = {}
    for folder in folders:
        files = find_files([folder])
        groups[f"faces: {folder.parent.name}/{folder.name}"] = list(map(read_image, files[:1600]))
    for kind, arrays in faceless_images().items():
        groups[kind] = [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays]
    for name, images in groups.items():
        shares = {f"no face, at {size} px": warned_share(images, size) for size in (64, 128, 224)}
        yield {"images": name, "number": len(images)} | shares


def find_files(folders: list[Path]) -> list[str]:
    """Return the JPEGs in the folders and below."""
    return sorted(str(file) for folder in folders for file in folder.rglob("*.jpg"))


def main() -> None:
    """Run one of the three studies and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=("speed", "onnx", "warnings"))
    parser.add_argument("--model", nargs="+", type=Path, default=[])
    parser.add_argument("--faces", nargs="+", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--work", type=Path, default=Path("build/predict_benchmark"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    files, models = find_files(options.faces), [TrainedModel(path) for path in options.model]
    if options.study == "warnings":
        print_table(measure_warnings(options.faces))
    elif options.study == "onnx":
        print_table(measure_onnx(model, files, options.work) for model in models)
    else:
        for model in models:
            print_table(measure_speed(model, files, options.images, options.work))
            print_table(measure_start(model, files, options.work))


if __name__ == "__main__":
    main()
