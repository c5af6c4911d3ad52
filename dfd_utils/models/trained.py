"""`TrainedModel`: a model on disk, its description, its training and its results."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from torch.utils.data import Dataset

from dfd_utils.config import BUILD_DIR, UserError
from dfd_utils.models.description import ModelDescription, recognize_weights
from dfd_utils.models.detector import Detector
from dfd_utils.models.registry import MODELS, create_model
from dfd_utils.models.scoring import apply_temperature, predict_logit_margins
from dfd_utils.models.weights import load_weights
from dfd_utils.runtime.files import content_hash, read_json

if TYPE_CHECKING:
    from dfd_utils.data.folder import DataFolder

VERSION = 4  # raise it whenever the same model and data give other predictions or metrics


class TrainedModel:
    """A model on disk, opened once.

    Args:
        path: a model's folder, its .safetensors file, or a file of weights alone. The latter is
            recognised by its weights (Real = 0, Fake = 1) and described as the course project used
            it: 224 pixels, threshold 0.5, not calibrated.

    Raises:
        UserError: no model there, or its description is damaged.
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
        """The folder's name: the architecture's key, for a model that `dfd train` has made."""
        return self.folder.name

    @property
    def title(self) -> str:
        """The architecture's printed name, as "ResNet50"."""
        return MODELS[self.description.architecture].title

    @property
    def is_calibrated(self) -> bool:
        """Whether temperature and threshold were fitted, which a file of weights does not tell."""
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
        """The training's history, a row per epoch; raises a UserError where it is missing."""
        try:
            return pd.read_csv(self.folder / "history.csv")
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder}: history.csv is missing or damaged") from error

    @cached_property
    def fingerprint(self) -> str:
        """A hash (16 hex digits) of the weights and of what is needed to use them."""
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
        size, precision = self.description.image_size, self.description.precision
        labels, margins = predict_logit_margins(self.load(), dataset, size, precision)
        return labels, apply_temperature(margins, self.description.temperature)

    def results_folder(self, data: DataFolder) -> Path:
        """Return where results on a data set are: the model's own folder, or one inside it."""
        own = data.fingerprint
        if (self.folder / "config.json").is_file():
            own = self.config["data_fingerprint"]
        if own == data.fingerprint:
            return self.folder
        return self.folder / f"on_{data.name}-{data.fingerprint[:8]}"

    def results_key(self, data: DataFolder, split: str) -> str:
        """Return all that results on a split depend on: code version, model, and images."""
        return f"v{VERSION}: {self.fingerprint} on {data.split_fingerprint(split)}"

    def find_metrics(self, data: DataFolder, split: str) -> dict | None:
        """Return the metrics of a split, or None if this model has none of these very images."""
        entry = read_metrics_file(self.results_folder(data)).get(split, {})
        return entry if entry.get("scored") == self.results_key(data, split) else None

    def metrics(self, data: DataFolder, split: str) -> dict:
        """Return the metrics of a split; see `evaluate.compute_metrics`.

        Raises:
            UserError: the model has not been evaluated on these very images.
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
            UserError: as `metrics`, or the file has changed since.
        """
        entry, path = self.metrics(data, split), predictions_file(self.results_folder(data), split)
        if not path.is_file() or content_hash(path.read_bytes()) != entry["predictions"]:
            raise UserError(f"{path}: missing or changed; run `dfd evaluate` again")
        return pd.read_csv(path, dtype={"path": str}, keep_default_na=False,
                           converters={"score": float})  # fmt: skip


def read_config(folder: Path) -> dict:
    """Return the content of a run's config.json.

    Raises:
        UserError: it is missing or damaged.
    """
    keys = "model", "settings", "data", "data_fingerprint", "device", "versions", "git_commit"
    return read_json(folder / "config.json", keys, "delete that folder and train again")


def read_metrics_file(folder: Path) -> dict:
    """Return the content of metrics.json, empty if there is none; raises a UserError if damaged."""
    path = folder / "metrics.json"
    return read_json(path, (), "delete it") if path.is_file() else {}


def predictions_file(folder: Path, split: str) -> Path:
    """Return the file of predictions in a folder of results."""
    return folder / f"predictions_{split}.csv"


def best_epoch(history: pd.DataFrame) -> int:
    """Return the epoch that did best on Validation, the later of two equal ones.

    The criterion is the highest mean of two AUCs: of the original images and of degraded ones.
    """
    auc = history["auc"] + history.get("degraded_auc", history["auc"])
    return int(history["epoch"][auc[::-1].idxmax()])


def find_models(*paths: str | Path) -> list[TrainedModel]:
    """Return all models at or below `paths`, each once, sorted by folder.

    The models of single epochs (`epochs/` in a model's folder) are not among them.

    Raises:
        UserError: a path that is missing or contains no model.
    """
    folders = set()
    for path in map(Path, paths):
        files = path.rglob("model.json") if path.is_dir() else ()
        found = {f.parent for f in files if "epochs" not in f.relative_to(path).parts}
        if not found:
            raise UserError(f"{path}: no trained model; run `dfd train … --out {path}` first")
        folders |= found
    return [TrainedModel(folder) for folder in sorted(folders)]


def choose_model(path: str | Path | None = None) -> TrainedModel:
    """Return the model that `path` refers to.

    A model's own folder or file refers to itself; a folder of models to the one of its newest run
    with the highest AUC on Validation; None to the best of the newest run of all.

    Raises:
        UserError: no model has been trained yet.
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
    """Return models by a printed name that no two of them share."""
    models = list(models)
    count = Counter(model.title for model in models)
    return {
        model.title if count[model.title] == 1 else f"{model.title} ({model.name})": model
        for model in models
    }
