"""What the audit finds, how fast it is, and how much memory the index of a data set takes.

    python benchmarks/audit_benchmark.py truth --faces DIR…       planted copies and broken files
    python benchmarks/audit_benchmark.py libraries --faces DIR… --imagededup PYTHON --fastdup PYTHON
    python benchmarks/audit_benchmark.py scale --images 10000 40000 190000
    python benchmarks/audit_benchmark.py index --images 190000

DIR is laid out as {Train,Validation,Test}/{Real,Fake}; without --faces, portraits are drawn.
PYTHON is an interpreter whose environment contains that library. Images that a call makes are kept
in --work and used again by the next call.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from dfd_utils.config import CLASSES, SPLITS

KINDS = ("exact", "quality 60", "160 px")
BROKEN = ("truncated", "empty", "renamed text")
SHARES = {"Train": 0.73, "Validation": 0.21, "Test": 0.06}  # of the Kaggle set's images
LIBRARIES = {  # programs that print a JSON list of pairs of file names; argument: the folder
    "this audit": """
import sys, json, pandas as pd, tempfile
from pathlib import Path
from dfd_utils.data.audit import audit
from dfd_utils.data.folder import DataFolder
if __name__ == "__main__":
    out = Path(tempfile.mkdtemp())
    audit(DataFolder(sys.argv[1]), out)
    pairs = pd.read_csv(out / "duplicates.csv")
    print(json.dumps(pairs[["path_a", "path_b"]].values.tolist()))
""",
    "imagededup": """
import sys, json
from imagededup.methods import PHash
if __name__ == "__main__":
    method = PHash(verbose=False)
    codes = method.encode_images(sys.argv[1], recursive=True)
    duplicates = method.find_duplicates(encoding_map=codes, max_distance_threshold=4)
    print(json.dumps([(a, b) for a, others in duplicates.items() for b in others]))
""",
    "fastdup": """
import sys, json, tempfile, fastdup
if __name__ == "__main__":
    work = fastdup.create(tempfile.mkdtemp(), sys.argv[1])
    work.run(threshold=0.96, verbose=False, num_threads=2)
    pairs = work.similarity()
    pairs = pairs[pairs.distance >= 0.96]
    names = pairs[["filename_from", "filename_to"]].values.tolist()
    print(json.dumps([[n.split("/planted/")[-1] for n in pair] for pair in names]))
