"""What do data sets do that someone made to do harm, or by accident?

    python -m benchmarks.hostile_data [--only NAME,…] [--files 1000000]

Adds something to a small sample, then audits it, predicts its Test images as CSV and text, and
executes notebook 01 with its HTML. Prints time, peak memory and outcome of each; a traceback, a
signal, or an error that is not one line is a fault. Exits with 1 after one.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.kill_pipeline import ROOT

NAMES = (
    "--model.jpg", "-rf.jpg", "=cmd|'calc'!A1.jpg", "+1+1.jpg", "@SUM(1).jpg", "<script>alert(1)<",
    "<img src=x onerror=alert(1)>.jpg", "#set page(fill: red).jpg", "#read(\"x\").jpg",
    "\\input{x}.jpg", "$\\frac{1}$.jpg", "$x.jpg", "a_b^{c}.jpg", "\x1b[31mred\x1b[0m.jpg",
    "\x07\x08bell.jpg", "txt\u202egpj.exe.jpg", "line\nbreak.jpg", "tab\t.jpg", "`rm -rf x`.jpg",
    "{{7*7}}.jpg", "%s%n.jpg", "NA.jpg", "null.jpg", "1e999.jpg", "😀.jpg", "é" * 125 + ".jpg",
    "x" * 251 + ".jpg", "a,b;c\"d'e.jpg", "![](y.png).jpg", "*.jpg", "[a].jpg",
)  # fmt: skip


def names(data: Path) -> None:
    """Names that are options, formulas, HTML, Typst, LaTeX, mathtext, escapes, marks; 255 bytes."""
    images = sorted((data / "Train" / "Real").glob("*.jpg"))
    for number, name in enumerate(NAMES):
        target = name if name.endswith(".jpg") else f"{name}.jpg"
        for split in ("Train", "Test"):  # twice: they are duplicates, which the report lists
            shutil.copy(images[number % len(images)], data / split / "Fake" / target)


def links(data: Path) -> None:
    """Links out of the folder, in circles, to nothing, and to a device."""
    folder = data / "Test" / "Fake"
    (folder / "out").symlink_to("/usr/share")
    (folder / "circle").symlink_to(folder)
    (folder / "up").symlink_to("../..")
    (folder / "nothing.jpg").symlink_to("missing.jpg")
    (folder / "self.jpg").symlink_to("self.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.jpg")


def deep(data: Path) -> None:
    """Folders 1,000 deep, with an image at the end."""
    image = next((data / "Test" / "Fake").glob("*.jpg"))
    content, here = image.read_bytes(), os.open(data / "Test" / "Fake", os.O_RDONLY)
    for _ in range(1000):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    file = os.open("deep.jpg", os.O_WRONLY | os.O_CREAT, dir_fd=here)
    os.write(file, content)
    os.close(file)
    os.close(here)


def large(data: Path) -> None:
    """A file of 300 MB, and one that says it has 65,535 x 65,535 pixels."""
    with open(data / "Test" / "Fake" / "large.jpg", "wb") as file:
        file.truncate(300 * 10**6)
    header = b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03\x01\x11\0\x02\x11\0\x03\x11\0"
    (data / "Test" / "Fake" / "wide.jpg").write_bytes(header + bytes(1000))


def changing(data: Path) -> None:
    """Images that appear, change and vanish while they are read."""
    folder = data / "Test" / "Fake"
    content = next(folder.glob("*.jpg")).read_bytes()

    def change() -> None:
        number = 0
        while folder.is_dir():
            number += 1
            path = folder / f"changing{number % 40}.jpg"
            try:
                if number % 3:
                    path.write_bytes(content[: len(content) - number % 900])
                else:
                    path.unlink(missing_ok=True)
            except OSError:
                return
            time.sleep(0.002)

    threading.Thread(target=change, daemon=True).start()


def many(data: Path, files: int = 1_000_000) -> None:
    """A million empty files."""
    folder = data / "Train" / "Real" / "empty"
    folder.mkdir()
    here = os.open(folder, os.O_RDONLY)
    for number in range(files):
        os.close(os.open(f"{number}.jpg", os.O_WRONLY | os.O_CREAT, dir_fd=here))
    os.close(here)


SETS: tuple[Callable[[Path], None], ...] = (names, links, deep, large, changing, many)
NOTEBOOK = (
    "from pathlib import Path; from dfd_utils.reporting.notebook_runner import execute;"
    "from dfd_utils.reporting.export import export_report; import sys;"
    "out = Path('01.ipynb').absolute();"
    "execute(Path(sys.argv[2]), out, {'data': sys.argv[1], 'run': 'hostile'});"
    "export_report([out], Path('report').absolute(), 'T', 'A')"
)


def main() -> int:
    """Try each data set, and print a row per command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="names of data sets, separated by commas")
    parser.add_argument("--files", type=int, default=1_000_000, help="of the set `many`")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else [f.__name__ for f in SETS]
    faults = 0
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    dfd = [sys.executable, "-P", "-m", "dfd_utils"]
    print("| data set | command | outcome | seconds | peak MB |\n|---|---|---|---:|---:|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment |= {"DFD_OUTPUT_DIR": str(folder / "output")}
        make = [*dfd, "sample", str(folder / "tiny"), "--per-class", "60"]
        train = [*dfd, "train", "--model", "efficientnet_b0", "--data", str(folder / "tiny")]
        train += ["--out", str(folder / "run"), "--epochs", "1", "--image-size", "32"]
        for command in (make, train):
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        model = ["--model", str(folder / "run" / "efficientnet_b0"), "--face-check"]
        for prepare in SETS:
            if prepare.__name__ not in wanted:
                continue
            data = Path(shutil.copytree(folder / "tiny", folder / prepare.__name__))
            prepare(data, options.files) if prepare is many else prepare(data)
            commands = {
                "audit": [*dfd, "audit", str(data)],
                "predict": [*dfd, "predict", *model, "--format", "csv", str(data / "Test")],
                "predict, text": [*dfd, "predict", *model, str(data / "Test")],
                "notebook 01": [
                    sys.executable, "-c", NOTEBOOK, str(data),
                    str(ROOT / "notebooks" / "01_explore_data.ipynb"),
                ],
            }  # fmt: skip
            if prepare is many:
                commands = {"audit": commands["audit"]}
            for title, command in commands.items():
                start = time.monotonic()
                process = subprocess.Popen(
                    command, env=environment, cwd=folder, text=True, errors="replace",
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )  # fmt: skip
                said, errors = process.communicate()
                code, own = process.returncode, [x for x in errors.splitlines() if "dfd: " in x]
                bad = "Traceback" in errors or code not in (0, 2, 3) or len(own) != (code == 2)
                bad |= any(c in said for c in "\x1b\x07\u202e") and title == "predict, text"
                faults += bad
                outcome = f"exit code {code} {own[0][:150] if own else ''}".strip()
                if bad:
                    outcome = f"FAULT: {outcome} {errors[-300:]!r}"
                peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
                cells = prepare.__name__, title, outcome, f"{time.monotonic() - start:.0f}"
                print(f"| {' | '.join(cells)} | {peak:.0f} |", flush=True)
            subprocess.run(
                ["rm", "-rf", data], stderr=subprocess.DEVNULL
            )  # shutil's recursion does not reach the deepest
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
