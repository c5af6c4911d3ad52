"""`TrainedModel`: a model on disk with its description, its training and its results."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dfd_utils.config import BUILD_DIR, UserError
from dfd_utils.data.loader import data_loader, inference_batch_size
from dfd_utils.data.transforms import eval_transform
from dfd_utils.models.description import ModelDescription, recognize_weights
from dfd_utils.models.inputs import dct_input, fused_input
from dfd_utils.models.registry import (
    BASELINE,
    MODELS,
    create_fusion,
    create_model,
    swap_outputs,
)
from dfd_utils.models.scoring import apply_temperature, logit_margins, predict_logits
from dfd_utils.models.weights import load_weights
from dfd_utils.runtime.accelerator import make_accelerator
from dfd_utils.runtime.files import content_hash, is_intact, read_json

if TYPE_CHECKING:
    from dfd_utils.data.folder import DataFolder
    from dfd_utils.models.detector import Detector

VERSION = 7  # raise it whenever the same model and data give other predictions or metrics


class TrainedModel:
    """A model on disk, opened once.

    Args:
        path: a model's folder, its model.safetensors, or a file of weights alone. The
            architecture of the latter is recognised by its weights; the rest is as in the course
            project: Real = 0, Fake = 1, 224 pixels, threshold 0.5, not calibrated.
        fake_output: the output (0 or 1) of a file of weights alone that means Fake; None: 1.

    Raises:
        UserError: there is no model, its description is damaged, or `fake_output` is given though
            it has a description.
    """

    def __init__(self, path: str | Path, fake_output: int | None = None):
        path = Path(path)
        self.folder = path.parent if path.is_file() else path
        self.weights_file = self.folder / "model.safetensors"
        described = (self.folder / "model.json").is_file()
        # Whether temperature and threshold were fitted; False for a file of weights alone.
        self.is_calibrated = not path.is_file() or (described and path == self.weights_file)
        self.fake_output = 1 if fake_output is None else fake_output
        if not self.is_calibrated:
            self.weights_file, self.description = path, recognize_weights(path)
            return
        if not described:
            raise UserError(
                f"{path}: no trained model (model.json is missing); run notebooks 02 and 03, or "
                "`dfd train`, first"
            )
        if fake_output is not None:
            raise UserError(
                f"{path}: leave out --fake-output, which is for a file of weights alone; "
                "the order of this model's outputs is in its model.json"
            )
        self.description = ModelDescription.read(self.folder / "model.json")

    def __repr__(self) -> str:
        return f"TrainedModel({str(self.folder)!r})"

    @property
    def name(self) -> str:
        """The folder's name (`dfd train` names it by the architecture's key), or the file's."""
        return self.folder.name if self.is_calibrated else self.weights_file.stem

    @property
    def title(self) -> str:
        """The architecture's printed name, for example "ResNet50"."""
        title = MODELS[self.description.architecture].title
        return f"{title} + DCT" if self.description.fused else title

    @property
    def transform(self) -> Callable[[Tensor], Tensor]:
        """Turns a decoded image, uint8 `[3, H, W]`, into the input of `load()`, without batch."""
        if self.description.fused:
            return partial(fused_input, image_size=self.description.image_size)
        if self.description.architecture == BASELINE:
            return dct_input
        return eval_transform(self.description.image_size)

    @property
    def is_network(self) -> bool:
        """Whether it sees only the resized image: it is neither the baseline nor a fusion."""
        return self.has_heat_maps and not self.description.fused

    @property
    def has_heat_maps(self) -> bool:
        """Whether Grad-CAM can explain the model: the baseline has no layers to look at."""
        return self.description.architecture != BASELINE

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
            history = pd.read_csv(self.folder / "history.csv")
            may_be_empty = ["unsure_from", "unsure_to"]
            numbers = history.drop(columns=may_be_empty, errors="ignore").to_numpy(np.float64)
            counted = len(history) and history["epoch"].tolist() == [*range(1, len(history) + 1)]
            whole = isinstance(history.index, pd.RangeIndex) and history["epoch"].dtype.kind == "i"
            if not counted or not whole or "auc" not in history or not np.isfinite(numbers).all():
                raise ValueError("epochs or numbers are missing")
        except (OSError, ValueError, KeyError, OverflowError) as error:
            raise UserError(f"{self.folder}: history.csv is missing or damaged") from error
        return history

    @cached_property
    def fingerprint(self) -> str:
        """A hash (16 hex digits) of the weights and of their description."""
        try:
            with open(self.weights_file, "rb") as file:
                weights = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{self.weights_file}: cannot be read ({error.strerror})") from error
        swapped = [] if self.fake_output == 1 else ["swapped outputs"]
        return content_hash(weights, repr(self.description), *swapped)

    def load(self) -> nn.Module:
        """Return the `Detector` (or `LinearDetector`, `FusedDetector`) in eval mode, loaded once.

        Runs no code from its files.

        Raises:
            UserError: the weights are damaged or those of another architecture.
        """
        return self._detector

    @cached_property
    @torch.inference_mode(False)  # Grad-CAM needs gradients, whoever loads the network first
    def _detector(self) -> nn.Module:
        create = create_fusion if self.description.fused else create_model
        detector = create(self.description.architecture)
        load_weights(detector, self.weights_file, self.description.architecture)
        if self.fake_output == 0:
            swap_outputs(detector, self.description.architecture)
        network = detector.backbone["network"] if self.description.fused else detector
        network.flip_at_test = self.description.flip_at_test
        network.instance_norm = self.description.instance_norm
        return detector.eval()

    def load_network(self) -> Detector:
        """Return the part of `load()` that looks at the resized image."""
        return self.load().backbone["network"] if self.description.fused else self.load()

    def score(self, dataset: Dataset) -> pd.DataFrame:
        """Return label, score (calibrated probability of Fake) and logit, a row per item.

        The logit is that of Fake minus that of Real, before calibration: scores close to 0 and 1
        are rounded to equal numbers, logits are not. The items of `dataset` are images after
        `transform`, and labels.
        """
        accelerator = make_accelerator(self.description.precision)
        batch_size = inference_batch_size(
            accelerator.device, self.description.image_size, accelerator.num_processes
        )
        network, loader = accelerator.prepare(
            self.load().fuse_batchnorm(), data_loader(dataset, batch_size)
        )
        labels, logits = predict_logits(network, loader, accelerator)
        margins = logit_margins(logits)
        scores = apply_temperature(margins, self.description.temperature)
        return pd.DataFrame({"label": labels, "score": scores, "logit": margins})

    def results_folder(self, data: DataFolder) -> Path:
        """Return the folder of the results on a data set: the model's own, or one inside it.

        The model's own folder receives the results on the data set that it was trained on. The
        results of a file of weights alone are in a folder beside it that has its fingerprint.
        """
        folder = self.folder
        if not self.is_calibrated:
            folder /= f"{self.name}-{self.fingerprint[:8]}"
        elif (
            not (folder / "config.json").is_file()
            or self.config["data_fingerprint"] == data.fingerprint
        ):
            return folder
        return folder / f"on_{data.name}-{data.fingerprint[:8]}"

    def results_key(self, data: DataFolder, split: str) -> str:
        """Return what results on a split depend on: code version, model and images."""
        return f"v{VERSION}: {self.fingerprint} on {data.split_fingerprint(split)}"

    def find_metrics(
        self, data: DataFolder, split: str, kind: str = "predictions", request: str = ""
    ) -> dict | None:
        """Return the metrics of a split, or None if there are none of this model and images.

        `kind` and `request` are those of `evaluate.write_results`.
        """
        entry = read_metrics_file(self.results_folder(data)).get(results_name(split, kind))
        key = self.results_key(data, split) + request
        return entry if is_intact(entry) and entry["scored"] == key else None

    def find_table(
        self, data: DataFolder, split: str, kind: str = "predictions", request: str = ""
    ) -> pd.DataFrame | None:
        """Return the table to the metrics of `find_metrics`; None if it is missing or changed."""
        entry = self.find_metrics(data, split, kind, request)
        path = results_file(self.results_folder(data), split, kind)
        if entry is None or not path.is_file():
            return None
        if content_hash(path.read_bytes()) != entry["predictions"]:
            return None
        exact = {"score": float, "logit": float}  # pandas' own parser may be off by the last bit
        return pd.read_csv(path, keep_default_na=False, dtype={"path": str}, converters=exact)

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
        """Return the predictions of a split: path, and the columns of `score`.

        Raises:
            UserError: as `metrics`, or the file is missing or has changed.
        """
        self.metrics(data, split)
        table = self.find_table(data, split)
        if table is None:
            path = results_file(self.results_folder(data), split)
            raise UserError(f"{path}: missing or changed; run notebook 04 or `dfd evaluate` again")
        return table


