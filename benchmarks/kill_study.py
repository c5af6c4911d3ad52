"""Does a run that is killed (SIGKILL) at random moments end as one that was never interrupted?

    python benchmarks/kill_study.py [--moments 30] [--kills 3] [--epochs 3] [--seed 0]

Trains EfficientNet-B0 on small noise images with a checkpoint at every step, so that many moments
fall into writing one. It kills each run `--kills` times, lets it end, and compares history.csv (its
timing columns aside), the weights and their description, bit for bit. Exits with 1 if they differ.
"""

import argparse
import dataclasses
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from dfd_utils import config
from dfd_utils.data.folder import DataFolder
from dfd_utils.training.checkpoint import STATE, checkpoints
from dfd_utils.training.train import fit  # imported once: every run is a fork of this process

MODEL = "efficientnet_b0"
TIMING = ["seconds", "images_per_second"]
PROFILE = config.get_profile(
    "sample", image_size=32, epochs=3, batch_size=8, precision="fp32", warmup_steps=4,
    degradation_probability=0.5, cutmix_probability=0.5, checkpoint_minutes=0, num_workers=0,
)  # fmt: skip


def main() -> int:
    """Run the study and print a line per run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=30)
    parser.add_argument("--kills", type=int, default=3, help="of one run, before it may end")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", ".*fork.*")
    rng = random.Random(options.seed)
    profile = dataclasses.replace(PROFILE, epochs=options.epochs)
    differing = kills = while_writing = 0
    with tempfile.TemporaryDirectory() as folder:
        data = DataFolder(make_data(Path(folder) / "data"))
        data.audit_folder = Path(folder) / "audit"
        uninterrupted = Path(folder) / "uninterrupted" / MODEL
        start = time.monotonic()
        if wait_for(start_run(data, uninterrupted, profile)) != 0:
            sys.exit("the uninterrupted run failed")
        duration = time.monotonic() - start
        print(f"uninterrupted run: {duration:.1f} s", flush=True)
        while kills < options.moments:
            out = Path(folder) / f"run{kills}" / MODEL
            moments = []
            for _ in range(min(options.kills, options.moments - kills)):
                started, child = time.time(), start_run(data, out, profile)
                time.sleep(rng.uniform(0.05, 0.8 * duration))
                os.killpg(child, signal.SIGKILL)
                if wait_for(child) == 0:
                    break  # it ended before: no moment to count
                kills += 1
                writing = half_written(out, started)
                while_writing += writing
                newest = next((path.name for path in checkpoints(out)), "start")
                moments.append(newest + (" writing" if writing else ""))
            same = wait_for(start_run(data, out, profile)) == 0 and identical(uninterrupted, out)
            differing += not same
            print(f"{'same' if same else 'DIFFERENT'}; killed at {', '.join(moments)}", flush=True)
    print(f"{kills} moments, {while_writing} of them while writing; {differing} runs differ")
    return int(differing > 0)


def make_data(folder: Path) -> Path:
    """Write 20 Train images per class and 6 in the other splits: Real is bright, Fake is dark."""
    rng = np.random.default_rng(0)
    for split, images in (("Train", 20), ("Validation", 6), ("Test", 6)):
        for name, level in (("Real", 150), ("Fake", 100)):
            (folder / split / name).mkdir(parents=True)
            for number in range(images):
                pixels = rng.normal(level, 50, (40, 40, 3)).clip(0, 255).astype("uint8")
                Image.fromarray(pixels).save(folder / split / name / f"{number:03}.jpg")
    return folder


def start_run(data: DataFolder, out: Path, profile: config.Profile) -> int:
    """Train in a fork that leads a process group; return its id."""
    child = os.fork()
    if child:
        return child
    os.setpgid(0, 0)
    try:
        fit(MODEL, data, out, profile, lambda line: None)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def wait_for(child: int) -> int:
    """Wait for the fork; return its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def half_written(out: Path, started: float) -> bool:
    """Return whether a checkpoint that was begun since `started` is incomplete."""
    partial = out / "checkpoint" / ".partial" / STATE
    return partial.exists() and partial.stat().st_mtime >= started


def identical(one: Path, two: Path) -> bool:
    """Return whether two finished runs are the same, timing aside."""
    histories = [pd.read_csv(run / "history.csv").drop(columns=TIMING) for run in (one, two)]
    return histories[0].equals(histories[1]) and all(
        (one / name).read_bytes() == (two / name).read_bytes()
        for name in ("model.safetensors", "model.json")
    )


if __name__ == "__main__":
    sys.exit(main())
