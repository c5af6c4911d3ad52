"""How long a training takes until its first step, by the number of images.

    python benchmarks/start_benchmark.py [--images 10000 190000] [--work /dev/shm/start]

The images are JPEGs of noise, 32 px, so that listing and knowing the data set is what is measured.
Each start is a process of its own, as `dfd train` is: the first one audits the data set, the second
one finds its contents known.
"""

import argparse
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import simplejpeg
from audit_benchmark import ResourceMonitor

from dfd_utils.config import CLASSES, SPLITS

SHARES = dict(zip(SPLITS, (0.73, 0.21, 0.06), strict=True))  # as in the Kaggle set


class _FirstStep(Exception):  # noqa: N818  (no error)
    pass


def make_images(folder: Path, images: int) -> Path:
    """Write a data set of distinct small images and return its folder."""
    shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(0)
    for split, share in SHARES.items():
        for name in CLASSES:
            target = folder / split / name
            target.mkdir(parents=True)
            for number in range(round(images * share / len(CLASSES))):
                pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
                (target / f"{number:06}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels))
    return folder


def start_training(data: Path) -> dict[str, str]:
    """Do what `dfd train` does until its first step; return the seconds since the start."""
    begin, seconds = time.perf_counter(), {}

    def passed(name: str) -> None:
        seconds[name] = f"{time.perf_counter() - begin:.1f} s"

    def after_step() -> None:
        passed("first step")
        raise _FirstStep

    with ResourceMonitor() as monitor:
        from dfd_utils.config import get_profile
        from dfd_utils.data.folder import DataFolder
        from dfd_utils.training.checkpoint import TrainingState
        from dfd_utils.training.components import build_components
        from dfd_utils.training.train import train_one_epoch

        passed("imported")
        data_folder = DataFolder(data)
        data_folder.check_layout()
        passed("listed")
        _ = data_folder.split_fingerprint("Train")
        passed("contents known")
        profile = get_profile("sample", precision="fp32")
        training = build_components("efficientnet_b0", data_folder, profile)
        with suppress(_FirstStep):
            train_one_epoch(training, TrainingState(training.accelerator), after_step)
        time.sleep(1.5)  # the monitor looks once a second
        training.shutdown_workers()
    return seconds | {"memory": f"{monitor.memory / 1e9:.1f} GB"}


def main() -> None:
    """Print a row per number of images and start."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 190_000])
    parser.add_argument("--work", type=Path, default=Path("/dev/shm/start"))
    options = parser.parse_args()
    os.environ["DFD_OUTPUT_DIR"] = str(options.work)
    print("| images | start | imported | listed | contents known | first step | memory |")
    print("|---|---|---|---|---|---|---|")
    spawn = multiprocessing.get_context("spawn")
    for images in options.images:
        data = make_images(options.work / "data" / str(images), images)
        for start in ("first", "second"):
            with ProcessPoolExecutor(1, spawn) as pool:
                row = pool.submit(start_training, data).result()
            print(f"| {images:,} | {start} | {' | '.join(row.values())} |", flush=True)
    shutil.rmtree(options.work)


if __name__ == "__main__":
    main()
