"""Score a split with every model of a folder: predictions, metrics, confusion matrix."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from scipy.special import expit

from dfd_utils import compare, metrics, plots, resampling, transforms
from dfd_utils.config import CLASSES, UserError, write_whole
from dfd_utils.dataset import data_fingerprint, data_loader, load_split
from dfd_utils.models import MODELS, Detector, find_models, load_model
from dfd_utils.precision import make_accelerator
from dfd_utils.processes import on_main
from dfd_utils.train import evaluate_epoch

BATCH_SIZE = 128


def evaluate(
    paths: list[Path],
    data: Path,
    split: str = "Test",
    log: Callable[[str], None] = print,
    resamples: int = 2000,
) -> pd.DataFrame:
    """Judge all models at or below `paths` on one split; return a row a model.

    Writes into each model's folder predictions_<split>.csv (`path,label,score`; label 0 = Real,
    1 = Fake; score = calibrated probability of Fake), the split's entry in metrics.json with 95 %
    bootstrap intervals, and confusion_matrix.png. A model whose predictions of these very data
    are there already is not run again. Judged on another data set than its own, a model's files
    go to `on_<data set>/` inside its folder.

    Raises:
        UserError: no model there, or bad data.
    """
    fingerprint = data_fingerprint(data)
    rows = []
    for folder in find_models(*paths):
        out = _place(folder, data, fingerprint)
        description = json.loads((folder / "model.json").read_text())
        entry = on_main(_kept, folder, out, split, fingerprint)
        if entry is None:
            log(f"{folder.name}: scoring {split} of {data.name}")
            predictions = score_split(folder, data, split)
            table = predictions.to_csv(index=False)
            on_main(write_whole, out / f"predictions_{split}.csv", table)
            entry = _judged(predictions, description["threshold"], resamples)
            entry["scored"] = _key(folder, fingerprint)
            on_main(_write_metrics, out / "metrics.json", split, entry, description)
        predictions = compare.read_predictions(out / f"predictions_{split}.csv")
        matrix = metrics.confusion(predictions["label"], predictions["score"], 0.5)
        title = f"{MODELS[description['architecture']].title} on {split}"
        figure = plots.confusion_matrices({title: matrix})
        on_main(plots.write_figure, figure, out / "confusion_matrix.png")
        rows.append({"model": folder.name, "folder": str(out), "images": entry["images"]} | {
            name: entry[name] for name in ("auc", "accuracy", "precision", "recall", "f1")
        })  # fmt: skip
    return pd.DataFrame(rows).set_index("model")


def score_split(folder: Path, data: Path, split: str) -> pd.DataFrame:
    """Return `path,label,score` of every image of a split, in the order of the data."""
    model, description = load_model(folder)
    dataset = load_split(data, split, transforms.eval_transform(description["image_size"]))
    labels, margin = _margins(model, dataset, description)
    paths = [str(dataset.path(i).relative_to(data)) for i in range(len(dataset))]
    return pd.DataFrame({"path": paths, "label": labels, "score": _score(margin, description)})


def degradation_table(
    folder: Path, data: Path, split: str, severities: tuple = (1, 3, 5), images: int = 200
) -> pd.DataFrame:
    """Return the AUC of a model under each degradation: `degradation,severity,auc,images`.

    Takes `images` of the split, every n-th, equally degraded for every model.
    """
    model, description = load_model(folder)
    resize = transforms.eval_transform(description["image_size"])
    rows = []
    for name, severity in [("none", 0)] + [
        (name, severity) for name in transforms.DEGRADATIONS for severity in severities
    ]:

        def transform(image, name=name, severity=severity):
            return resize(transforms.degrade(image, name, severity) if severity else image)

        dataset = load_split(data, split, transform, seed=0).every(images)
        labels, margin = _margins(model, dataset, description)
        auc = metrics.ranking_metrics(labels, _score(margin, description))["auc"]
        row = {"degradation": name, "severity": severity, "auc": auc, "images": len(labels)}
        rows.append(row)
    return pd.DataFrame(rows)


def read_metrics(folder: Path, split: str) -> dict:
    """Return the split's entry of a model's metrics.json.

    Raises:
        UserError: that split was not judged yet.
    """
    path = folder / "metrics.json"
    entry = json.loads(path.read_text()).get(split) if path.is_file() else None
    if entry is None:
        raise UserError(f"{path}: {split} was not judged yet; run notebook 04 or `dfd evaluate`")
    return entry


def _margins(model: Detector, dataset, description: dict):
    accelerator = make_accelerator(description["precision"])
    model, loader = accelerator.prepare(model, data_loader(dataset, BATCH_SIZE))
    labels, logits = evaluate_epoch(model, loader, accelerator)
    return labels, logits[:, 1] - logits[:, 0]


def _score(margin, description: dict):
    return expit(margin.astype("float64") / description["temperature"])


def _judged(predictions: pd.DataFrame, threshold: float, resamples: int) -> dict:
    labels, scores = predictions["label"], predictions["score"]
    entry = {"images": len(labels), **metrics.all_metrics(labels, scores)}
    intervals = resampling.bootstrap(labels, {"model": scores}, resamples).intervals.loc["model"]
    entry["intervals"] = {name: [row.low, row.high] for name, row in intervals.iterrows()}
    entry["at_validation_threshold"] = metrics.threshold_metrics(labels, scores, threshold)
    return entry


def _place(folder: Path, data: Path, fingerprint: str) -> Path:
    config = folder / "config.json"
    own = json.loads(config.read_text())["data_fingerprint"] if config.is_file() else fingerprint
    return folder if own == fingerprint else folder / f"on_{data.name}"


def _key(folder: Path, fingerprint: str) -> str:
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes())
    weights.update((folder / "model.json").read_bytes())
    return f"{weights.hexdigest()[:16]} on {fingerprint}"


def _kept(folder: Path, out: Path, split: str, fingerprint: str) -> dict | None:
    try:
        entry = json.loads((out / "metrics.json").read_text())[split]
        compare.read_predictions(out / f"predictions_{split}.csv")
    except (OSError, ValueError, KeyError, UserError):
        return None
    return entry if entry.get("scored") == _key(folder, fingerprint) else None


def _write_metrics(path: Path, split: str, entry: dict, description: dict) -> None:
    known = json.loads(path.read_text()) if path.is_file() else {}
    known |= {
        "classes": CLASSES,
        "positive_class": CLASSES[1],
        "threshold": 0.5,
        "validation_threshold": description["threshold"],
        split: entry,
    }
    write_whole(path, json.dumps(known, indent=2) + "\n")


def training_cost(folder: Path) -> dict:
    """Return what a trained model cost and weighs: parameters, MB on disk, training minutes."""
    model, description = load_model(folder)
    history = pd.read_csv(folder / "history.csv")
    return {
        "parameters (million)": sum(p.numel() for p in model.parameters()) / 1e6,
        "weights (MB)": (folder / "model.safetensors").stat().st_size / 1e6,
        "image size (px)": description["image_size"],
        "epochs": len(history),
        "training (min)": history["seconds"].sum() / 60,
        "training images/s": history["images_per_second"].median(),
        "precision": description["precision"],
    }