def read_config(folder: Path) -> dict:
    """Return the content of a run's config.json.

    Raises:
        UserError: it is missing or damaged.
    """
    keys = "model", "settings", "data", "data_fingerprint", "device", "versions", "git_commit"
    remedy = "delete that folder and train again"
    config = read_json(folder / "config.json", keys, remedy)
    texts = ("model", "data", "data_fingerprint", "device", "git_commit")
    objects = ("settings", "versions")
    if not (
        all(isinstance(config[key], str) for key in texts)
        and all(isinstance(config[key], dict) for key in objects)
    ):
        raise UserError(f"{folder / 'config.json'}: damaged; {remedy}")
    return config


def read_metrics_file(folder: Path) -> dict:
    """Return the content of a folder's metrics.json, empty if there is none."""
    path = folder / "metrics.json"
    return read_json(path, (), "delete it") if path.is_file() else {}


def results_file(folder: Path, split: str, kind: str = "predictions") -> Path:
    """Return the path of the table of a split."""
    return folder / f"{kind}_{split}.csv"


def results_name(split: str, kind: str = "predictions") -> str:
    """Return the name of a table's entry in metrics.json: for predictions that of the split."""
    return split if kind == "predictions" else f"{kind}_{split}"


def best_epoch(history: pd.DataFrame) -> int:
    """Return the best epoch on Validation, the later one of a tie.

    It has the highest mean of two AUCs: of the original images and of degraded ones.
    """
    auc = history["auc"] + history.get("degraded_auc", history["auc"])
    return int(history["epoch"][auc[::-1].idxmax()])


