"""The command `dfd`. Exit codes: 0 done, 2 wrong use, 3 some inputs failed, 1 anything else."""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

from dfd_utils import __version__
from dfd_utils.config import (
    BUILD_DIR,
    PROFILES,
    Profile,
    Stopped,
    UserError,
    data_folder,
    get_profile,
)

# Heavy modules are imported by the commands that need them, so that `dfd --help` is instant.


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options) or 0
    except UserError as error:
        code, told = 2, str(error)
    except Stopped as error:
        code, told = error.exit_code, str(error)
    except KeyboardInterrupt as error:
        code, told = (
            130,
            f"interrupted; {str(error) or 'the same command goes on where it stopped'}",
        )
    except BrokenPipeError:  # the reader of our output went away
        sys.stderr.close()
        return 1
    except Exception as error:
        if options.debug:
            raise
        kind = type(error).__name__
        hint = "" if kind == "NotebookError" else f" ({kind}; --debug shows where)"
        code, told = 1, f"{error}{hint}"
    if _first_to_fail():
        print(f"dfd: {told}", file=sys.stderr)
    return code


def _first_to_fail() -> bool:
    if "WORLD_SIZE" not in os.environ:  # spares the import of torch
        return True
    from dfd_utils.processes import first_to_fail

    return first_to_fail()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dfd", description="Deepfake face images: label 0 = Real, 1 = Fake (positive class)."
    )
    parser.add_argument("--version", action="version", version=f"dfd {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=function)
        return added

    add = command("run", _run, "run the notebooks and write the report (what run_all.sh calls)")
    add.add_argument("--data", metavar="DIR|kaggle", help="default: the embedded sample")
    add.add_argument("--profile", default="sample", help=", ".join(PROFILES))
    add.add_argument("--run", metavar="NAME", help="default: the data set's name")
    add.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    add.add_argument("--only", metavar="04,05", help="numbers of the notebooks to execute")
    add.add_argument("--no-pdf", action="store_true")

    add = command("sample", _sample, "make the embedded sample of drawn portraits")
    add.add_argument("out", type=Path, metavar="OUT")
    add.add_argument("--per-class", type=int, default=600, metavar="N", help="Train images a class")
    add.add_argument("--seed", type=int, default=0)

    add = command("download", _download, "download a data set from Kaggle")
    add.add_argument("name", nargs="?", default="openforensics")
    add.add_argument("--out", type=Path)

    add = command("audit", _audit, "duplicates, leakage, shortcuts and shift of a data set")
    add.add_argument("data", type=Path, metavar="DIR")
    add.add_argument("--out", type=Path, help="default: build/audit/<data set>")

    add = command("train", _train, "train a model")
    add.add_argument("--model", required=True, help="resnet50 or efficientnet_b0")
    add.add_argument("--data", required=True, type=Path, metavar="DIR")
    add.add_argument("--out", required=True, type=Path, metavar="RUN", help="gets RUN/<model>/")
    add.add_argument("--profile", default="sample", help=", ".join(PROFILES))
    add.add_argument("--epochs", type=int)
    add.add_argument("--image-size", type=int)
    add.add_argument("--batch-size", type=int)
    add.add_argument("--lr", type=float)
    add.add_argument("--seed", type=int)
    add.add_argument("--weights", metavar="imagenet|none|FILE")
    add.add_argument("--precision", metavar="auto|fp32|bf16|fp16")
    add.add_argument("--max-hours", type=float, help="stop in good order before")
    add.add_argument("--checkpoint-minutes", type=float, help="between checkpoints in an epoch")
    add.add_argument("--keep-epochs", action="store_true", default=None)
    add.add_argument(
        "--resume", action="store_true", help="go on with a run that was broken off (as always)"
    )

    add = command("plan", _plan, "predict the time of a study on this machine")
    add.add_argument("--max-hours", type=float, help="say how many epochs fit")
    add.add_argument("--data", type=Path, metavar="DIR", help="default: the embedded sample")
    add.add_argument("--profile", default="sample", help=", ".join(PROFILES))
    add.add_argument("--models", default="resnet50,efficientnet_b0", metavar="A,B")
    add.add_argument("--epochs", type=int)
    add.add_argument("--image-size", type=int)
    add.add_argument("--batch-size", type=int)
    add.add_argument("--precision", metavar="auto|fp32|bf16|fp16")

    add = command("evaluate", _evaluate, "judge all models of a folder on a split")
    add.add_argument("--data", required=True, type=Path, metavar="DIR")
    add.add_argument("--split", default="Test", help="Train, Validation or Test")
    add.add_argument("runs", nargs="+", type=Path, metavar="RUN")

    add = command("compare", _compare, "compare two models by their predictions")
    add.add_argument("predictions", nargs=2, type=Path, metavar="CSV")
    add.add_argument("--json", action="store_true")

    add = command("predict", _predict, "call images Real or Fake")
    add.add_argument(
        "--model", type=Path, metavar="RUN|FILE", help="default: the newest run's best"
    )
    add.add_argument("--format", choices=("text", "json", "csv"), default="text")
    add.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    return parser


def _run(options: argparse.Namespace) -> None:
    from dfd_utils.pipeline import run_all

    parameters = {name: _literal(value) for name, value in options.p}
    only = options.only.split(",") if options.only else None
    run_all(options.data, options.profile, options.run, parameters, only, not options.no_pdf)


def _literal(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _sample(options: argparse.Namespace) -> None:
    from dfd_utils.sample import make_sample

    print(f"embedded sample: {make_sample(options.out, options.per_class, options.seed)}")


def _download(options: argparse.Namespace) -> None:
    from dfd_utils.download import download

    print(download(options.name, options.out))


def _audit(options: argparse.Namespace) -> None:
    from dfd_utils.audit import audit
    from dfd_utils.dataset import audit_folder

    data = data_folder(options.data.absolute())
    out = options.out or audit_folder(data)
    summary = audit(data, out)
    print(f"{summary['images']} images, {summary['unreadable']} unreadable; written to {out}")
    for warning in summary["warnings"]:
        print(f"warning: {warning}")


def _profile(options: argparse.Namespace) -> Profile:
    settings = {field.name for field in dataclasses.fields(Profile)} - {"name"}
    chosen = {name: value for name, value in vars(options).items() if name in settings}
    return get_profile(options.profile, **chosen)


def _plan(options: argparse.Namespace) -> None:
    profile = _profile(options)
    from dfd_utils.plan import plan

    data = data_folder(options.data and options.data.absolute())
    plan(options.models.split(","), data, profile)


def _train(options: argparse.Namespace) -> None:
    from dfd_utils.train import fit

    profile = _profile(options)
    out = options.out / options.model
    fit(options.model, data_folder(options.data.absolute()), out, profile)
    if os.environ.get("RANK", "0") == "0":
        print(f"model: {out}")


def _evaluate(options: argparse.Namespace) -> None:
    from dfd_utils.evaluate import evaluate
    from dfd_utils.processes import processes

    if not processes().is_main_process:  # it has its part in the scoring, and says nothing
        evaluate(options.runs, data_folder(options.data.absolute()), options.split, lambda _: None)
        return
    table = evaluate(options.runs, data_folder(options.data.absolute()), options.split)
    print("positive class: Fake; threshold 0.5")
    print(table.drop(columns="folder").round(4).to_string())
    for folder in table["folder"]:
        print(f"written to {folder}")


def _compare(options: argparse.Namespace) -> None:
    from dfd_utils.compare import compare_models, read_predictions, verdict

    frames = [read_predictions(path) for path in options.predictions]
    names = [path.resolve().parent.name for path in options.predictions]
    if names[0] == names[1]:
        names = [str(path) for path in options.predictions]
    comparison = compare_models(*frames, *names)
    print(json.dumps(comparison, indent=2) if options.json else verdict(comparison))


def _predict(options: argparse.Namespace) -> int:
    from dfd_utils.predict import as_text, default_model, predict

    model = options.model
    if model is None:
        model = default_model(BUILD_DIR / "runs")
        print(f"model: {model} (0 = Real, 1 = Fake)", file=sys.stderr)
    table = predict(options.paths, model)
    print(as_text(table, options.format))
    return 3 if table["error"].notna().any() else 0
