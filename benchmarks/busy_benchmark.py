"""How fast training stays beside other programs.

    python -m benchmarks.busy_benchmark [--data DIR] [--models A,B] [--busy 0 1 2]

The same training steps, on images in memory, beside 0, 1 and 2 programs that compute all the time:
with torch's threads spinning while they wait for each other, as libgomp does by default, and with
`sleep_beside_other_work`, as this project does. Both run in turn, each in a process of its own.
"""

import argparse
import contextlib
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

import torch

from benchmarks import speed_phases
from dfd_utils.config import DATA_DIR, get_profile
from dfd_utils.data.sample.generate import make_sample
from dfd_utils.runtime import accelerator

ROUNDS = 3
SIDES = "spinning", "ours"


def _let_spin() -> None:
    accelerator.sleep_beside_other_work = lambda: None


@contextlib.contextmanager
def busy_programs(number: int) -> Iterator[None]:
    """Run programs that keep a core busy each."""
    command = [sys.executable, "-c", "while True: pass"]
    programs = [subprocess.Popen(command) for _ in range(number)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def measure(model: str, data: Path, image_size: int, steps: int, busy: list[int]) -> list[dict]:
    """Return a row per number of busy programs: the median images/s of both sides."""
    profile = get_profile("sample", image_size=image_size, precision="fp32", num_workers=1)
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, spawn, _let_spin) as spinning,
        ProcessPoolExecutor(1, spawn) as ours,
    ):
        pools = dict(zip(SIDES, (spinning, ours), strict=True))

        def rate(side: str) -> float:
            train = speed_phases.train, model, data, profile, steps, True
            return pools[side].submit(*train).result()

        for side in SIDES:
            rate(side)  # builds the model
        rows = []
        for number in busy:
            with busy_programs(number):
                for side in SIDES:
                    rate(side)  # both sides notice the load
                rates = [{side: rate(side) for side in SIDES} for _ in range(ROUNDS)]
            row = {"model": model, "busy programs": number}
            rows.append(row | {side: median(r[side] for r in rates) for side in SIDES})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="default: the embedded sample")
    parser.add_argument("--models", default="resnet50,efficientnet_b0")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=6, help="of 32 images, per measurement")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    data = options.data or make_sample(DATA_DIR / "sample")
    print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    columns = "model", "busy programs", *SIDES, *(f"{side}, of quiet" for side in SIDES)
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for model in options.models.split(","):
        rows = measure(model, data, options.image_size, options.steps, options.busy)
        quiet = rows[0]["spinning"]
        for row in rows:
            rates = [f"{row[side]:.1f}" for side in SIDES]
            shares = [f"{row[side] / quiet:.0%}" for side in SIDES]
            print("|", " | ".join([model, str(row["busy programs"]), *rates, *shares]), "|")


if __name__ == "__main__":
    main()
