"""What the audit finds, how fast it is, and what memory the index of a data set takes.

    python benchmarks/audit_benchmark.py truth --faces DIR…       planted copies and broken files
    python benchmarks/audit_benchmark.py libraries --faces DIR… --imagededup PYTHON --fastdup PYTHON
    python benchmarks/audit_benchmark.py scale --images 10000 40000 190000
    python benchmarks/audit_benchmark.py index --images 190000

DIR holds {Train,Validation,Test}/{Real,Fake}; without it drawn portraits take the place of faces.
PYTHON is an interpreter whose environment holds that library. What is made lies in --work and is
used again by the next call.
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
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from dfd_utils.config import CLASSES, SPLITS

# The audit's workers import this script: what takes long to import is imported where it is called.

KINDS = ("exact", "quality 60", "160 px")
BROKEN = ("truncated", "empty", "renamed text")
SHARES = {"Train": 0.73, "Validation": 0.21, "Test": 0.06}  # of the Kaggle set


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
    """Lay out faces as a data set with `copies` of each kind and `broken` files of each kind.

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
        whole = faces[i].read_bytes()
        content = {
            "truncated": whole[: int(rng.integers(200, len(whole) - 2))],
            "empty": b"",
            "renamed text": b"These are words, not pixels.\n" * 50,
        }
        (folder / path).write_bytes(content[kind])
        truth["broken"][path] = kind
    return truth


def judge(truth: dict, found: set[frozenset], named: set[str]) -> list[dict]:
    """Return planted, found and false by kind, of pairs and of broken files."""
    rows = []
    for kind in KINDS:
        planted = [frozenset(pair) for pair, k in truth["pairs"].items() if k == kind]
        hits = sum(pair in found for pair in planted)
        rows.append({"what": f"copies, {kind}", "planted": len(planted), "found": hits})
    for kind in BROKEN:
        planted = [path for path, k in truth["broken"].items() if k == kind]
        hits = sum(path in named for path in planted)
        rows.append({"what": f"files, {kind}", "planted": len(planted), "found": hits})
    true = {frozenset(pair) for pair in truth["pairs"]}
    rows.append({"what": "pairs", "planted": 0, "found": len(found - true)})
    rows.append({"what": "whole files", "planted": 0, "found": len(named - set(truth["broken"]))})
    return rows


def audit_truth(faces: list[Path], work: Path, copies: int, broken: int) -> list[dict]:
    """Audit faces with planted copies and broken files; return what was found of them."""
    import pandas as pd

    from dfd_utils.data.audit import audit

    with tempfile.TemporaryDirectory(dir=work) as place:
        truth = plant(faces, Path(place, "planted"), copies, broken)
        audit(Path(place, "planted"), Path(place, "audit"))
        pairs = pd.read_csv(Path(place, "audit", "duplicates.csv"))
        named = set(pd.read_csv(Path(place, "audit", "unreadable.csv")).path)
        found = {frozenset(pair) for pair in zip(pairs.path_a, pairs.path_b, strict=True)}
    return judge(truth, found, named)


