"""Does the whole run work in odd places, and end with one line where it cannot?

    python -m benchmarks.places [--only NAME,…]

Makes a small run in each of `PLACES` and compares its predictions and metrics with those of a run
in an ordinary folder. Disks that are full at every stage are small file systems in memory, which
grow after each failure; these and read-only folders need root on Linux, and are left out without.
Exits with 1 if a result differs, or an error is not one line.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.kill_pipeline import ROOT, SMALL

ODD = "-a b'c\"d $HOME %s {x} é漢 #1 &"  # a folder's name
SIZES = (1, 4, 16, 40, 60, 90, 130, 170, 230, 300, 400, 600)  # MB of the small disks


class Place:
    """A folder for one run, and what is special about it."""

    def __init__(self, folder: Path, data: Path):
        folder.mkdir(parents=True)
        self.folder, self.data, self.checkout, self.cwd = folder, data, ROOT, folder
        self.output, self.before = folder / "output", []
        self.environment = os.environ | {"SOURCE_DATE_EPOCH": "0", "HOME": str(folder)}

    def start(self) -> subprocess.Popen:
        """Start the run of the notebooks in this place."""
        command = [*self.before, sys.executable, "-P", "-m", "dfd_utils", "run"]
        command += ["--data", str(self.data), "--run", "r"]
        for name, value in SMALL.items():
            command += ["-p", name, str(value)]
        environment = self.environment | {
            "DFD_OUTPUT_DIR": str(self.output), "PYTHONPATH": str(self.checkout),
        }  # fmt: skip
        return subprocess.Popen(
            command, cwd=self.cwd, env=environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, errors="replace",
        )  # fmt: skip

    def run(self) -> str:
        """Run; return "" if all went well, else what standard error says."""
        return finish(self.start())

    def predict(self) -> str:
        """Predict the Test images by the run's ResNet50, and return the rows."""
        command = [*self.before, sys.executable, "-P", "-m", "dfd_utils", "predict"]
        command += ["--model", str(self.output / "build/runs/r/resnet50"), "--format", "csv"]
        command += ["--variants", "0", "--", str(self.data / "Test")]
        environment = self.environment | {"PYTHONPATH": str(self.checkout)}
        rows = subprocess.run(command, cwd=self.cwd, env=environment, capture_output=True).stdout
        return rows.decode(errors="replace").replace(str(self.data), "")

    def results(self) -> dict[str, str]:
        """Return what must be the same in every place."""
        runs = self.output / "build" / "runs" / "r"
        files = {str(p.relative_to(runs)): p.read_text() for p in runs.glob("*/predictions_*.csv")}
        for path in runs.glob("*/model.json"):
            files[f"{path.parent.name}/{path.name}"] = path.read_text()
        for suffix in ("html", "pdf"):
            assert (self.output / "build" / f"report.{suffix}").stat().st_size > 50_000
        return files | {"predict": self.predict()}


def finish(process: subprocess.Popen) -> str:
    """Wait; return "" for exit code 0, else the lines on standard error."""
    _, errors = process.communicate()
    return "" if process.returncode == 0 else errors.strip() or f"exit code {process.returncode}"


def is_one_line(errors: str) -> bool:
    """Return whether an error is one line of the program's own."""
    lines = [line for line in errors.splitlines() if not line.startswith("Executing:")]
    return len(lines) == 1 and lines[0].startswith("dfd: ") and "--debug" not in lines[0]


def ordinary(place: Place, stack: ExitStack) -> None:
    """An ordinary folder."""


def odd_path(place: Place, stack: ExitStack) -> None:
    """Checkout, data and output in a folder whose name has quotes, `$`, `%`, a leading dash, …"""
    odd = place.folder / ODD
    copy_checkout(odd / "checkout")
    place.data = Path(shutil.copytree(place.data, odd / "data" / place.data.name))
    place.checkout, place.output, place.cwd = odd / "checkout", odd / "output", odd


def symlinked_checkout(place: Place, stack: ExitStack) -> None:
    """A checkout, a data set and an output folder behind symbolic links; another directory."""
    for name, target in (("checkout", ROOT), ("data", place.data), ("output", place.folder / "o")):
        target.mkdir(exist_ok=True)
        (place.folder / name).symlink_to(target)
    place.checkout, place.output = place.folder / "checkout", place.folder / "output"
    place.data, place.cwd = place.folder / "data", Path("/")


