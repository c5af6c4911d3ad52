"""Score a split with every model of a folder: predictions, metrics, confusion matrix."""

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from dfd_utils import compare, metrics, plots, resampling, transforms
from dfd_utils.config import CLASSES, UserError, read_json, write_whole
from dfd_utils.dataset import (
    DeepFakeDataset,
    data_fingerprint,
    data_loader,
    load_split,
    scoring_batch_size,
)
from dfd_utils.evaluation_plots import confusion_matrices
from dfd_utils.models import (
    MODELS,
    Detector,
    find_models,
    fused,
    load_model,
    read_description,
)
from dfd_utils.precision import make_accelerator
from dfd_utils.processes import on_main
from dfd_utils.run import read_configuration
from dfd_utils.train import evaluate_epoch

VERSION = 3  # raise it whenever the same model and data give other predictions or entries


def evaluate(
    paths: list[Path],
    data: Path,
    split: str = "Test",
    log: Callable[[str], None] = print,
    resamples: int = 2000,
) -> pd.DataFrame:
    """Judge all models at or below `paths` on one split; return a row a model.

    Writes into each model's folder predictions_<split>.csv (`path,label,score`; label 0 = Real,
    1 = Fake; score = calibrated probability of Fake), the split's entry in metrics.json (see
    `judge`), and confusion_matrix.png. A model whose predictions of these very data are there
    already is not run again. Judged on another data set than its own, a model's files go to
    `on_<data set>/` inside its folder.

    Raises:
        UserError: no model there, or bad data.
    """
    fingerprint = data_fingerprint(data)
    rows = []
    for folder in find_models(*paths):
        out = place(folder, data, fingerprint)
        description = read_description(folder)
        entry = on_main(_kept, folder, out, split, fingerprint)
        if entry is None:
            log(f"{folder.name}: scoring {split} of {data.name}")
            predictions = score_split(folder, data, split)
            table = predictions.to_csv(index=False)
            on_main(write_whole, out / f"predictions_{split}.csv", table)
            entry = judge(predictions, description, resamples)
            entry["scored"] = scoring_key(folder, fingerprint)
            on_main(write_entry, folder, out, split, entry)
        predictions = compare.read_predictions(out / f"predictions_{split}.csv")
        matrix = metrics.confusion(predictions["label"], predictions["score"], 0.5)
        title = f"{MODELS[description['architecture']].title} on {split}"
        figure = confusion_matrices({title: matrix})
        on_main(plots.write_figure, figure, out / "confusion_matrix.png")
        rows.append({"model": folder.name, "folder": str(out), "images": entry["images"]} | {
            name: entry[name] for name in ("auc", "accuracy", "precision", "recall", "f1")
        })  # fmt: skip
    return pd.DataFrame(rows).set_index("model")


def score_split(folder: Path, data: Path, split: str) -> pd.DataFrame:
    """Return `path,label,score` of every image of a split, in the order of the data."""
    model, description = load_model(folder)
    dataset = load_split(data, split, transforms.eval_transform(description["image_size"]))
    labels, margin = margins(model, dataset, description)
    paths = [str(dataset.path(i).relative_to(data)) for i in range(len(dataset))]
    return pd.DataFrame({"path": paths, "label": labels, "score": calibrated(margin, description)})


def read_metrics(folder: Path, split: str) -> dict:
    """Return the split's entry of a model's metrics.json.

    Raises:
        UserError: that split was not judged yet.
    """
    entry = entries(folder).get(split)
    if entry is None:
        path = folder / "metrics.json"
        raise UserError(f"{path}: {split} was not judged yet; run notebook 04 or `dfd evaluate`")
    return entry


