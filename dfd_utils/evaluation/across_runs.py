"""Models side by side: the same training with other seeds, and results on other data sets."""

import shlex
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import pandas as pd

from dfd_utils import config
from dfd_utils.config import RESULT_NEUTRAL_SETTINGS, UserError
from dfd_utils.data.folder import DataFolder
from dfd_utils.evaluation.evaluate import evaluate_missing
from dfd_utils.models.trained import TrainedModel

# Settings in which trainings with other seeds may differ; weights are compared by their content.
MAY_DIFFER = ("name", "seed", "weights", *RESULT_NEUTRAL_SETTINGS)


def runs_with_other_seeds(model: TrainedModel) -> list[TrainedModel]:
    """Return the model and the models of other runs that differ from it only in the seed.

    Those are the folders `<any run>/<model>` beside its run with the same architecture, data,
    exclusion list, initial weights and settings, one per seed: the given model first, then by seed.

    Raises:
        UserError: the model's config.json is missing or damaged; other such models are left out.
    """
    training, by_seed = _training_without_seed(model), {_seed(model): model}
    runs = model.folder.absolute().parents[1]
    for path in sorted(runs.glob(f"*/{model.name}/model.json")):
        with suppress(UserError):
            other = TrainedModel(path.parent)
            if _training_without_seed(other) == training:
                by_seed.setdefault(_seed(other), other)
    return [model, *(by_seed[seed] for seed in sorted(by_seed) if by_seed[seed] is not model)]


def _training_without_seed(model: TrainedModel) -> tuple:
    """Return all that a training depends on except the seed."""
    excluded = model.folder / "excluded.csv"
    return (
        model.config["model"],
        model.config["data_fingerprint"],
        model.config.get("initial_weights"),
        excluded.read_text() if excluded.is_file() else None,
        {name: v for name, v in model.config["settings"].items() if name not in MAY_DIFFER},
    )


def _seed(model: TrainedModel) -> int:
    return model.config["settings"]["seed"]


def seed_metrics(
    models: dict[str, TrainedModel],
    data: DataFolder,
    score_missing: bool = False,
    log: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Return the metrics on Test of models and of runs that differ from them only in the seed.

    A run without results on these images is evaluated with `score_missing`; otherwise a line in
    `log` names it, and it is left out.

    Columns: model (its key in `models`), seed, auc, accuracy, f1.
    """
    rows = []
    for title, model in models.items():
        for run in runs_with_other_seeds(model):
            entry = _find_results(run, data, score_missing, log)
            if entry is not None:
                metrics = (entry[name] for name in ("auc", "accuracy", "f1"))
                rows.append((title, _seed(run), *metrics))
    return pd.DataFrame(rows, columns=["model", "seed", "auc", "accuracy", "f1"])


def _find_results(
    model: TrainedModel, data: DataFolder, score_missing: bool, log: Callable[[str], None]
) -> dict | None:
    if score_missing:
        evaluate_missing([model], data, log)
    # Without an audit there are no results, and an audit would read every image.
    entry = model.find_metrics(data, "Test") if data.is_audited else None
    if entry is None:
        command = shlex.join(["dfd", "evaluate", "--data", str(data.path), str(model.folder)])
        log(f"missing: {model.folder.parent.name}/{model.name} on Test of {data.name}; `{command}`")
    return entry


def data_sets(own: DataFolder) -> list[DataFolder]:
    """Return `own` and, by name, every other data set under the data folder that has a Test."""
    paths = sorted(path.parent for path in config.DATA_DIR.glob("[!.]*/[Tt]est"))
    return [own, *(DataFolder(p) for p in paths if p.resolve() != own.path.resolve())]


def across_data_sets(
    models: list[TrainedModel],
    data: list[DataFolder],
    score_missing: bool = False,
    log: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Return each model's AUC on the Test of each data set, a row per pair with results.

    With `score_missing` the other pairs are evaluated now; otherwise a line in `log` names each. A
    model or data set that cannot be read is named in `log` and left out. Data sets are never
    pooled.

    Columns: run, model (unique in its run), trained_on and tested_on (names of data sets), images,
    auc, low, high (its 95 % interval).
    """
    rows, counts = [], Counter(data_set.name for data_set in data)
    for model in models:
        for data_set in data:
            try:
                entry = _find_results(model, data_set, score_missing, log)
                trained_on = model.config["data"]
            except UserError as error:
                log(f"left out: {error}")
                continue
            if entry is not None:
                tested_on = data_set.name
                if counts[tested_on] > 1:
                    tested_on += f" ({data_set.fingerprint[:8]})"
                names = model.folder.parent.name, model.name, trained_on, tested_on
                rows.append((*names, entry["images"], entry["auc"], *entry["intervals"]["auc"]))
    columns = ["run", "model", "trained_on", "tested_on", "images", "auc", "low", "high"]
    return pd.DataFrame(rows, columns=columns)
