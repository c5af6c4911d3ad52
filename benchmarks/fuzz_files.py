"""What do damaged files of a run, of an audit and of weights do, and odd command lines?

    python -m benchmarks.fuzz_files [--cases 10000] [--only model.json,…] [--first 0]

Trains small models, then damages each kind of file, one at a time, and reads it as the program
does. Right is an answer that the damage does not change, or one line that says what is wrong (a
`UserError`), within 10 s and 1 GB of memory. Exits with 1 otherwise; a case is known by its number.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nbformat
import torch

from benchmarks.kill_study import PROFILE, make_data
from benchmarks.mutations import mutate
from benchmarks.watched import watch
from dfd_utils import cli
from dfd_utils.config import UserError
from dfd_utils.data.folder import DataFolder
from dfd_utils.evaluation.evaluate import evaluate
from dfd_utils.evaluation.predictions import read_predictions
from dfd_utils.models.trained import TrainedModel, best_epoch, choose_model
from dfd_utils.models.weights import read_weights
from dfd_utils.reporting.export import export_notebook_html
from dfd_utils.training.checkpoint import checkpoints, find_corruption
from dfd_utils.training.train import fit

NETWORK, BASELINE = "efficientnet_b0", "linear_dct"
QUICK = dataclasses.replace(PROFILE, epochs=1)


def quiet(line: str) -> None:
    """Ignore a line of progress."""


def make_files(folder: Path) -> None:
    """Train a network and the baseline, evaluate both, and write the other kinds of files."""
    data = open_data(folder)
    for name in (NETWORK, BASELINE):
        fit(name, data, folder / "run" / name, QUICK, quiet)
    evaluate([TrainedModel(folder / "run" / name) for name in (NETWORK, BASELINE)], data, log=quiet)
    state = {
        f"features.{i}.{name}": torch.ones(2, 3) for i in range(3) for name in ("weight", "bias")
    }
    torch.save({"epoch": 3, "state_dict": state}, folder / "weights.pth")
    outputs = [
        nbformat.v4.new_output("stream", text="epoch 1/8\n"),
        nbformat.v4.new_output("display_data", {"text/html": "<b>x</b>", "text/plain": "x"}),
    ]
    cell = nbformat.v4.new_code_cell("print(1)", execution_count=1, outputs=outputs)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / "executed.ipynb")


def open_data(folder: Path) -> DataFolder:
    """Open the data set anew, with its audit in `folder`."""
    data = DataFolder(folder / "data")
    data.audit_folder = folder / "audit"
    return data


def read_model(folder: Path, data: DataFolder) -> object:
    """Read a network's description, as every command does."""
    described = TrainedModel(folder / "run" / NETWORK).description
    assert 0 <= described.threshold <= 1 and 0 < described.temperature < 1e6, described
    assert described.precision in ("fp32", "bf16", "fp16") and described.image_size >= 1, described
    fit(NETWORK, data, folder / "run" / NETWORK, QUICK, quiet)


def read_config(folder: Path, data: DataFolder) -> object:
    """Read a run's settings: train again, which has nothing to do, and evaluate."""
    fit(NETWORK, data, folder / "run" / NETWORK, QUICK, quiet)
    evaluate([TrainedModel(folder / "run" / NETWORK)], data, log=quiet)


def read_history(folder: Path, data: DataFolder) -> object:
    """Read a training's history, and choose a run's best model by it."""
    history = TrainedModel(folder / "run" / NETWORK).history
    assert best_epoch(history) >= 1
    choose_model(folder / "run")


def read_results(folder: Path, data: DataFolder) -> object:
    """Look up results as `evaluate` does; damaged ones are not found, and computed again."""
    model = TrainedModel(folder / "run" / BASELINE)
    table = model.find_table(data, "Test")
    return None if table is None else (table.to_csv(), model.metrics(data, "Test"))


def read_audit(folder: Path, data: DataFolder) -> object:
    """Open the data set: its audit is read, or done again."""
    opened = open_data(folder)
    return opened.fingerprint, sorted(opened.exclusions), sorted(opened.audit_summary)


def read_checkpoint(folder: Path, data: DataFolder) -> object:
    """Look at a checkpoint: any change is seen."""
    assert find_corruption(checkpoints(folder / "run" / NETWORK)[0]) is not None


def compare_csv(folder: Path, data: DataFolder) -> object:
    """Read a file of predictions that a user names."""
    table = read_predictions(folder / "run" / BASELINE / "predictions_Test.csv")
    assert table["score"].between(0, 1).all() and set(table["label"]) <= {0, 1}


