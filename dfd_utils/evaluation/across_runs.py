"""Models beside each other: the same training with other seeds, and results on other data sets."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from dfd_utils import config
from dfd_utils.config import RESULT_NEUTRAL_SETTINGS, UserError
from dfd_utils.data.folder import DataFolder
from dfd_utils.evaluation.evaluate import evaluate
from dfd_utils.models.trained import TrainedModel, find_models

VARYING = ("name", "seed", *RESULT_NEUTRAL_SETTINGS)  # what trainings of other seeds may differ in


def runs_with_other_seeds(model: TrainedModel) -> list[TrainedModel]:
    """Return the model and those of other runs that differ from it in the seed alone.

    They are beside it as `<any run>/<model>` and have the same architecture, data, exclusions,
    first weights and settings, by their files; one per seed, the given one first, then by seed.
    """
    found = {_seed(model): model}
    for path in sorted(model.folder.parents[1].glob(f"*/{model.name}/model.json")):
        other = TrainedModel(path.parent)
        if _training(other) == _training(model):
            found.setdefault(_seed(other), other)
    return [model, *(found[seed] for seed in sorted(found) if found[seed] is not model)]


def _training(model: TrainedModel) -> str:
    """Return all that a training depends on, but for the seed, as one text."""
    settings = {k: v for k, v in model.config["settings"].items() if k not in VARYING}
    excluded = model.folder / "excluded.csv"
    identity = [
        model.config["model"],
        model.config["data_fingerprint"],
        model.config.get("initial_weights"),
        excluded.read_text() if excluded.is_file() else None,
        settings,
    ]
    return json.dumps(identity, sort_keys=True)


def _seed(model: TrainedModel) -> int:
    return model.config["settings"]["seed"]


def seed_metrics(
    models: dict[str, TrainedModel],
    data: DataFolder,
    split: str = "Test",
    score_missing: bool = False,
    log: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Return `model,seed,auc,accuracy,f1` of models, by title, and of runs with other seeds.

    A run without results on these images is scored with `score_missing`, otherwise it is named in
    the log and left out.
    """
    rows = []
    for title, model in models.items():
        for run in runs_with_other_seeds(model):
            entry = _results(run, data, split, score_missing, log)
            if entry is not None:
                metrics = (entry[name] for name in ("auc", "accuracy", "f1"))
                rows.append((title, _seed(run), *metrics))
    return pd.DataFrame(rows, columns=["model", "seed", "auc", "accuracy", "f1"])


def _results(
    model: TrainedModel,
    data: DataFolder,
    split: str,
    score_missing: bool,
    log: Callable[[str], None],
) -> dict | None:
    if score_missing:
        evaluate([model], data, split, log)
    # What was never audited was never evaluated; an audit would read every image.
    entry = model.find_metrics(data, split) if data.is_audited else None
    if entry is None:
        log(
            f"missing: {model.folder.parent.name}/{model.name} on {split} of {data.name}; "
            f"`dfd evaluate --data {data.path} {model.folder}`"
        )
    return entry


def data_sets(own: DataFolder) -> list[DataFolder]:
    """Return `own` and every other data set under the data folder that has a Test, by name."""
    found = [own]
    for path in sorted(config.DATA_DIR.glob("*")):
        if not path.is_dir() or path.name.startswith(".") or path.resolve() == own.path.resolve():
            continue
        data = DataFolder(path)
        if {"Test"} <= set(data.images["split"]):
            found.append(data)
    return found


def across_data_sets(
    models: list[TrainedModel],
    data: list[DataFolder],
    split: str = "Test",
    score_missing: bool = False,
    log: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Return each model's AUC on each data set that it has been evaluated on.

    With `score_missing` the others are scored now, otherwise they are named in the log. A model or
    data set that cannot be read is named in the log and left out. Sets are never pooled: a row is
    one model on one set.

    Columns: run, model (a name that no other of the run has), trained_on and tested_on (names of
    data sets), images, auc, low, high.
    """
    rows, counts = [], Counter(data_set.name for data_set in data)
    for model in models:
        for data_set in data:
            try:
                entry = _results(model, data_set, split, score_missing, log)
                trained_on = model.config["data"]
            except UserError as error:
                log(f"left out: {error}")
                continue
            if entry is not None:
                ends = entry["auc"], *entry["intervals"]["auc"]
                tested_on = data_set.name
                if counts[tested_on] > 1:
                    tested_on += f" ({data_set.fingerprint[:8]})"
                names = model.folder.parent.name, model.name, trained_on, tested_on
                rows.append((*names, entry["images"], *ends))
    columns = ["run", "model", "trained_on", "tested_on", "images", "auc", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def all_models() -> list[TrainedModel]:
    """Return the models of all runs."""
    return find_models(Path(config.BUILD_DIR / "runs"))