def umask_and_locale(place: Place, stack: ExitStack) -> None:
    """umask 077, the locale C, no home."""
    place.before = ["sh", "-c", 'umask 077; exec "$@"', "sh"]
    place.environment |= {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0"}
    del place.environment["HOME"]


def turkish(place: Place, stack: ExitStack) -> None:
    """The locale tr_TR.UTF-8, whose small i has no capital I; a home that does not exist."""
    place.environment |= {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "HOME": "/nonexistent"}


def read_only(place: Place, stack: ExitStack) -> None:
    """A checkout, a data set and a home that cannot be written to."""
    copy_checkout(place.folder / "checkout")
    place.data = Path(shutil.copytree(place.data, place.folder / "data" / place.data.name))
    home = place.folder / "home"
    home.mkdir()
    for folder in (place.folder / "checkout", place.data, home):
        stack.enter_context(read_only_mount(folder))
    place.checkout, place.environment["HOME"] = place.folder / "checkout", str(home)


def clock_set_back(place: Place, stack: ExitStack) -> None:
    """Files of a first run, and of the data set, dated a day after the second run."""
    place.data = Path(shutil.copytree(place.data, place.folder / "data" / place.data.name))
    if errors := place.run():
        raise RuntimeError(errors)
    tomorrow = time.time() + 86_400
    for path in place.folder.rglob("*"):
        os.utime(path, (tomorrow, tomorrow))
    shutil.rmtree(place.output / "build" / "runs" / "r" / "efficientnet_b0")


def two_at_once(place: Place, stack: ExitStack) -> None:
    """Two runs at once on one output folder: one waits for the other, or says why it ends."""
    processes = [place.start(), place.start()]
    for errors in map(finish, processes):
        if errors and not is_one_line(errors):
            raise RuntimeError(errors)


def copy_checkout(folder: Path) -> None:
    """Copy what the run needs of this checkout."""
    for name in ("dfd_utils", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


@contextmanager
def read_only_mount(folder: Path) -> Iterator[None]:
    """Make a folder read-only, also for root."""
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Mount a file system of `size` MB."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def full_disk(place: Place, stack: ExitStack) -> None:
    """A disk that is full at every stage: it grows only after a failure."""
    stack.enter_context(small_disk(place.output, SIZES[0]))
    for size in SIZES:
        subprocess.run(["mount", "-o", f"remount,size={size}m", place.output], check=True)
        if not (errors := place.run()):
            return
        print(f"  {size} MB: {errors[-200:]}", flush=True)
        if not is_one_line(errors):
            raise RuntimeError(errors)


def quota(place: Place, stack: ExitStack) -> None:
    """No file may be larger than 20 MB at first: the write fails in the middle of the file."""
    place.before = ["bash", "-c", 'ulimit -f 20000; trap "" XFSZ; exec "$@"', "bash"]
    errors = place.run()
    place.before = []
    print(f"  20 MB a file: {errors[-200:]}", flush=True)
    if not is_one_line(errors):
        raise RuntimeError(errors)


PLACES: tuple[Callable[[Place, ExitStack], None], ...] = (
    odd_path, symlinked_checkout, umask_and_locale, turkish, read_only, clock_set_back,
    two_at_once, full_disk, quota,
)  # fmt: skip


def main() -> int:
    """Run in every place, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="names of places, separated by commas")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else [p.__name__ for p in PLACES]
    faults = 0
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "tiny"
        make = [sys.executable, "-m", "dfd_utils", "sample", str(data), "--per-class", "16"]
        subprocess.run(make, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        plain = Place(Path(name) / "ordinary", data)
        if errors := plain.run():
            sys.exit(f"the run in an ordinary folder failed: {errors}")
        expected = plain.results()
        for prepare in PLACES:
            if prepare.__name__ not in wanted:
                continue
            start, outcome = time.monotonic(), "same results"
            with ExitStack() as stack:
                try:
                    place = Place(Path(name) / prepare.__name__, data)
                    prepare(place, stack)
                    if errors := place.run():
                        raise RuntimeError(errors)
                    found = place.results()
                    changed = [key for key in expected if expected[key] != found.get(key)]
                    if changed:
                        outcome = f"DIFFERENT: {', '.join(changed)}"
                except subprocess.CalledProcessError as error:
                    outcome = f"left out: {error}"
                except Exception as error:
                    outcome = f"FAILED: {error}"
            faults += outcome[0].isupper()
            doc = " ".join(prepare.__doc__.split())
            print(f"| {doc} | {outcome} | {time.monotonic() - start:.0f} s |", flush=True)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
