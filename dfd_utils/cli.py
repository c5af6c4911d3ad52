"""The command `dfd`. Exit codes: 0 done, 2 wrong use, 3 some inputs failed, 1 anything else."""

import argparse
import json
import sys
from pathlib import Path

from dfd_utils import __version__
from dfd_utils.config import BUILD_DIR, PROFILES, UserError, data_folder, get_profile

# Heavy modules are imported by the commands that need them, so that `dfd --help` is instant.


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options) or 0
    except UserError as error:
        print(f"dfd: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dfd: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away
        sys.stderr.close()
        return 1
    except Exception as error:
        if options.debug:
            raise
        kind = type(error).__name__
        hint = "" if kind == "NotebookError" else f" ({kind}; --debug shows where)"
        print(f"dfd: {error}{hint}", file=sys.stderr)
        return 1


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
    add.add_argument("--resume", action="store_true", help="go on with a run that was broken off")

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


def _train(options: argparse.Namespace) -> None:
    from dfd_utils.train import fit

    names = ("epochs", "image_size", "batch_size", "lr", "seed", "weights", "precision")
    chosen = {name: getattr(options, name) for name in names}
    profile = get_profile(options.profile, **chosen)
    out = options.out / options.model
    if (out / "checkpoint").exists() and not (options.resume or (out / "model.json").is_file()):
        raise UserError(f"{out}: holds an unfinished run; --resume goes on with it")
    fit(options.model, data_folder(options.data.absolute()), out, profile)
    print(f"model: {out}")


def _evaluate(options: argparse.Namespace) -> None:
    from dfd_utils.evaluate import evaluate

    table = evaluate(options.runs, data_folder(options.data.absolute()), options.split)
    print("positive class: Fake; threshold 0.5")
    print(table.drop(columns="folder").round(4).to_string())
    for folder in table["folder"]:
        print(f"written to {folder}")


def _compare(options: argparse.Namespace) -> None:
    from dfd_utils.compare import compare_models, read_predictions
    from dfd_utils.comparison_words import verdict

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
