"""Does a run that is killed (SIGKILL) at random moments end as one that was never broken?

    python benchmarks/kill_study.py [--moments 30] [--kills 3] [--seed 0]

Trains EfficientNet-B0 on small noise images with a checkpoint at every step, so that many moments
fall into its writing; kills each run `--kills` times, lets it end, and compares history.csv (its
timing columns aside), the predictions and the weights, bit for bit. Ends with 1 where they differ.
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
from dfd_utils.evaluation import evaluate
from dfd_utils.training import train  # imported once: every run is a fork of this process
from dfd_utils.training.checkpoint import STATE, SUMS

MODEL = "efficientnet_b0"
TIMING = ["seconds", "images_per_second"]
PROFILE = config.get_profile(
    "sample", image_size=32, epochs=3, batch_size=8, precision="fp32", warmup_steps=4,
    degradation_probability=0.5, cutmix_probability=0.5, checkpoint_minutes=0, num_workers=0,
)  # fmt: skip


def main() -> int:
    """Run the test and print a line a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=30)
    parser.add_argument("--kills", type=int, default=3, help="of one run, before it may end")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", ".*fork.*")
    rng = random.Random(options.seed)
    profile = dataclasses.replace(PROFILE, epochs=options.epochs)
    differing = kills = mid_write = 0
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder) / "data")
        whole = Path(folder) / "whole" / MODEL
        start = time.monotonic()
        assert end_of(begin(data, whole, profile)) == 0, "the unbroken run failed"
        duration = time.monotonic() - start
        print(f"unbroken run: {duration:.1f} s", flush=True)
        while kills < options.moments:
            out = Path(folder) / f"run{kills}" / MODEL
            told = []
            for _ in range(min(options.kills, options.moments - kills)):
                begun, child = time.time(), begin(data, out, profile)
                time.sleep(rng.uniform(0.05, 0.8 * duration))
                os.killpg(child, signal.SIGKILL)
                if end_of(child) == 0:
                    break  # it was faster; no moment to count
                kills += 1
                writing = half_written(out / "checkpoint" / ".partial", begun)
                mid_write += writing
                places = sorted(p.name for p in (out / "checkpoint").glob("epoch_*"))
                told.append((places[-1] if places else "start") + (" writing" if writing else ""))
            same = end_of(begin(data, out, profile)) == 0 and identical(whole, out)
            differing += not same
            print(f"{'same' if same else 'DIFFERENT'}; killed at {', '.join(told)}", flush=True)
    print(f"{kills} moments, {mid_write} of them while writing; {differing} runs differ")
    return int(differing > 0)


def make_data(folder: Path) -> Path:
    """Write 20 Train images a class and 6 in the other splits: Real is bright, Fake is dark."""
    rng = np.random.default_rng(0)
    for split, images in (("Train", 20), ("Validation", 6), ("Test", 6)):
        for name, level in (("Real", 150), ("Fake", 100)):
            (folder / split / name).mkdir(parents=True)
            for number in range(images):
                pixels = rng.normal(level, 50, (40, 40, 3)).clip(0, 255).astype("uint8")
                Image.fromarray(pixels).save(folder / split / name / f"{number:03}.jpg")
    return folder


def begin(data: Path, out: Path, profile: config.Profile) -> int:
    """Train and score in a fork that leads a process group; return its id."""
    child = os.fork()
    if child:
        return child
    os.setpgid(0, 0)
    try:
        train.fit(MODEL, data, out, profile, lambda line: None)
        table = evaluate.score_split(out, data, "Validation")
        table.to_csv(out / "predictions_Validation.csv", index=False)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def end_of(child: int) -> int:
    """Wait for the fork; return its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def half_written(partial: Path, begun: float) -> bool:
    """Say whether a checkpoint was being written since `begun`, over an older one or anew."""
    times = [path.stat().st_mtime for path in (partial / STATE, partial / SUMS) if path.exists()]
    return bool(times) and times[0] >= begun and times[0] == max(times)


def identical(one: Path, two: Path) -> bool:
    """Compare two finished runs, timing aside."""
    histories = [pd.read_csv(run / "history.csv").drop(columns=TIMING) for run in (one, two)]
    files = ("model.safetensors", "model.json", "predictions_Validation.csv")
    return histories[0].equals(histories[1]) and all(
        (one / name).read_bytes() == (two / name).read_bytes() for name in files
    )


if __name__ == "__main__":
    sys.exit(main())
