"""The commands of `dfd`, as functions of the options that cli.py has parsed.

Heavy modules are imported inside the commands that need them, so that `dfd --help` is instant.
"""

import argparse
import dataclasses
import importlib
import json
import os
import sys
from pathlib import Path

from dfd_utils.config import PROJECT_ROOT, Profile, UserError, get_profile
from dfd_utils.runtime.files import write_json


def run(options: argparse.Namespace) -> None:
    from dfd_utils.reporting.pipeline import run_all

    parameters = {name: _literal(value) for name, value in options.p}
    only = options.only.split(",") if options.only else None
    run_all(
        options.data, options.profile, options.run, parameters, only, not options.no_pdf,
        options.with_code,
    )  # fmt: skip


def _literal(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _data_folder(path: Path | None):
    """Open a data set; a relative path counts from the working directory."""
    from dfd_utils.data.folder import DataFolder

    return DataFolder(path and path.absolute())


def sample(options: argparse.Namespace) -> None:
    from dfd_utils.data.sample.generate import make_sample

    print(f"embedded sample: {make_sample(options.out, options.per_class, options.seed)}")


def download(options: argparse.Namespace) -> None:
    from dfd_utils.data.download import download

    print(download(options.name, options.out))


def audit(options: argparse.Namespace) -> None:
    from dfd_utils.data.audit import audit

    data = _data_folder(options.data)
    data.check_layout()
    out = options.out or data.audit_folder
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
    from dfd_utils.training.plan import plan

    plan(options.models.split(","), _data_folder(options.data), profile)


def bench(options: argparse.Namespace) -> None:
    profile = get_profile(
        "sample",
        image_size=options.image_size,
        batch_size=options.batch_size,
        precision=options.precision,
    )
    if min(options.batches, options.rounds) < 1:
        raise UserError("--batches and --rounds require 1 or more")
    if not (PROJECT_ROOT / "benchmarks" / "speed.py").is_file():
        raise UserError("dfd bench runs benchmarks/speed.py: call it from a checkout")
    sys.path.insert(0, str(PROJECT_ROOT))
    speed = importlib.import_module("benchmarks.speed")
    data = _data_folder(options.data)
    table = speed.bench(options.models.split(","), data, profile, options.batches, options.rounds)
    print(speed.markdown(table))
    if options.json:
        print(f"written to {write_json(options.json, table.to_dict(orient='records'))}")


def train(options: argparse.Namespace) -> None:
    profile = _profile(options)
    from dfd_utils.training.train import fit

    out = options.out / options.model
    fit(options.model, _data_folder(options.data), out, profile)
    if os.environ.get("RANK", "0") == "0":
        print(f"model: {out}")


def evaluate(options: argparse.Namespace) -> None:
    from dfd_utils.evaluation.evaluate import evaluate
    from dfd_utils.models.trained import find_models
    from dfd_utils.reporting.evaluation_figures import write_confusion_matrix
    from dfd_utils.runtime.distributed import process_state

    data = _data_folder(options.data)
    models = find_models(*options.runs, fake_output=options.fake_output)
    table = evaluate(models, data, options.split)
    if not process_state().is_main_process:  # it has scored its share
        return
    print("positive class: Fake; threshold 0.5")
    print(table.drop(columns="folder").round(4).to_string())
    for model in models:
        _warn_if_inverted(model, model.metrics(data, options.split))
        write_confusion_matrix(model, data, options.split)
        print(f"written to {model.results_folder(data)}")


def _warn_if_inverted(model, metrics: dict) -> None:
    low, high = metrics["intervals"]["auc"]
    if high is None or high >= 0.5:
        return
    remedy = f"try --fake-output {1 - model.fake_output}"
    if model.is_calibrated:
        remedy = "check that the images in the folders Real and Fake are what these names say"
    print(
        f"warning: {model.name} takes Real for Fake: its AUC is {metrics['auc']:.3f} "
        f"(95 % interval {low:.3f} to {high:.3f}), below 0.5; {remedy}",
        file=sys.stderr,
    )


def compare(options: argparse.Namespace) -> None:
    from dfd_utils.evaluation.predictions import read_predictions
    from dfd_utils.reporting.comparison_text import conclusion
    from dfd_utils.stats.paired_tests import compare_models

    frames = [read_predictions(path) for path in options.predictions]
    names = [path.resolve().parent.name for path in options.predictions]
    if names[0] == names[1]:
        names = [str(path) for path in options.predictions]
    comparison = compare_models(*frames, *names)
    print(json.dumps(comparison, indent=2) if options.json else conclusion(comparison))


def predict(options: argparse.Namespace) -> int:
    from dfd_utils.inference.output import write_predictions
    from dfd_utils.inference.verdict import VARIANTS
    from dfd_utils.models.trained import choose_model

    if not 0 <= (options.variants or 0) <= len(VARIANTS):
        raise UserError(f"--variants requires a number from 0 to {len(VARIANTS)}")
    if options.resume and options.report:
        raise UserError("--report shows all images: leave out --resume")
    if options.resume and not options.output:
        raise UserError("--resume requires --output FILE")
    model = choose_model(options.model, options.fake_output)
    failed = write_predictions(
        options.paths, model, options.format, options.output, options.resume, options.explain,
        options.face_check, options.variants, options.always_answer, options.report,
    )  # fmt: skip
    return 3 if failed else 0


def demo(options: argparse.Namespace) -> None:
    from dfd_utils.inference.demo import serve

    serve(options.run, options.port)


def export(options: argparse.Namespace) -> None:
    from dfd_utils.models.onnx_export import export_onnx
    from dfd_utils.models.trained import choose_model

    model = choose_model(options.model, options.fake_output)
    print(f"written to {export_onnx(model, options.out)}")