RUN = f"run/{NETWORK}"
# Kind of file: its path below the folder, how it is read, whether the answer must be as before.
KINDS: dict[str, tuple[str, Callable, bool]] = {
    "model.json": (f"{RUN}/model.json", read_model, False),
    "config.json": (f"{RUN}/config.json", read_config, False),
    "excluded.csv": (f"{RUN}/excluded.csv", read_config, False),
    "history.csv": (f"{RUN}/history.csv", read_history, False),
    "metrics.json": (f"run/{BASELINE}/metrics.json", read_results, True),
    "predictions": (f"run/{BASELINE}/predictions_Test.csv", read_results, True),
    "predictions of a user": (f"run/{BASELINE}/predictions_Test.csv", compare_csv, False),
    "exclude.csv": ("audit/exclude.csv", read_audit, True),
    "summary.json": ("audit/summary.json", read_audit, True),
    "checkpoint": (f"{RUN}/checkpoint/*/SHA256SUMS", read_checkpoint, False),
    "safetensors": (
        f"{RUN}/model.safetensors",
        lambda f, d: read_weights(f / RUN / "model.safetensors"),
        False,
    ),
    "weights.pth": ("weights.pth", lambda f, d: read_weights(f / "weights.pth"), False),
    "notebook": (
        "executed.ipynb",
        lambda f, d: export_notebook_html(f / "executed.ipynb", f / "out.html"),
        False,
    ),
}


def prepare(folder: Path, kind: str) -> Callable[[int], str]:
    """Return the function that damages the file, reads it, and puts all files back."""
    pattern, read, same = KINDS[kind]
    path = next(folder.glob(pattern))
    saved = {
        p: p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.stat().st_size < 10**6 and "data" not in p.relative_to(folder).parts
    }
    whole = path.read_bytes()
    data = open_data(folder)
    data.fingerprint  # noqa: B018  (audits)
    warnings.simplefilter("ignore")
    before = read(folder, data) if same else None
    header = whole[:9000] if len(whole) > 10**6 else whole

    def attempt(number: int) -> str:
        damaged = mutate([header], number)[1]
        if damaged == header:
            return "unchanged"
        path.write_bytes(damaged + whole[len(header) :])
        try:
            answer = read(folder, data)
            outcome = "read" if not same or answer in (None, before) else f"answer: {answer!r:.300}"
        except UserError as error:
            outcome = "refused" if len(str(error).splitlines()) == 1 else f"lines: {error}"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error!s:.300}"
        for file, content in saved.items():
            if not file.exists() or file.read_bytes() != content:
                file.write_bytes(content)
        if path not in saved:
            path.write_bytes(whole)
        return outcome

    return attempt


# What each command needs so that it cannot begin hours of work: bad data and bad models.
BAD = ("", "missing", "file", "empty", "-1", "nan", "x" * 5000, "é\u202e\x1b[31m", "=1+1", "'\"$`%")
NEEDS = {
    "run": ["--data"], "train": ["--data"], "plan": ["--data"], "bench": ["--data"],
    "demo": ["--run"], "evaluate": ["--data"], "predict": ["--model"], "export": ["--model"],
    "sample": ["--per-class"],
}  # fmt: skip


def prepare_commands(folder: Path) -> Callable[[int], str]:
    """Return the function that calls `dfd` with a command line made from a number."""
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "file").write_text("x")
    os.chdir(folder)
    commands = next(a.choices for a in cli.build_parser()._actions if isinstance(a.choices, dict))
    options = {name: sorted(p._option_string_actions) for name, p in commands.items()}

    def attempt(number: int) -> str:
        rng = random.Random(number)
        name = rng.choice(sorted(commands))
        words = [name]
        for _ in range(rng.randrange(5)):
            words += [rng.choice((rng.choice(options[name]), rng.choice(BAD))), rng.choice(BAD)]
        for option in NEEDS.get(name, []):
            words += [option, rng.choice(BAD[:2] if option == "--per-class" else BAD)]
        if "--debug" in words:
            words.remove("--debug")
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                code = cli.main(words)
        except SystemExit as error:
            code = error.code
        except BaseException as error:
            return f"{type(error).__name__}: {error!s:.200} {words!r:.300}"
        text = said.getvalue()
        if "--debug shows where" in text or "Traceback" in text or (code and not text.strip()):
            return f"unclear: {code} {text[-300:]!r} {words!r:.300}"
        return "refused" if code else "read"

    return attempt


def main() -> int:
    """Fuzz each kind, and print a row per kind and a line per finding."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000, help="of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", help="kinds, separated by commas")
    options = parser.parse_args()
    kinds = options.only.split(",") if options.only else [*KINDS, "command line"]
    findings = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["DFD_OUTPUT_DIR"] = str(folder / "output")  # of the processes to come
        make_data(folder / "data")
        make_files(folder)
        print("| damaged | cases | read | refused | findings | seconds |")
        print("|---|---:|---:|---:|---:|---:|")
        for kind in kinds:
            start, counts = time.monotonic(), Counter()
            own = prepare_commands if kind == "command line" else partial(prepare, kind=kind)
            cases = range(options.first, options.first + options.cases)
            for number, result in watch(cases, partial(own, folder)):
                if result in ("read", "refused", "unchanged"):
                    counts[result] += 1
                else:
                    counts["findings"] += 1
                    print(f"{kind} {number}: {result}", file=sys.stderr, flush=True)
            findings += counts["findings"]
            cells = [f"{counts[c]:,}" for c in ("read", "refused", "findings")]
            seconds = time.monotonic() - start
            print(
                f"| {kind} | {options.cases:,} | {' | '.join(cells)} | {seconds:.0f} |", flush=True
            )
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main())
