"""The command `dfd`.

Exit codes: 0 done; 2 wrong use or bad settings; 3 some inputs failed; 75 the time limit is reached;
130 and 143 stopped by Ctrl-C and SIGTERM; 1 anything else.
"""

import argparse
import os
import sys
import warnings
from pathlib import Path

from dfd_utils import __version__, commands
from dfd_utils.config import PROFILES, RunInterrupted, UserError

_MODEL = "default: the best model of the newest run, by Validation"


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = build_parser().parse_args(arguments)
    # Lines are written at once, also to a file or a pipe; in UTF-8, whatever the locale is, and
    # the bytes of a file name that is not UTF-8 as they are.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", line_buffering=True)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # they name no file
    try:
        return options.command(options) or 0
    except UserError as error:
        code, message = 2, str(error)
    except RunInterrupted as error:
        code, message = error.exit_code, str(error)
    except KeyboardInterrupt as error:
        how = " with --resume" if options.command is commands.predict else ""
        reason = str(error) or f"the same command{how} continues where it stopped"
        code, message = 130, f"interrupted; {reason}"
    except BrokenPipeError:  # nobody reads the output any more
        sys.stderr.close()
        return 1
    except Exception as error:
        if options.debug:
            raise
        if isinstance(error, OSError) and error.filename:  # the line says all
            code, message = 1, f"{error.filename}: {error.strerror}"
        else:
            kind = type(error).__name__
            hint = "" if kind == "NotebookError" else f" ({kind}; --debug shows where)"
            code, message = 1, f"{error}{hint}"
    if _should_report_error():
        from dfd_utils.runtime.files import printable

        print(f"dfd: {printable(message)}", file=sys.stderr)
    return code


