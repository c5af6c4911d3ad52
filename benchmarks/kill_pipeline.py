"""Does the whole run, killed at random moments, end as one that nobody disturbed?

    python -m benchmarks.kill_pipeline [--kills 100] [--per-run 10] [--seed 0]

Draws a small sample, runs the five notebooks on it, and predicts its Test images. Each run is
killed `--per-run` times, by SIGKILL, SIGTERM or SIGINT, to the process alone or to its whole group,
and called again. Then its predictions, metrics, models and results are compared with those of the
undisturbed run. After each kill, no process may stay for more than `PATIENCE` seconds, and no
shared memory. Exits with 1 if anything differs.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pypdf

from dfd_utils.config import PROJECT_ROOT as ROOT

PATIENCE = 40  # seconds: a stopped training first saves its state
SMALL = {
    "epochs": 2, "image_size": 32, "batch_size": 8, "precision": "fp32", "resamples": 50,
    "degraded_images": 8, "examples": 4,
}  # fmt: skip
MARK = "DFD_KILL_STUDY"  # in the environment of every process of a run
TIMING = ["seconds", "images_per_second"]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def main() -> int:
    """Kill, compare, and print a line per run and a table of the stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--per-run", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, stages, faults, kills = random.Random(options.seed), Counter(), 0, 0
    memory = shared_memory()
    with tempfile.TemporaryDirectory() as folder:
        whole = Run(Path(folder) / "whole")
        start = time.monotonic()
        whole.start()
        if code := whole.process.wait():
            print(whole.log.read_text()[-2000:])
            sys.exit(f"the undisturbed run failed with exit code {code}")
        duration = time.monotonic() - start
        print(f"undisturbed run: {duration:.0f} s", flush=True)
        number = 0
        while kills < options.kills:
            run, problems = Run(Path(folder) / f"run{number}"), []
            for _ in range(min(options.per_run, options.kills - kills)):
                run.start()
                try:
                    run.process.wait(rng.uniform(0.5, 2.5 * duration / options.per_run))
                    break  # it ended before
                except subprocess.TimeoutExpired:
                    kind, group = rng.choice(SIGNALS), rng.random() < 0.5
                    stage = run.stage()
                    stages[stage, kind.name] += 1
                    kills += 1
                    if left := run.kill(kind, group):
                        whom = "the group" if group else "the process"
                        problems.append(f"{kind.name} to {whom} in {stage} leaves {left}")
            for _ in range(2):
                run.start()
                code = run.process.wait()
                if code == 0:
                    break
                problems.append(f"exit code {code}: {run.log.read_text()[-300:]!r}")
            problems += run.differences(whole) if code == 0 else ["it does not end"]
            faults += len(problems)
            print(
                f"run {number}, {kills} kills so far: {'; '.join(problems) or 'same'}", flush=True
            )
            shutil.rmtree(run.folder)
            number += 1
    if left := shared_memory() - memory:
        faults += 1
        print(f"shared memory is left: {sorted(left)}")
    print("| stage | " + " | ".join(kind.name for kind in SIGNALS) + " |\n|---|---:|---:|---:|")
    for stage in sorted({stage for stage, _ in stages}):
        print(f"| {stage} | " + " | ".join(str(stages[stage, k.name]) for k in SIGNALS) + " |")
    print(f"{kills} kills in {number} runs, {faults} faults")
    return int(faults > 0)


def shared_memory() -> set[str]:
    """Return the names of shared memory that torch and Python make."""
    names = os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []
    return {name for name in names if name.startswith(("torch_", "sem.", "psm_"))}


class Run:
    """One run in a folder of its own: the sample, the notebooks, the report, and predictions."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self.folder, self.log, self.mark = folder, folder / "log", uuid.uuid4().hex

    def start(self) -> None:
        """Begin, or go on, as a user who calls the same commands again."""
        dfd = f"{sys.executable} -P -m dfd_utils"
        settings = " ".join(f"-p {name} {value}" for name, value in SMALL.items())
        script = (
            f"{dfd} sample data/tiny --per-class 16 && "
            f"{dfd} run --data data/tiny --run r {settings} && echo '== predict' && "
            f"{dfd} predict data/tiny/Test --model output/build/runs/r/resnet50 --resume "
            "--format csv --output rows.csv --variants 0"
        )
        environment = os.environ | {
            MARK: self.mark, "DFD_OUTPUT_DIR": str(self.folder / "output"),
            "DFD_DATA_DIR": str(self.folder / "data"), "PYTHONPATH": str(ROOT),
            "SOURCE_DATE_EPOCH": "0",
        }  # fmt: skip
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", script], cwd=self.folder, env=environment, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def stage(self) -> str:
        """Return what the run is doing, by its last words."""
        steps = re.findall(
            r"^(\[\d/5\] \S+|report|embedded sample|== predict).*$", self.log.read_text(), re.M
        )
        stage = steps[-1].removeprefix("== ") if steps else "sample, start"
        return re.sub(r"^\[\d/5\] ", "", stage)

    def kill(self, kind: signal.Signals, group: bool) -> list[str]:
        """Send the signal, wait, and return the processes that are still there."""
        children = psutil.Process(self.process.pid).children()
        if group:
            os.killpg(self.process.pid, kind)
        else:
            for child in children[:1]:  # the command; its shell then ends, because of `&&`
                child.send_signal(kind)
        deadline = time.monotonic() + PATIENCE
        while (left := self.processes()) and time.monotonic() < deadline:
            self.process.poll()
            time.sleep(0.2)
        names = [f"{process.pid} {' '.join(process.cmdline())[:150]}" for process in left]
        for process in left:
            process.kill()
        self.process.wait()
        return names

    def processes(self) -> list[psutil.Process]:
        """Return the living processes of this run, by the mark in their environment."""
        found = []
        for process in psutil.process_iter():
            try:
                alive = process.status() != psutil.STATUS_ZOMBIE
                if alive and process.environ().get(MARK) == self.mark:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def differences(self, other: "Run") -> list[str]:
        """Return what differs from another run, timing aside."""
        own, others = self.results(), other.results()
        found = [name for name in sorted(own | others) if own.get(name) != others.get(name)]
        partial = [
            p.name for p in self.folder.rglob("*") if "partial" in p.name or "running" in p.name
        ]
        return [f"{name} differs" for name in found] + [f"{name} is left" for name in partial]

    def results(self) -> dict[str, object]:
        """Return all that must not depend on the kills."""
        build = self.folder / "output" / "build"
        results = {"rows": (self.folder / "rows.csv").read_text()}
        for model in sorted((build / "runs" / "r").glob("*/model.json")):
            for name in ("model.json", "model.safetensors", "predictions_Test.csv"):
                results[f"{model.parent.name}/{name}"] = (model.parent / name).read_bytes()
            history = pd.read_csv(model.parent / "history.csv").drop(columns=TIMING)
            results[f"{model.parent.name}/history.csv"] = history.to_csv()
            metrics = json.loads((model.parent / "metrics.json").read_text())
            results[f"{model.parent.name}/metrics.json"] = metrics
        cells = nbformat.read(build / "notebooks" / "r" / "04_evaluate.ipynb", 4).cells
        results["tables of 04"] = [
            output.data.get("text/html", output.data.get("text/markdown"))
            for cell in cells
            for output in cell.get("outputs", [])
            if output.output_type == "display_data"
        ]
        results["report"] = (build / "report.html").read_text().rstrip()[-7:]
        results["pages"] = len(pypdf.PdfReader(build / "report.pdf").pages)
        return results


if __name__ == "__main__":
    sys.exit(main())
