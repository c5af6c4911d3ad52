"""Predictions as text, JSON lines or CSV, written row by row; interrupted files can be resumed."""

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import IO

from dfd_utils.config import UserError
from dfd_utils.data.image_io import describe_skipped, expand_paths
from dfd_utils.inference.page import write_report
from dfd_utils.inference.predict import COLUMNS, iter_predictions
from dfd_utils.models.trained import TrainedModel, choose_model
from dfd_utils.runtime.distributed import process_state, run_on_main
from dfd_utils.runtime.files import content_hash, printable, read_json, write_json


def write_predictions(
    paths: Iterable[str],
    model: TrainedModel | Path | None = None,
    form: str = "text",
    output: Path | None = None,
    resume: bool = False,
    explanations: Path | None = None,
    find_faces: bool | None = None,
    variants: int | None = None,
    always_answer: bool = False,
    report: Path | None = None,
) -> int:
    """Classify images, a row per input in order; return how many failed.

    Lines on standard error name the model, and the files in folders that are not images. With
    several processes, one of them writes.

    Args:
        paths: files, folders and patterns; "-" stands for those on standard input, one per line.
        model: see `trained.choose_model`.
        form: "text" (a line per input), "json" (an object per line) or "csv".
        output: a file that receives each row as soon as it is known; None: standard output.
        resume: continue after the last row of `output`.
        explanations: a folder for heat maps; see `iter_predictions`.
        find_faces, variants, always_answer: see `iter_predictions`.
        report: a file that receives a page about all images; see `page.write_report`.

    Raises:
        UserError: no such model, or an `output` that cannot be written or continued.
    """
    state = process_state()
    model = choose_model(model)
    # In one process: standard input can be read only once.
    files, skipped = run_on_main(_list_files, paths)
    answers = f"{variants} variants, always answered: {always_answer}"
    request = {"model": model.fingerprint, "inputs": content_hash(*files), "format": form}
    request["answers"] = answers
    file = run_on_main(_OutputFile, output, form, resume, request) if output else None
    start, failed = run_on_main(file.count_rows) if file else (0, 0)
    if state.is_main_process:
        print(_describe(model), file=sys.stderr)
        if skipped:
            print(skipped, file=sys.stderr)
    rows = iter_predictions(
        files, model, start, explanations, True, find_faces, variants, always_answer
    )
    reported = []
    with file.open() if state.is_main_process and file else nullcontext(sys.stdout) as stream:
        if state.is_main_process and form == "csv" and start == 0:
            stream.write(_HEADER)
        for row in rows:
            failed += row["error"] is not None
            if state.is_main_process:
                stream.write(format_row(row, form))
                stream.flush()
            if report:
                reported.append(row)
    if report and state.is_main_process:
        write_report(reported, model, report)
    # Only one process reports failures, after all rows are written: torchrun then ends the others.
    state.wait_for_everyone()
    state.destroy_process_group()
    return failed if state.is_main_process else 0


def _list_files(paths: Iterable[str]) -> tuple[list[str], str]:
    """Return the files to classify, and a line about those in folders that are not images."""
    skipped = Counter()
    files = list(expand_paths(_read_stdin(paths), skipped))
    return files, describe_skipped(skipped)


def _read_stdin(paths: Iterable[str]) -> Iterable[str]:
    for path in map(str, paths):
        if path == "-":
            lines = sys.stdin.buffer.read().decode("utf-8-sig", "surrogateescape").split("\n")
            yield from filter(None, (line.removesuffix("\r") for line in lines))
        else:
            yield path


def _describe(model: TrainedModel) -> str:
    description = model.description
    path = model.folder
    if not model.is_calibrated:
        path = f"{model.weights_file}, not calibrated, output {model.fake_output} is Fake"
    return (
        f"model: {path} ({model.title}, {description.image_size} px; labels 0 = Real, 1 = Fake; "
        f"the label is Fake if the score is at least {description.threshold:.3f})"
    )


def format_row(row: dict, form: str) -> str:
    """Return a row of predictions as a line of "text", "json" or "csv"."""
    if form == "json":
        return json.dumps(row, allow_nan=False) + "\n"
    if form == "csv":
        return _csv_line(row[column] for column in COLUMNS)
    path = printable(row["path"])
    if row["error"]:
        return f"{path}: {row['error']}\n"
    warning = f" [warning: {row['warning']}]" if row["warning"] else ""
    score = f"{row['score']:.3f}"
    if row["score_low"] is not None:
        score += f", {row['score_low']:.3f} to {row['score_high']:.3f} when saved again"
    return f"{path}: {row['label']} (probability of Fake {score}){warning}\n"


def _csv_line(values: Iterable) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


_HEADER = _csv_line(COLUMNS)


class _OutputFile:
    """A file of predictions that may already contain the first rows.

    `<name>.resume.json` beside it records the model, inputs and format of its rows.
    """

    def __init__(self, path: Path, form: str, resume: bool, request: dict):
        self.path, self.form = path, form
        record = path.with_name(f"{path.name}.resume.json")
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not a file; choose another --output")
        if path.exists() and not resume:
            raise UserError(f"{path}: exists; --resume continues it, or remove it")
        if resume and form == "text":
            raise UserError("--resume requires --format json or csv, whose rows it can read")
        if path.exists() and path.stat().st_size:
            before = read_json(record, request, f"without it, {path.name} cannot be continued")
            changed = [name for name in request if before[name] != request[name]]
            if changed:
                raise UserError(
                    f"{path}: differs from this command in {', '.join(changed)}; repeat the one "
                    "that wrote it, or choose another --output"
                )
        write_json(record, request)

    def open(self) -> IO[str]:
        try:
            # A file name need not be valid UTF-8: its bytes are written as they are.
            return open(self.path, "a", encoding="utf-8", errors="surrogateescape", newline="")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error

    def count_rows(self) -> tuple[int, int]:
        """Return the number of complete rows and of errors among them; cut off the rest."""
        if not self.path.exists():
            return 0, 0
        text = self.path.read_bytes().decode(errors="surrogateescape")
        text = text[: text.rfind("\n") + 1]
        if self.form == "json":
            errors = [json.loads(line)["error"] for line in text.splitlines()]
        else:
            while text.count('"') % 2:  # a name may contain a line break, in quotes
                text = text[: text.rfind("\n", 0, -1) + 1]
            errors = [row["error"] for row in csv.DictReader(io.StringIO(text, newline=""))]
        if not errors:
            text = ""  # a header without rows is written again
        with open(self.path, "rb+") as file:
            file.truncate(len(text.encode(errors="surrogateescape")))
        return len(errors), sum(bool(error) for error in errors)