""",
}

# The audit's workers import this script: what takes long to import is imported where it is needed.


def find_faces(folders: list[Path], work: Path) -> list[Path]:
    """Return the JPEGs of the data sets, or of an embedded sample made in `work`."""
    if not folders:
        from dfd_utils.data.sample.generate import make_sample

        sample = work / "portraits"
        if not sample.exists():
            make_sample(sample, 600)
        folders = [sample]
    return sorted(
        path
        for folder in folders
        for split in SPLITS
        for name in CLASSES
        for path in (folder / split / name).glob("*.jpg")
    )


def plant(faces: list[Path], folder: Path, copies: int, broken: int, seed: int = 0) -> dict:
    """Make a data set of faces, and plant `copies` and `broken` files of each kind in it.

    Returns:
        "pairs": {(path, path of the copy): kind}, "broken": {path: kind}; relative to `folder`.
    """
    rng = np.random.default_rng(seed)
    for split in SPLITS:
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
    splits = rng.choice(SPLITS, len(faces), p=list(SHARES.values()))
    paths = []
    for i, (face, split) in enumerate(zip(faces, splits, strict=True)):
        paths.append(f"{split}/{CLASSES[i % 2]}/{i:06}.jpg")
        shutil.copyfile(face, folder / paths[-1])
    truth = {"pairs": {}, "broken": {}}
    for i, k in enumerate(rng.choice(len(faces), copies * len(KINDS), replace=False)):
        kind = KINDS[i % len(KINDS)]
        other = rng.choice([split for split in SPLITS if split != splits[k]])
        copy = f"{other}/{CLASSES[k % 2]}/copy_{i:04}.jpg"
        image = Image.open(faces[k])
        if kind == "exact":
            shutil.copyfile(faces[k], folder / copy)
        elif kind == "quality 60":
            image.save(folder / copy, quality=60)
        else:
            image.resize((160, 160)).resize(image.size).save(folder / copy, quality=95)
        truth["pairs"][paths[k], copy] = kind
    for i in range(broken * len(BROKEN)):
        kind, path = BROKEN[i % len(BROKEN)], f"Train/{CLASSES[i % 2]}/broken_{i:04}.jpg"
        intact = faces[i].read_bytes()
        content = {
            "truncated": intact[: int(rng.integers(200, len(intact) - 2))],
            "empty": b"",
            "renamed text": b"These are words, not pixels.\n" * 50,
        }
        (folder / path).write_bytes(content[kind])
        truth["broken"][path] = kind
    return truth


def count_hits(truth: dict, pairs: set[frozenset], unreadable: set[str]) -> list[dict]:
    """Return the numbers planted and found of each kind, and those found that were not planted."""
    planted_pairs = {frozenset(pair): kind for pair, kind in truth["pairs"].items()}
    broken = truth["broken"]
    rows = []
    for what, kinds, planted, found in (
        ("copies", KINDS, planted_pairs, pairs), ("files", BROKEN, broken, unreadable)
    ):  # fmt: skip
        for kind in kinds:
            of_kind = {key for key, k in planted.items() if k == kind}
            row = {"what": f"{what}, {kind}", "planted": len(of_kind)}
            rows.append(row | {"found": len(of_kind & found)})
    rows.append({"what": "other pairs", "planted": 0, "found": len(pairs - planted_pairs.keys())})
    false = unreadable - broken.keys()
    return [*rows, {"what": "intact files", "planted": 0, "found": len(false)}]


def audit_truth(faces: list[Path], work: Path, copies: int, broken: int) -> list[dict]:
    """Audit faces with planted copies and broken files; see `count_hits`."""
    import pandas as pd

    from dfd_utils.data.audit import audit
    from dfd_utils.data.folder import DataFolder

    with tempfile.TemporaryDirectory(dir=work) as folder:
        planted, out = Path(folder, "planted"), Path(folder, "audit")
        truth = plant(faces, planted, copies, broken)
        audit(DataFolder(planted), out)
        table = pd.read_csv(out / "duplicates.csv")
        unreadable = set(pd.read_csv(out / "unreadable.csv").path)
    pairs = {frozenset(pair) for pair in zip(table.path_a, table.path_b, strict=True)}
    return count_hits(truth, pairs, unreadable)


def compare_libraries(faces: list[Path], work: Path, pythons: dict[str, str]) -> list[dict]:
    """Run each library on the same faces with 200 planted copies of each kind, one by one."""
    rows = []
    with tempfile.TemporaryDirectory(dir=work) as parent:
        folder = Path(parent, "planted")
        truth = plant(faces, folder, 200, 0)
        for name, python in pythons.items():
            start = time.perf_counter()
            done = subprocess.run(
                [python, "-c", LIBRARIES[name], str(folder)], capture_output=True, text=True
            )
            seconds = time.perf_counter() - start
            if done.returncode:
                rows.append({"library": name, "failed": (done.stderr.splitlines() or ["?"])[-1]})
                continue
            pairs = {frozenset(pair) for pair in json.loads(done.stdout.splitlines()[-1])}
            hits = {row["what"]: row["found"] for row in count_hits(truth, pairs, set())}
            wanted = [*(f"copies, {kind}" for kind in KINDS), "other pairs"]
            rows.append(
                {"library": name, "seconds": round(seconds, 1)} | {key: hits[key] for key in wanted}
            )
    return rows


def make_images(faces: list[Path], folder: Path, images: int) -> None:
    """Fill `folder` with distinct JPEGs of 256 px: two faces blended, then cropped."""
    folder.mkdir(parents=True, exist_ok=True)
    count = sum(1 for _ in os.scandir(folder))
    tasks = [range(start, min(start + 500, images)) for start in range(count, images, 500)]
    with ProcessPoolExecutor(os.cpu_count(), initializer=_load_faces, initargs=(faces,)) as pool:
        list(pool.map(partial(_make_images, folder), tasks))


_faces: list[Image.Image] = []


def _load_faces(paths: list[Path]) -> None:
    chosen = paths[:: max(1, len(paths) // 1000)]
    _faces.extend(Image.open(path).convert("RGB").resize((300, 300)) for path in chosen)


def _make_images(folder: Path, numbers: range) -> None:
    for number in numbers:
        rng = np.random.default_rng(number)
        first, second = rng.choice(len(_faces), 2, replace=False)
        image = Image.blend(_faces[first], _faces[second], rng.uniform(0.2, 0.5))
        left, top, side = rng.uniform(0, 22), rng.uniform(0, 22), rng.uniform(256, 278)
        image = image.resize((256, 256), box=(left, top, left + side, top + side))
        image.save(folder / f"{number:06}.jpg", quality=85)


def lay_out(folder: Path, data: Path, images: int) -> None:
    """Hard-link the first images into splits of the Kaggle set's proportions."""
    shutil.rmtree(data, ignore_errors=True)
    bounds = np.cumsum([round(images * share) for share in SHARES.values()])
    for split in SPLITS:
        for name in CLASSES:
            (data / split / name).mkdir(parents=True)
    for number in range(images):
        split = SPLITS[min(int(np.searchsorted(bounds, number, side="right")), 2)]
        name = f"{number:06}.jpg"
        os.link(folder / name, data / split / CLASSES[number % 2] / name)