def _should_report_error() -> bool:
    if "WORLD_SIZE" not in os.environ:  # saves the import of torch
        return True
    from dfd_utils.runtime.distributed import should_report_error

    return should_report_error()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; imports neither torch nor pandas."""
    parser = argparse.ArgumentParser(
        prog="dfd", description="Deepfake face images: label 0 = Real, 1 = Fake (positive class)."
    )
    parser.add_argument("--version", action="version", version=f"dfd {__version__}")
    debug = {"action": "store_true", "help": "show tracebacks"}
    parser.add_argument("--debug", **debug)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function, text: str) -> argparse.ArgumentParser:
        added = subparsers.add_parser(name, help=text, description=text)
        added.set_defaults(command=function)
        # Also accepted after the command; without a default, which would undo one before it.
        added.add_argument("--debug", default=argparse.SUPPRESS, **debug)
        return added

    add = command(
        "run", commands.run, "run the notebooks and write the report (called by run_all.sh)"
    )
    add.add_argument("--data", metavar="DIR|kaggle", help="default: the embedded sample")
    add.add_argument("--profile", default="sample", help=", ".join(PROFILES))
    add.add_argument("--run", metavar="NAME", help="default: made from the data set's name")
    add.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    add.add_argument("--only", metavar="04,05", help="numbers of the notebooks to execute")
    add.add_argument("--no-pdf", action="store_true")
    add.add_argument("--with-code", action="store_true", help="also show the code in the PDF")

    add = command("sample", commands.sample, "make the embedded sample of drawn portraits")
    add.add_argument("out", type=Path, metavar="OUT")
    add.add_argument(
        "--per-class", type=int, default=600, metavar="N", help="Train images per class"
    )
    add.add_argument("--seed", type=int, default=0)

    add = command("download", commands.download, "download a data set from Kaggle")
    add.add_argument("name", nargs="?", default="openforensics")
    add.add_argument("--out", type=Path)

    add = command(
        "audit", commands.audit, "find duplicates, leakage, shortcuts and shift in a data set"
    )
    add.add_argument("data", type=Path, metavar="DIR")
    add.add_argument("--out", type=Path, help="default: build/audit/<data set>-<hash of its path>")

    add = command("train", commands.train, "train a model")
    add.add_argument("--model", required=True, help="resnet50, efficientnet_b0, …; see docs/cli.md")
    add.add_argument("--data", required=True, type=Path, metavar="DIR")
    add.add_argument("--out", required=True, type=Path, metavar="RUN", help="receives RUN/<model>/")
    add.add_argument("--profile", default="sample", help=", ".join(PROFILES))
    add.add_argument("--epochs", type=int)
    add.add_argument("--image-size", type=int)
    add.add_argument("--batch-size", type=int)
    add.add_argument("--lr", type=float)
    add.add_argument("--seed", type=int)
    add.add_argument("--weights", metavar="imagenet|none|FILE")
    add.add_argument("--precision", metavar="auto|fp32|bf16|fp16")
    add.add_argument(
        "--max-hours", type=float, help="time limit; the run saves its state and stops"
    )
    add.add_argument("--checkpoint-minutes", type=float, help="between checkpoints within an epoch")
    add.add_argument("--keep-epochs", action="store_true", default=None)
    add.add_argument(
        "--resume", action="store_true", help="continue an interrupted run (the default)"
    )

    add = command("plan", commands.plan, "estimate the time of a study on this machine")
    add.add_argument("--max-hours", type=float, help="also estimate how many epochs fit")
    add.add_argument("--data", type=Path, metavar="DIR", help="default: the embedded sample")
    add.add_argument("--profile", default="sample", help=", ".join(PROFILES))
    add.add_argument("--models", default="resnet50,efficientnet_b0", metavar="A,B")
    add.add_argument("--epochs", type=int)
    add.add_argument("--image-size", type=int)
    add.add_argument("--batch-size", type=int)
    add.add_argument("--precision", metavar="auto|fp32|bf16|fp16")

    add = command("bench", commands.bench, "compare the speed with the course project's loop")
    add.add_argument("--data", type=Path, metavar="DIR", help="default: the embedded sample")
    add.add_argument("--models", default="resnet50,efficientnet_b0", metavar="A,B")
    add.add_argument("--image-size", type=int, default=224)
    add.add_argument("--batch-size", type=int, default=32)
    add.add_argument("--precision", metavar="auto|fp32|bf16|fp16")
    add.add_argument("--batches", type=int, default=8, help="per measurement (default: 8)")
    add.add_argument(
        "--rounds", type=int, default=3, help="rounds, of which medians are reported (default: 3)"
    )
    add.add_argument("--json", type=Path, metavar="FILE", help="receives the rows as JSON")

    def add_fake_output(added: argparse.ArgumentParser) -> None:
        added.add_argument(
            "--fake-output", type=int, choices=(0, 1),
            help="output of a FILE that means Fake (default: 1)",
        )  # fmt: skip

    add = command("evaluate", commands.evaluate, "evaluate models on a split of a data set")
    add.add_argument("--data", required=True, type=Path, metavar="DIR")
    add.add_argument("--split", default="Test", help="Train, Validation or Test")
    add_fake_output(add)
    add.add_argument("runs", nargs="+", type=Path, metavar="RUN|FILE")

    add = command("compare", commands.compare, "compare two models by their predictions")
    add.add_argument("predictions", nargs=2, type=Path, metavar="CSV")
    add.add_argument("--json", action="store_true")

    add = command("predict", commands.predict, "classify images as Real, Fake or Unsure")
    add.add_argument("--model", type=Path, metavar="RUN|FILE", help=_MODEL)
    add_fake_output(add)
    add.add_argument("--format", choices=("text", "json", "csv"), default="text")
    add.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")
    add.add_argument("--resume", action="store_true", help="continue after the last row of FILE")
    add.add_argument(
        "--explain", type=Path, metavar="DIR", help="receives a heat map for each image"
    )
    add.add_argument(
        "--face-check", action=argparse.BooleanOptionalAction,
        help="warn where no face is found; default: for up to 1,000 images, because it takes time",
    )  # fmt: skip
    add.add_argument(
        "--variants", type=int, metavar="N",
        help="score N slightly changed copies of each image, too (0 to 5; default: 5 for up to 64 "
        "images); Unsure where they disagree",
    )  # fmt: skip
    add.add_argument(
        "--always-answer", action="store_true", help="Real or Fake by the score alone, never Unsure"
    )
    add.add_argument(
        "--report", type=Path, metavar="FILE.html", help="receives a page with all images and maps"
    )
    add.add_argument(
        "paths", nargs="+", metavar="PATH", help="file, folder, 'pattern', or - for standard input"
    )

    add = command(
        "demo", commands.demo, "serve a local page that classifies the images dropped on it"
    )
    add.add_argument("--run", type=Path, help="folder of models; default: the newest run")
    add.add_argument("--port", type=int, help="default: the first free port from 7860")

    add = command("export", commands.export, "write a model in another format")
    add.add_argument("--onnx", action="store_true", required=True, help="the format")
    add.add_argument("--model", type=Path, metavar="RUN|FILE", help=_MODEL)
    add_fake_output(add)
    add.add_argument("--out", type=Path, metavar="FILE", help="default: the same name with .onnx")
    return parser
