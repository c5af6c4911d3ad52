"""Predictions as text, JSON lines or CSV, written row by row and gone on with."""

import csv
import io
import json
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import IO

from dfd_utils.config import UserError
from dfd_utils.models import MODELS, load_model
from dfd_utils.pictures import find_pictures
from dfd_utils.predict import COLUMNS, choose_model, stream
from dfd_utils.processes import on_main, processes


def write_predictions(
    paths: Iterable[str],
    model: Path | None = None,
    form: str = "text",
    output: Path | None = None,
    resume: bool = False,
    explanations: Path | None = None,
    find_faces: bool | None = None,
) -> int:
    """Call every picture Real or Fake, a row an input in order; return how many failed.

    Names the model once on standard error. In several processes one of them writes.

    Args:
        paths: files, folders and patterns; "-" stands for those on standard input, one a line.
        model: see `predict.choose_model`.
        form: "text" (a line an input), "json" (an object a line) or "csv".
        output: a file that gets the rows, each as soon as it is known; None: standard output.
        resume: go on after the last row of `output`.
        explanations: a folder for the heat maps, see `predict.stream`.
        find_faces: see `predict.stream`.

    Raises:
        UserError: no such model, or an `output` that cannot be written or gone on with.
    """
    state = processes()
    model = choose_model(model)
    network, description = load_model(model)
    # Not in each process: standard input can be read once.
    files = on_main(lambda: list(find_pictures(_with_listed(paths))))
    place = on_main(_Place, output, form, resume) if output else None
    start, failed = on_main(place.kept, files, description) if place else (0, 0)
    if state.is_main_process:
        print(_named(model, description), file=sys.stderr)
    rows = stream(files, network, description, start, explanations, True, find_faces)
    with place.open() if state.is_main_process and place else nullcontext(sys.stdout) as file:
        if state.is_main_process and form == "csv" and start == 0:
            file.write(_HEADER)
        for row in rows:
            failed += row["error"] is not None
            if state.is_main_process:
                file.write(formatted(row, form))
                file.flush()
    # One process alone reports failures, and once all rows are written: torchrun ends the others.
    state.wait_for_everyone()
    state.destroy_process_group()
    return failed if state.is_main_process else 0


def _with_listed(paths: Iterable[str]) -> Iterable[str]:
    for path in map(str, paths):
        if path == "-":
            yield from filter(None, (line.rstrip("\r\n") for line in sys.stdin))
        else:
            yield path


def _named(model: Path, description: dict) -> str:
    fitted = "" if model.is_dir() or model.suffix == ".safetensors" else ", not calibrated"
    return (
        f"model: {model} ({MODELS[description['architecture']].title} at "
        f"{description['image_size']} px; 0 = Real, 1 = Fake; "
        f"Fake from {description['threshold']:.3f} on{fitted})"
    )


def formatted(row: dict, form: str) -> str:
    """Return a row of predictions as a line of "text", "json" or "csv"."""
    if form == "json":
        return json.dumps(row) + "\n"
    if form == "csv":
        return _csv_line(row[column] for column in COLUMNS)
    if row["error"]:
        return f"{row['path']}: {row['error']}\n"
    warning = f" [warning: {row['warning']}]" if row["warning"] else ""
    return f"{row['path']}: {row['label']} (probability of Fake {row['score']:.3f}){warning}\n"


def _csv_line(values: Iterable) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


_HEADER = _csv_line(COLUMNS)


class _Place:
    """A file of predictions that may already hold the first of them."""

    def __init__(self, path: Path, form: str, resume: bool):
        self.path, self.form = path, form
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not a file; choose another --output")
        if path.exists() and not resume:
            raise UserError(f"{path}: exists; --resume goes on with it, or remove it")
        if resume and form == "text":
            raise UserError("--resume wants --format json or csv, whose rows it can read")

    def open(self) -> IO[str]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # A file name need not be valid UTF-8: its bytes are written as they are.
            return open(self.path, "a", encoding="utf-8", errors="surrogateescape", newline="")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error

    def kept(self, files: list[str], description: dict) -> tuple[int, int]:
        """Return how many whole rows stand, and how many of them failed; cut off what follows."""
        if not self.path.exists():
            return 0, 0
        rows = failed = end = 0
        with open(self.path, "rb+") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                text = line.decode(errors="surrogateescape")
                if end or self.form != "csv" or text != _HEADER:
                    failed += self._is_error(text, files, rows, description["threshold"])
                    rows += 1
                end += len(line)
            # A header without rows is written again.
            file.truncate(end if rows else 0)
        return rows, failed

    def _is_error(self, text: str, files: list[str], position: int, threshold: float) -> bool:
        try:
            if self.form == "json":
                row = json.loads(text)
            else:
                row = dict(zip(COLUMNS, next(csv.reader([text])), strict=True))
            fits = row["path"] == files[position] and float(row["threshold"]) == threshold
            error = row["error"]
        except (ValueError, KeyError, TypeError, IndexError, StopIteration):
            fits = False
        if not fits:
            raise UserError(
                f"{self.path}: row {position + 1} is of other inputs, another model or another "
                "--format; repeat the command that wrote it, or choose another --output"
            )
        return bool(error)