LIBRARIES = {  # programs that print a JSON list of pairs of file names; argument: the folder
    "this audit": """
import sys, json, pandas as pd, tempfile
from pathlib import Path
from dfd_utils.audit import audit
if __name__ == "__main__":
    out = Path(tempfile.mkdtemp())
    audit(sys.argv[1], out)
    pairs = pd.read_csv(out / "duplicates.csv")
    print(json.dumps(pairs[["path_a", "path_b"]].values.tolist()))
""",
    "imagededup": """
import sys, json
from imagededup.methods import PHash
if __name__ == "__main__":
    method = PHash(verbose=False)
    codes = method.encode_images(sys.argv[1], recursive=True)
    found = method.find_duplicates(encoding_map=codes, max_distance_threshold=4)
    print(json.dumps([(a, b) for a, others in found.items() for b in others]))
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


def compare_libraries(faces: list[Path], work: Path, pythons: dict[str, str]) -> list[dict]:
    """Run each library on the same faces with 200 planted copies of each kind, one by one."""
    rows = []
    with tempfile.TemporaryDirectory(dir=work) as place:
        folder = Path(place, "planted")
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
            found = {frozenset(pair) for pair in json.loads(done.stdout.splitlines()[-1])}
            judged = judge(truth, found, set())
            row = {"library": name, "seconds": round(seconds, 1)}
            row |= {found["what"]: found["found"] for found in judged[:3]}
            rows.append(row | {"pairs not planted": judged[6]["found"]})
    return rows


def make_images(faces: list[Path], folder: Path, images: int) -> None:
    """Fill `folder` with distinct JPEGs of 256 px: two faces laid over each other, cropped."""
    folder.mkdir(parents=True, exist_ok=True)
    count = sum(1 for _ in os.scandir(folder))
    tasks = [range(start, min(start + 500, images)) for start in range(count, images, 500)]
    with ProcessPoolExecutor(os.cpu_count(), initializer=_load_faces, initargs=(faces,)) as pool:
        list(pool.map(partial(_make_some, folder), tasks))


_faces: list[Image.Image] = []


def _load_faces(paths: list[Path]) -> None:
    chosen = paths[:: max(1, len(paths) // 1000)]
    _faces.extend(Image.open(path).convert("RGB").resize((300, 300)) for path in chosen)


def _make_some(folder: Path, numbers: range) -> None:
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


class Watch(threading.Thread):
    """What this process and its descendants used: the most memory, and the CPU time in all."""

    def __init__(self):
        super().__init__(daemon=True)
        self.memory, self.seconds, self.over = 0, {}, threading.Event()

    def run(self):
        while not self.over.wait(1):  # reading a process's memory takes time itself
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
    """Audit twice; return seconds, milliseconds an image, share of the cores, memory."""
    from dfd_utils.data.audit import audit

    shutil.rmtree(out, ignore_errors=True)
    watch = Watch()
    watch.start()
    start, before = time.perf_counter(), time.process_time()
    summary = audit(data, out)
    seconds = time.perf_counter() - start
    watch.over.set()
    cpu = sum(watch.seconds.values()) - before
    start = time.perf_counter()
    audit(data, out)
    again = time.perf_counter() - start
    # The search alone, and an audit that has all images measured already
    (out / "summary.json").unlink()
    start = time.perf_counter()
    audit(data, out)
    tables = time.perf_counter() - start
    return {
        "images": summary["images"],
        "seconds": round(seconds, 1),
        "ms an image": round(1000 * seconds / summary["images"], 3),
        "cores busy": f"{cpu / seconds / os.cpu_count():.1%}",
        "CPU ms an image": round(1000 * cpu / summary["images"], 3),
        "memory (GB)": round(watch.memory / 1e9, 2),
        "of it search and tables (s)": round(tables, 1),
        "second audit": f"{again:.1f} s, {again / seconds:.2%}",
        "pairs": sum(kind["pairs"] for kind in summary["duplicates"].values()),
    }


def measure_index(data: Path, workers: int) -> dict:
    """Load every Train image once; return the memory of all processes."""
    from dfd_utils.data.dataset import load_split
    from dfd_utils.data.loader import data_loader

    dataset = load_split(data, "Train")
    watch = Watch()
    watch.start()
    loader = data_loader(dataset, 64, shuffle=True, num_workers=workers)
    seen = sum(len(images) for images, _ in loader)
    watch.over.set()
    return {"workers": workers, "images": seen, "memory (MB)": round(watch.memory / 1e6)}


def _alone(function, *arguments) -> dict:
    """Call it in a process of its own, whose memory and CPU time are its alone."""
    context = multiprocessing.get_context("fork")  # as from a shell: the workers share its modules
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *arguments).result()


def _show(rows: list[dict]) -> None:
    import pandas as pd

    print(pd.DataFrame(rows).to_string(index=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("truth", "libraries", "scale", "index"))
    parser.add_argument("--faces", nargs="+", type=Path, default=[])
    parser.add_argument("--images", nargs="+", type=int, default=[10_000])
    parser.add_argument("--imagededup", metavar="PYTHON")
    parser.add_argument("--fastdup", metavar="PYTHON")
    parser.add_argument("--work", type=Path, default=Path("build/audit_benchmark"))
    options = parser.parse_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    faces = find_faces([folder.absolute() for folder in options.faces], work)
    if options.what == "truth":
        chosen = np.random.default_rng(0).permutation(len(faces))[:5000]
        _show(audit_truth([faces[i] for i in chosen], work, 200, 50))
        return
    if options.what == "libraries":
        pythons = {"this audit": sys.executable}
        pythons |= {n: p for n in ("imagededup", "fastdup") if (p := getattr(options, n))}
        _show(compare_libraries(faces[: 10_000 - 600], work, pythons))
        return
    make_images(faces, work / "images", max(options.images))
    rows = []
    for images in options.images:
        lay_out(work / "images", work / "data", images)
        if options.what == "scale":
            rows.append(_alone(measure_audit, work / "data", work / "audit"))
        else:
            rows += [_alone(measure_index, work / "data", workers) for workers in (1, 4)]
        print(rows[-1], flush=True)
    _show(rows)


if __name__ == "__main__":
    main()