def find_models(*paths: str | Path, fake_output: int | None = None) -> list[TrainedModel]:
    """Return all models at or below `paths`, each once, sorted by path; see `TrainedModel`.

    The models of single epochs (`epochs/epoch_003`) are returned only where a path names them.

    Raises:
        UserError: as `TrainedModel`, or a path is missing or contains no model.
    """
    found = set()
    for path in map(Path, paths):
        if path.is_file():
            found.add(path)
            continue
        below = {file.parent for file in path.rglob("model.json")}
        models = {f for f in below if not f.relative_to(path).match("epochs/epoch_*")}
        if not models:
            raise UserError(
                f"{path}: no trained model; run notebooks 02 and 03, or `dfd train … --out "
                f"{path}`, first"
            )
        found |= models
    opened = (TrainedModel(path, fake_output) for path in sorted(found))
    return list({model.weights_file: model for model in opened}.values())


def choose_model(
    path: TrainedModel | str | Path | None = None, fake_output: int | None = None
) -> TrainedModel:
    """Return the model that `path` refers to; see `TrainedModel` for `fake_output`.

    A model's own folder or file refers to that model; any other folder to the model of its newest
    run with the highest AUC on Validation. None stands for the folder of all runs.

    Raises:
        UserError: as `TrainedModel`, or there is no trained model.
    """
    if isinstance(path, TrainedModel):
        return path
    path = BUILD_DIR / "runs" if path is None else Path(path)
    if (path / "model.json").is_file() or path.is_file():
        return TrainedModel(path, fake_output)
    models = find_models(path, fake_output=fake_output)
    newest = max(models, key=lambda model: (model.folder / "model.json").stat().st_mtime)
    run = [model for model in models if model.folder.parent == newest.folder.parent]
    return max(run, key=_validation_auc)


def best_network(models: Iterable[TrainedModel]) -> TrainedModel:
    """Return the network with the highest AUC on Validation: no baseline and no fusion.

    Raises:
        UserError: there is no network.
    """
    networks = [model for model in models if model.is_network]
    if not networks:
        raise UserError("no trained network; train one first: dfd train --model …")
    return max(networks, key=_validation_auc)


def _validation_auc(model: TrainedModel) -> float:
    if not (model.folder / "history.csv").is_file():
        return -1.0
    return float(model.history.set_index("epoch")["auc"][best_epoch(model.history)])


def models_by_title(models: Iterable[TrainedModel]) -> dict[str, TrainedModel]:
    """Return models by their titles, with the folder's and the run's name where those repeat."""
    models = list(models)
    titles = Counter(model.title for model in models)
    names = Counter((model.title, model.name) for model in models)

    def unique_title(model: TrainedModel) -> str:
        if titles[model.title] == 1:
            return model.title
        run = "" if names[model.title, model.name] == 1 else f"{model.folder.parent.name}/"
        return f"{model.title} ({run}{model.name})"

    return {unique_title(model): model for model in models}
