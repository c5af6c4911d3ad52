"""Evaluate models on a split: predictions and metrics, kept in each model's folder."""

import fcntl
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from dfd_utils.config import CLASSES, UserError
from dfd_utils.data.folder import DataFolder
from dfd_utils.data.image_io import describe_skipped
from dfd_utils.evaluation.model_card import write_model_card
from dfd_utils.models.scoring import apply_temperature
from dfd_utils.models.trained import TrainedModel, read_metrics_file, results_file, results_name
from dfd_utils.runtime.distributed import process_state, run_on_main
from dfd_utils.runtime.files import content_hash, with_checksum, write_atomic, write_json
from dfd_utils.stats.bootstrap import bootstrap
from dfd_utils.stats.metrics import (
    calibration_metrics,
    choose_threshold,
    confidence,
    threshold_metrics,
)


def evaluate(
    models: list[TrainedModel],
    data: DataFolder,
    split: str = "Test",
    log: Callable[[str], None] = print,
    resamples: int = 2000,
) -> pd.DataFrame:
    """Evaluate models on one split; return a row per model.

    Writes predictions_<split>.csv (see `score_split`; label 0 = Real, 1 = Fake) and the split's
    entry in metrics.json (see `compute_metrics`) into `model.results_folder(data)`, and the model
    card, README.md, into the model's folder. Existing results of the same model on the same images
    are reused; with another number of `resamples`, only the intervals are computed again.

    Raises:
        UserError: bad data, a model that cannot be read, or scores that are not numbers.
    """
    data.check_layout([split])
    run_on_main(lambda: data.fingerprint)  # audits once; the other processes then read the result
    if process_state().is_main_process and (line := describe_skipped(data.skipped)):
        log(f"{data.name}: {line}")
    rows = []
    for model in models:
        entry = run_on_main(_reuse_results, model, data, split, resamples)
        if entry is None:
            if process_state().is_main_process:
                log(f"{model.name}: scoring {split} of {data.name}")
            predictions = score_split(model, data, split)
            entry = run_on_main(_write_predictions, model, data, split, predictions, resamples)
        run_on_main(write_model_card, model)
        names = ("images", "auc", "accuracy", "precision", "recall", "f1")
        row = {"model": model.name, "folder": str(model.results_folder(data))}
        rows.append(row | {name: entry[name] for name in names})
    return pd.DataFrame(rows).set_index("model")


def evaluate_missing(
    models: Iterable[TrainedModel], data: DataFolder, log: Callable[[str], None] = print
) -> None:
    """Evaluate those of the models that have no metrics on Test; leave the others alone."""
    missing = [model for model in models if model.find_metrics(data, "Test") is None]
    if missing:
        evaluate(missing, data, log=log)


def score_split(model: TrainedModel, data: DataFolder, split: str) -> pd.DataFrame:
    """Return path and the columns of `model.score`, a row per image, in the order of the data.

    Raises:
        UserError: as `evaluate`.
    """
    dataset = data.split(split, model.transform)
    table = model.score(dataset)
    check_logits(model, table["logit"])
    table.insert(0, "path", dataset.names)
    return table


def check_logits(model: TrainedModel, logits: ArrayLike) -> None:
    """Raise a UserError if logits of the model are not finite."""
    if invalid := (~np.isfinite(logits)).sum():
        raise UserError(
            f"{model.folder}: the model's output is not a number for {invalid} of {len(logits)} "
            "images; train it again"
        )


def _reuse_results(
    model: TrainedModel, data: DataFolder, split: str, resamples: int
) -> dict | None:
    """Return the metrics of existing predictions; None if there are none, or they have changed."""
    table = model.find_table(data, split)
    if table is None:
        return None
    entry = model.metrics(data, split)
    if entry["resamples"] == resamples:
        return entry
    return _write_predictions(model, data, split, table, resamples)