def margins(
    model: Detector, dataset: DeepFakeDataset, description: dict
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels int `[N]` and logits of Fake less those of Real, float32 `[N]`, of a data set.

    `description` is what `load_model` returns beside the model.
    """
    accelerator = make_accelerator(description["precision"])
    at_once = scoring_batch_size(accelerator.device, description["image_size"])
    model, loader = accelerator.prepare(fused(model), data_loader(dataset, at_once))
    labels, logits = evaluate_epoch(model, loader, accelerator)
    return labels, logits[:, 1] - logits[:, 0]


def calibrated(margin: np.ndarray, description: dict) -> np.ndarray:
    """Return the probability of Fake, float64 `[N]`, of logits of Fake less those of Real."""
    return expit(margin.astype("float64") / description["temperature"])


def judge(predictions: pd.DataFrame, description: dict, resamples: int = 2000) -> dict:
    """Return the metrics of a model's predictions, each with its 95 % bootstrap interval.

    At the top level those of metrics.all_metrics at the threshold 0.5, `images` and `intervals`;
    below `at_validation_threshold` and `before_temperature` the same at the threshold chosen on
    Validation, and of the scores before calibration. `oracle` is the best possible threshold on
    these very images: a bound, no result, and so without an interval.
    """
    labels, scores = predictions["label"], predictions["score"].to_numpy()
    raw = metrics.undo_temperature(scores, description["temperature"])
    chosen = description["threshold"]
    resampled = resampling.bootstrap(
        labels,
        {"calibrated": scores, "raw": raw, "chosen": scores},
        resamples,
        threshold={"calibrated": 0.5, "raw": 0.5, "chosen": chosen},
    )

    def entry(which: str, names: Iterable[str]) -> dict:
        table = resampled.intervals.loc[which].loc[list(names)]
        ends = {name: [row.low, row.high] for name, row in table.iterrows()}
        return {**table["value"].to_dict(), "intervals": ends}

    best = metrics.choose_threshold(labels, scores)
    at_threshold = metrics.threshold_metrics(labels, scores, best)
    return {
        "images": len(labels),
        **entry("calibrated", resampled.samples["calibrated"]),
        "at_validation_threshold": {"threshold": chosen} | entry("chosen", at_threshold),
        "before_temperature": entry("raw", metrics.calibration_metrics(labels, scores)),
        "oracle": {"threshold": best} | at_threshold,
    }


def telling_images(predictions: pd.DataFrame, images: int) -> pd.DataFrame:
    """Return the `images` most confident mistakes at 0.5 and the `images` scores nearest to 0.5.

    Columns kind ("mistake" or "doubtful"), path, label, score; no more mistakes than there are.
    """
    error = (predictions["score"] - predictions["label"]).abs()
    wrong = (predictions["score"] >= 0.5) != predictions["label"]
    doubt = (predictions["score"] - 0.5).abs()
    mistakes = predictions.loc[error[wrong].nlargest(images).index].assign(kind="mistake")
    doubtful = predictions.loc[doubt.nsmallest(images).index].assign(kind="doubtful")
    return pd.concat([mistakes, doubtful])[["kind", "path", "label", "score"]]


def place(folder: Path, data: Path, fingerprint: str) -> Path:
    """Return where a model's files about a data set lie: its own folder, or one inside it."""
    own = fingerprint
    if (folder / "config.json").is_file():
        own = read_configuration(folder)["data_fingerprint"]
    return folder if own == fingerprint else folder / f"on_{data.name}"


def scoring_key(folder: Path, fingerprint: str) -> str:
    """Return what predictions depend on: the code's version, the weights, and the data."""
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes())
    weights.update((folder / "model.json").read_bytes())
    return f"v{VERSION}: {weights.hexdigest()[:16]} on {fingerprint}"


def _kept(folder: Path, out: Path, split: str, fingerprint: str) -> dict | None:
    entry = entries(out).get(split, {})
    if entry.get("scored") != scoring_key(folder, fingerprint):
        return None
    with suppress(UserError):
        compare.read_predictions(out / f"predictions_{split}.csv")
        return entry
    return None


def entries(folder: Path) -> dict[str, dict]:
    """Return what a model's metrics.json holds; nothing where there is none.

    Raises:
        UserError: it is damaged.
    """
    path = folder / "metrics.json"
    return read_json(path, (), "delete it") if path.is_file() else {}


def write_entry(folder: Path, out: Path, name: str, entry: dict) -> None:
    """Put an entry into `out`/metrics.json, beside what is there."""
    known = entries(out) | {
        "classes": CLASSES,
        "positive_class": CLASSES[1],
        "threshold": 0.5,
        "validation_threshold": read_description(folder)["threshold"],
        name: entry,
    }
    write_whole(out / "metrics.json", json.dumps(known, indent=2) + "\n")
