"""What each command of `dfd` does with its options; cli.py reads them.

Heavy modules are imported by the commands that need them, so that `dfd --help` is instant.
"""

import argparse
import dataclasses
import json
import os
import sys

from dfd_utils.config import (
    Profile,
    UserError,
    data_folder,
    get_profile,
    write_whole,
)


def run(options: argparse.Namespace) -> None:
    from dfd_utils.pipeline import run_all

    parameters = {name: _literal(value) for name, value in options.p}
    only = options.only.split(",") if options.only else None
    run_all(options.data, options.profile, options.run, parameters, only, not options.no_pdf)


def _literal(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def sample(options: argparse.Namespace) -> None:
    from dfd_utils.sample import make_sample

    print(f"embedded sample: {make_sample(options.out, options.per_class, options.seed)}")


def download(options: argparse.Namespace) -> None:
    from dfd_utils.download import download

    print(download(options.name, options.out))


def audit(options: argparse.Namespace) -> None:
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


def plan(options: argparse.Namespace) -> None:
    profile = _profile(options)
    from dfd_utils.plan import plan

    data = data_folder(options.data and options.data.absolute())
    plan(options.models.split(","), data, profile)


def bench(options: argparse.Namespace) -> None:
    profile = get_profile(
        "sample",
        image_size=options.image_size,
        batch_size=options.batch_size,
        precision=options.precision,
    )
    if min(options.batches, options.rounds) < 1:
        raise UserError("--batches and --rounds want 1 or more")
    from dfd_utils.bench import bench, markdown

    data = data_folder(options.data and options.data.absolute())
    table = bench(options.models.split(","), data, profile, options.batches, options.rounds)
    print(markdown(table))
    if options.json:
        rows = table.to_dict(orient="records")
        print(f"written to {write_whole(options.json, json.dumps(rows, indent=2) + chr(10))}")


def train(options: argparse.Namespace) -> None:
    from dfd_utils.train import fit

    profile = _profile(options)
    out = options.out / options.model
    fit(options.model, data_folder(options.data.absolute()), out, profile)
    if os.environ.get("RANK", "0") == "0":
        print(f"model: {out}")


def evaluate(options: argparse.Namespace) -> None:
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


def compare(options: argparse.Namespace) -> None:
    from dfd_utils.compare import compare_models, read_predictions
    from dfd_utils.comparison_words import verdict

    frames = [read_predictions(path) for path in options.predictions]
    names = [path.resolve().parent.name for path in options.predictions]
    if names[0] == names[1]:
        names = [str(path) for path in options.predictions]
    comparison = compare_models(*frames, *names)
    print(json.dumps(comparison, indent=2) if options.json else verdict(comparison))


def predict(options: argparse.Namespace) -> int:
    from dfd_utils.prediction_file import write_predictions

    if options.resume and not options.output:
        raise UserError("--resume wants --output FILE, the file to go on with")
    # A file name need not be valid UTF-8: its bytes are written as they are.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="surrogateescape")
    failed = write_predictions(
        options.paths, options.model, options.format, options.output, options.resume,
        options.explain, options.face_check,
    )  # fmt: skip
    return 3 if failed else 0


def demo(options: argparse.Namespace) -> None:
    from dfd_utils.demo import serve

    serve(options.run, options.port)


def export(options: argparse.Namespace) -> None:
    from dfd_utils.export import export_onnx

    print(f"written to {export_onnx(options.model, options.out)}")
