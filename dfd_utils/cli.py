"""The command `dfd`.

Exit codes: 0 done, 2 wrong use, 3 some inputs failed, 75 the time of max_hours is up, 130 and 143
stopped by Ctrl-C and SIGTERM, 1 anything else.
"""

import argparse
import os
import sys
from pathlib import Path

from dfd_utils import __version__, commands
from dfd_utils.config import (
    PROFILES,
    Stopped,
    UserError,
)

_MODEL = "default: the best of the newest run, by Validation"


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    # Into a file or a pipe, too, a line comes when it is said.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)
    try:
        return options.command(options) or 0
    except UserError as error:
        code, told = 2, str(error)
    except Stopped as error:
        code, told = error.exit_code, str(error)
    except KeyboardInterrupt as error:
        how = " with --resume" if options.command is commands.predict else ""
        told = str(error) or f"the same command{how} goes on where it stopped"
        code, told = 130, f"interrupted; {told}"
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
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function, text: str) -> argparse.ArgumentParser:
        added = subparsers.add_parser(name, help=text, description=text)
        added.set_defaults(command=function)
        return added

    add = command(
        "run", commands.run, "run the notebooks and write the report (what run_all.sh calls)"
    )
    add.add_argument("--data", metavar="DIR|kaggle", help="default: the embedded sample")
    add.add_argument("--profile", default="sample", help=", ".join(PROFILES))
    add.add_argument("--run", metavar="NAME", help="default: the data set's name")
    add.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    add.add_argument("--only", metavar="04,05", help="numbers of the notebooks to execute")
    add.add_argument("--no-pdf", action="store_true")

    add = command("sample", commands.sample, "make the embedded sample of drawn portraits")
    add.add_argument("out", type=Path, metavar="OUT")
    add.add_argument("--per-class", type=int, default=600, metavar="N", help="Train images a class")
    add.add_argument("--seed", type=int, default=0)

    add = command("download", commands.download, "download a data set from Kaggle")
    add.add_argument("name", nargs="?", default="openforensics")
    add.add_argument("--out", type=Path)

    add = command("audit", commands.audit, "duplicates, leakage, shortcuts and shift of a data set")
    add.add_argument("data", type=Path, metavar="DIR")
    add.add_argument("--out", type=Path, help="default: build/audit/<data set>")

    add = command("train", commands.train, "train a model")
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

    add = command("plan", commands.plan, "predict the time of a study on this machine")
    add.add_argument("--max-hours", type=float, help="say how many epochs fit")
    add.add_argument("--data", type=Path, metavar="DIR", help="default: the embedded sample")
    add.add_argument("--profile", default="sample", help=", ".join(PROFILES))
    add.add_argument("--models", default="resnet50,efficientnet_b0", metavar="A,B")
    add.add_argument("--epochs", type=int)
    add.add_argument("--image-size", type=int)
    add.add_argument("--batch-size", type=int)
    add.add_argument("--precision", metavar="auto|fp32|bf16|fp16")

    add = command("bench", commands.bench, "measure the speed beside the course project's loop")
    add.add_argument("--data", type=Path, metavar="DIR", help="default: the embedded sample")
    add.add_argument("--models", default="resnet50,efficientnet_b0", metavar="A,B")
    add.add_argument("--image-size", type=int, default=224)
    add.add_argument("--batch-size", type=int, default=32)
    add.add_argument("--precision", metavar="auto|fp32|bf16|fp16")
    add.add_argument("--batches", type=int, default=8, help="a measurement (default: 8)")
    add.add_argument("--rounds", type=int, default=3, help="whose medians count (default: 3)")
    add.add_argument("--json", type=Path, metavar="FILE", help="gets the rows as JSON")

    add = command("evaluate", commands.evaluate, "judge all models of a folder on a split")
    add.add_argument("--data", required=True, type=Path, metavar="DIR")
    add.add_argument("--split", default="Test", help="Train, Validation or Test")
    add.add_argument("runs", nargs="+", type=Path, metavar="RUN")

    add = command("compare", commands.compare, "compare two models by their predictions")
    add.add_argument("predictions", nargs=2, type=Path, metavar="CSV")
    add.add_argument("--json", action="store_true")

    add = command("predict", commands.predict, "call pictures Real or Fake")
    add.add_argument("--model", type=Path, metavar="RUN|FILE", help=_MODEL)
    add.add_argument("--format", choices=("text", "json", "csv"), default="text")
    add.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")
    add.add_argument("--resume", action="store_true", help="go on after the last row of FILE")
    add.add_argument("--explain", type=Path, metavar="DIR", help="gets a heat map of each picture")
    add.add_argument(
        "--face-check", action=argparse.BooleanOptionalAction,
        help="warn where no face is found; default: of up to 1,000 pictures, for it takes time",
    )  # fmt: skip
    add.add_argument(
        "paths", nargs="+", metavar="PATH", help="file, folder, 'pattern', or - for standard input"
    )

    add = command("demo", commands.demo, "a local page that judges the pictures dropped on it")
    add.add_argument("--run", type=Path, help="folder of models; default: the newest run")
    add.add_argument("--port", type=int, help="default: the first free one from 7860 on")

    add = command("export", commands.export, "write a model in another format")
    add.add_argument("--onnx", action="store_true", required=True, help="the format")
    add.add_argument("--model", type=Path, metavar="RUN|FILE", help=_MODEL)
    add.add_argument("--out", type=Path, metavar="FILE", help="default: model.onnx beside it")
    return parser
