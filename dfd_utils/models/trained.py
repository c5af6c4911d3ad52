"""`TrainedModel`: a model on disk with its description, its training and its results."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from dfd_utils.config import BUILD_DIR, UserError
from dfd_utils.data.loader import data_loader, inference_batch_size
from dfd_utils.models.description import ModelDescription, recognize_weights
from dfd_utils.models.detector import Detector, fuse_batchnorm
from dfd_utils.models.registry import MODELS, create_model
from dfd_utils.models.scoring import apply_temperature, logit_margins, predict_logits
from dfd_utils.models.weights import load_weights
from dfd_utils.runtime.accelerator import make_accelerator
from dfd_utils.runtime.files import content_hash, read_json

if TYPE_CHECKING:
    from dfd_utils.data.folder import DataFolder

VERSION = 4  # raise it whenever the same model and data give other predictions or metrics


class TrainedModel:
    """A model on disk, opened once.

    Args:
        path: a model's folder, its .safetensors file, or a file of weights alone. The
            architecture of the latter is recognised by its weights; the rest is as in the course
            project: Real = 0, Fake = 1, 224 pixels, threshold 0.5, not calibrated.

    Raises:
        UserError: there is no model, or its description is damaged.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        self.folder = path.parent if path.is_file() else path
        described = (self.folder / "model.json").is_file()
        if path.is_file() and not (path.suffix == ".safetensors" and described):
            self.weights_file, self.description = path, recognize_weights(path)
            return
        self.weights_file = path if path.is_file() else self.folder / "model.safetensors"
        if not described:
            raise UserError(f"{path}: no trained model (model.json is missing); train one first")
        self.description = ModelDescription.read(self.folder / "model.json")

    def __repr__(self) -> str:
        return f"TrainedModel({str(self.folder)!r})"

    @property
    def name(self) -> str:
        """The folder's name; `dfd train` names it by the architecture's key."""
        return self.folder.name

    @property
    def title(self) -> str:
        """The architecture's printed name, for example "ResNet50"."""
        return MODELS[self.description.architecture].title

    @property
    def is_calibrated(self) -> bool:
        """Whether temperature and threshold were fitted; False for a file of weights alone."""
        return self.weights_file.with_name("model.json").is_file()

    @cached_property
    def config(self) -> dict:
        """The content of config.json: the settings, data and versions of the training.

        Raises:
            UserError: it is missing or damaged.
        """
        return read_config(self.folder)

    @cached_property
    def history(self) -> pd.DataFrame:
        """The training's history, a row per epoch.

        Raises:
            UserError: it is missing or damaged.
        """
        try:
            return pd.read_csv(self.folder / "history.csv")
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder}: history.csv is missing or damaged") from error

    @cached_property
    def fingerprint(self) -> str:
        """A hash (16 hex digits) of the weights and of their description."""
        try:
            with open(self.weights_file, "rb") as file:
                weights = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{self.weights_file}: cannot be read ({error.strerror})") from error
        return content_hash(weights, repr(self.description))

    def load(self) -> Detector:
        """Return the network in eval mode, loaded once; runs no code from its files.

        Raises:
            UserError: the weights are damaged or those of another architecture.
        """
        return self._detector

    @cached_property
    @torch.inference_mode(False)  # Grad-CAM needs gradients, whoever loads the network first
    def _detector(self) -> Detector:
        detector = create_model(self.description.architecture)
        load_weights(detector, self.weights_file, self.description.architecture)
        detector.flip_at_test = self.description.flip_at_test
        detector.instance_norm = self.description.instance_norm
        return detector.eval()

    def score(self, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
        """Return labels int `[N]` and calibrated probabilities of Fake, float64 `[N]`.

        The items of `dataset` are images of the model's size, uint8 `[3, S, S]`, and labels.
        """
        accelerator = make_accelerator(self.description.precision)
        batch_size = inference_batch_size(accelerator.device, self.description.image_size)
        network, loader = accelerator.prepare(
            fuse_batchnorm(self.load()), data_loader(dataset, batch_size)
        )
        labels, logits = predict_logits(network, loader, accelerator)
        return labels, apply_temperature(logit_margins(logits), self.description.temperature)

    def results_folder(self, data: DataFolder) -> Path:
        """Return the folder of the results on a data set: the model's own, or one inside it.

        The model's own folder receives the results on the data set that it was trained on.
        """
        has_config = (self.folder / "config.json").is_file()
        if not has_config or self.config["data_fingerprint"] == data.fingerprint:
            return self.folder
        return self.folder / f"on_{data.name}-{data.fingerprint[:8]}"

    def results_key(self, data: DataFolder, split: str) -> str:
        """Return what results on a split depend on: code version, model and images."""
        return f"v{VERSION}: {self.fingerprint} on {data.split_fingerprint(split)}"

    def find_metrics(self, data: DataFolder, split: str) -> dict | None:
        """Return the metrics of a split, or None if there are none of this model and images."""
        entry = read_metrics_file(self.results_folder(data)).get(split, {})
        return entry if entry.get("scored") == self.results_key(data, split) else None

    def metrics(self, data: DataFolder, split: str) -> dict:
        """Return the metrics of a split; see `evaluate.compute_metrics`.

        Raises:
            UserError: this model has not been evaluated on these images.
        """
        entry = self.find_metrics(data, split)
        if entry is None:
            raise UserError(
                f"{self.folder}: not evaluated on {split} of {data.name} as it is now; "
                "run notebook 04 or `dfd evaluate`"
            )
        return entry

    def predictions(self, data: DataFolder, split: str) -> pd.DataFrame:
        """Return the predictions of a split: path, label (0 or 1), score (0..1).

        Raises:
            UserError: as `metrics`, or the file is missing or has changed.
        """
        entry, path = self.metrics(data, split), predictions_file(self.results_folder(data), split)
        if not path.is_file() or content_hash(path.read_bytes()) != entry["predictions"]:
            raise UserError(f"{path}: missing or changed; run `dfd evaluate` again")
        options = {"dtype": {"path": str}, "converters": {"score": float}}
        return pd.read_csv(path, keep_default_na=False, **options)


def read_config(folder: Path) -> dict:
    """Return the content of a run's config.json.

    Raises:
        UserError: it is missing or damaged.
    """
    keys = "model", "settings", "data", "data_fingerprint", "device", "versions", "git_commit"
    return read_json(folder / "config.json", keys, "delete that folder and train again")


def read_metrics_file(folder: Path) -> dict:
    """Return the content of a folder's metrics.json, empty if there is none."""
    path = folder / "metrics.json"
    return read_json(path, (), "delete it") if path.is_file() else {}


def predictions_file(folder: Path, split: str) -> Path:
    """Return the path of the predictions on a split."""
    return folder / f"predictions_{split}.csv"


def best_epoch(history: pd.DataFrame) -> int:
    """Return the best epoch on Validation, the later one of a tie.

    It has the highest mean of two AUCs: of the original images and of degraded ones.
    """
    auc = history["auc"] + history.get("degraded_auc", history["auc"])
    return int(history["epoch"][auc[::-1].idxmax()])


def find_models(*paths: str | Path) -> list[TrainedModel]:
    """Return all models at or below `paths`, each once, sorted by folder.

    The models of single epochs (`epochs/epoch_003`) are returned only where a path names them.

    Raises:
        UserError: a path is missing or contains no model.
    """
    folders = set()
    for path in map(Path, paths):
        below = {file.parent for file in path.rglob("model.json")}
        models = {f for f in below if not f.relative_to(path).match("epochs/epoch_*")}
        if not models:
            raise UserError(f"{path}: no trained model; run `dfd train … --out {path}` first")
        folders |= models
    return [TrainedModel(folder) for folder in sorted(folders)]


def choose_model(path: str | Path | None = None) -> TrainedModel:
    """Return the model that `path` refers to.

    A model's own folder or file refers to that model; any other folder to the model of its newest
    run with the highest AUC on Validation. None stands for the folder of all runs.

    Raises:
        UserError: there is no trained model.
    """
    path = BUILD_DIR / "runs" if path is None else Path(path)
    if (path / "model.json").is_file() or path.is_file():
        return TrainedModel(path)
    models = find_models(path)
    newest = max(models, key=lambda model: (model.folder / "model.json").stat().st_mtime)
    run = [model for model in models if model.folder.parent == newest.folder.parent]
    return max(run, key=_validation_auc)


def _validation_auc(model: TrainedModel) -> float:
    if not (model.folder / "history.csv").is_file():
        return -1.0
    return float(model.history.set_index("epoch")["auc"][best_epoch(model.history)])


def models_by_title(models: Iterable[TrainedModel]) -> dict[str, TrainedModel]:
    """Return models by their titles, with the folder's name where a title is not unique."""
    models = list(models)
    count = Counter(model.title for model in models)
    return {
        model.title if count[model.title] == 1 else f"{model.title} ({model.name})": model
        for model in models
    }