class ResourceMonitor(threading.Thread):
    """Measures this process and its descendants: peak memory (bytes) and CPU seconds by process."""

    def __init__(self):
        super().__init__(daemon=True)
        self.memory, self.seconds, self.stopped = 0, {}, threading.Event()

    def __enter__(self) -> "ResourceMonitor":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()

    def run(self) -> None:
        while not self.stopped.wait(1):  # reading a process's memory takes time itself
            memory = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    # Proportional: a page that n processes share counts 1/n in each of them.
                    memory += process.memory_full_info().pss
                    used = process.cpu_times()
                except psutil.Error:  # it has just ended
                    continue
                self.seconds[process.pid] = used.user + used.system
            self.memory = max(self.memory, memory)


def measure_audit(data: Path, out: Path) -> dict:
    """Audit three times: from the start, again, and with all images measured; return the costs."""
    from dfd_utils.data.audit import audit
    from dfd_utils.data.folder import DataFolder

    def timed_audit() -> tuple[dict, float]:
        start = time.perf_counter()
        return audit(DataFolder(data), out), time.perf_counter() - start

    shutil.rmtree(out, ignore_errors=True)
    with ResourceMonitor() as monitor:
        before = time.process_time()
        summary, seconds = timed_audit()
    cpu = sum(monitor.seconds.values()) - before
    _, again = timed_audit()
    (out / "summary.json").unlink()
    _, tables = timed_audit()
    return {
        "images": summary["images"],
        "seconds": round(seconds, 1),
        "ms per image": round(1000 * seconds / summary["images"], 3),
        "cores busy": f"{cpu / seconds / os.cpu_count():.1%}",
        "CPU ms per image": round(1000 * cpu / summary["images"], 3),
        "memory (GB)": round(monitor.memory / 1e9, 2),
        "of these, search and tables (s)": round(tables, 1),
        "second audit": f"{again:.1f} s, {again / seconds:.2%}",
        "pairs": sum(kind["pairs"] for kind in summary["duplicates"].values()),
    }


def measure_index(data: Path, workers: int) -> dict:
    """Load every Train image once; return the memory of all processes."""
    from dfd_utils.data.dataset import DeepFakeDataset
    from dfd_utils.data.folder import DataFolder
    from dfd_utils.data.loader import data_loader

    images = DataFolder(data).images
    train = images[images["split"] == "Train"]
    dataset = DeepFakeDataset(data, train["path"], train["label"])
    with ResourceMonitor() as monitor:
        loader = data_loader(dataset, 64, shuffle=True, num_workers=workers)
        loaded = sum(len(images) for images, _ in loader)
    return {"workers": workers, "images": loaded, "memory (MB)": round(monitor.memory / 1e6)}


def _call_in_process(function: Callable, *arguments: object) -> dict:
    """Call the function in a process of its own, whose memory and CPU time are only the call's."""
    context = multiprocessing.get_context("fork")  # as from a shell: the workers share its modules
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *arguments).result()


def _print_table(rows: list[dict]) -> None:
    import pandas as pd

    print(pd.DataFrame(rows).to_string(index=False))


def main() -> None:
    """Run one of the four studies and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=("truth", "libraries", "scale", "index"))
    parser.add_argument("--faces", nargs="+", type=Path, default=[])
    parser.add_argument("--images", nargs="+", type=int, default=[10_000])
    parser.add_argument("--imagededup", metavar="PYTHON")
    parser.add_argument("--fastdup", metavar="PYTHON")
    parser.add_argument("--work", type=Path, default=Path("build/audit_benchmark"))
    options = parser.parse_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    faces = find_faces([folder.absolute() for folder in options.faces], work)
    if options.study == "truth":
        order = np.random.default_rng(0).permutation(len(faces))[:5000]
        _print_table(audit_truth([faces[i] for i in order], work, 200, 50))
        return
    if options.study == "libraries":
        pythons = {"this audit": sys.executable}
        pythons |= {n: p for n in ("imagededup", "fastdup") if (p := getattr(options, n))}
        _print_table(compare_libraries(faces[: 10_000 - 600], work, pythons))
        return
    make_images(faces, work / "images", max(options.images))
    rows = []
    for images in options.images:
        lay_out(work / "images", work / "data", images)
        if options.study == "scale":
            rows.append(_call_in_process(measure_audit, work / "data", work / "audit"))
        else:
            rows += [_call_in_process(measure_index, work / "data", workers) for workers in (1, 4)]
        print(rows[-1], flush=True)
    _print_table(rows)


if __name__ == "__main__":
    main()