def _write_predictions(
    model: TrainedModel, data: DataFolder, split: str, predictions: pd.DataFrame, resamples: int
) -> dict:
    entry = compute_metrics(predictions, model, resamples) | {"resamples": resamples}
    return write_results(model, data, split, predictions, entry)


def write_results(
    model: TrainedModel,
    data: DataFolder,
    split: str,
    table: pd.DataFrame,
    entry: dict,
    kind: str = "predictions",
    request: str = "",
) -> dict:
    """Write a table of scores as `<kind>_<split>.csv` and its entry in metrics.json; return that.

    `model.find_table` then returns the table for the same images, model and `request`, a text of
    all else that it depends on.
    """
    path, content = results_file(model.results_folder(data), split, kind), table.to_csv(index=False)
    write_atomic(path, content)
    key = model.results_key(data, split) + request
    entry = entry | {"scored": key, "predictions": content_hash(content)}
    update_metrics_file(model, path.parent, results_name(split, kind), entry)
    return entry


def compute_metrics(predictions: pd.DataFrame, model: TrainedModel, resamples: int = 2000) -> dict:
    """Return the metrics of a model's predictions, each with its 95 % bootstrap interval.

    The top level has those of `metrics.all_metrics` at the threshold 0.5, `images` and `intervals`.
    `at_validation_threshold` has those that depend on the threshold, at the one chosen on
    Validation; `before_temperature` the calibration metrics of the uncalibrated scores; `oracle`
    the metrics at the best threshold for these images: a bound, not a result, so no intervals.
    """
    labels, scores, logits = (predictions[name] for name in ("label", "score", "logit"))
    chosen = model.description.threshold
    candidates = {"calibrated": scores, "raw": apply_temperature(logits), "chosen": scores}
    thresholds = {"calibrated": 0.5, "raw": 0.5, "chosen": chosen}
    resampled = bootstrap(
        labels, candidates, resamples, threshold=thresholds,
        logits_by_model=dict.fromkeys(candidates, logits),
    )  # fmt: skip

    def entry(which: str, names: Iterable[str]) -> dict:
        table = resampled.intervals.loc[which].loc[list(names)]
        intervals = {name: [row.low, row.high] for name, row in table.iterrows()}
        return {**table["value"].to_dict(), "intervals": intervals}

    best = choose_threshold(labels, scores)
    at_best = threshold_metrics(labels, scores, best)
    return {
        "images": len(labels),
        **entry("calibrated", resampled.samples["calibrated"]),
        "at_validation_threshold": {"threshold": chosen} | entry("chosen", at_best),
        "before_temperature": entry("raw", calibration_metrics(labels, scores)),
        "oracle": {"threshold": best} | at_best,
    }


def select_error_examples(predictions: pd.DataFrame, images: int) -> pd.DataFrame:
    """Return the `images` most confident mistakes at 0.5 and the `images` least confident ones.

    Columns kind ("mistake" or "uncertain"), path, label, score; no more mistakes than there are.
    """
    wrong = (predictions["score"] >= 0.5) != predictions["label"]
    sure = confidence(predictions["score"], predictions.get("logit"))
    mistakes = predictions.loc[sure[wrong].nlargest(images).index].assign(kind="mistake")
    uncertain = predictions.loc[sure.nsmallest(images).index].assign(kind="uncertain")
    return pd.concat([mistakes, uncertain])[["kind", "path", "label", "score"]]


def update_metrics_file(model: TrainedModel, folder: Path, name: str, entry: dict) -> None:
    """Add or replace an entry of `folder`/metrics.json, whose other entries stay.

    Several processes may do so at a time. Raises a UserError as `write_atomic`.
    """
    with open(folder / ".metrics.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        content = read_metrics_file(folder) | {
            "classes": CLASSES,
            "positive_class": CLASSES[1],
            "threshold": 0.5,
            "validation_threshold": model.description.threshold,
            name: with_checksum(_replace_nan(entry)),
        }
        write_json(folder / "metrics.json", content)


def _replace_nan(value: object) -> object:
    """Return the value with None instead of numbers that are not finite, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _replace_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
