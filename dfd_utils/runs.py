"""What lies under build/runs: the same training with other seeds, and models across data sets."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from dfd_utils import config
from dfd_utils.config import FREE_SETTINGS, UserError
from dfd_utils.dataset import check_layout, data_fingerprint
from dfd_utils.evaluate import evaluate, place, read_metrics
from dfd_utils.models import find_models
from dfd_utils.run import read_configuration

FREE = ("seed", *FREE_SETTINGS)  # settings in which repeats of one training may differ


def repeats(folder: Path) -> list[Path]:
    """Return the model's folder and those of other runs that differ from it in the seed alone.

    They lie beside it as `<any run>/<model>` and have the same model, data, and settings, by
    their config.json; one folder a seed, the given one first, the others by seed.
    """
    own = _training(folder)
    found = {own[1]: folder}
    for other in sorted(folder.parents[1].glob(f"*/{folder.name}/model.json")):
        what, seed = _training(other.parent)
        if what == own[0]:
            found.setdefault(seed, other.parent)
    return [folder, *(found[seed] for seed in sorted(found) if found[seed] != folder)]


def _training(folder: Path) -> tuple[str, int]:
    """Return what was trained, as one text without the seed, and the seed."""
    told = read_configuration(folder)
    settings = {k: v for k, v in told["settings"].items() if k not in FREE}
    what = [told["model"], told["data_fingerprint"], settings]
    return json.dumps(what, sort_keys=True), told["settings"]["seed"]


def seed_metrics(
    folders: dict[str, Path],
    data: Path,
    split: str = "Test",
    log: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Return `model,seed,auc,accuracy,f1` of models, by title, and of all their repeats."""
    rows, fingerprint = [], data_fingerprint(data)
    for title, folder in folders.items():
        for repeat in repeats(folder):
            evaluate([repeat], data, split, log)
            entry = read_metrics(place(repeat, data, fingerprint), split)
            judged = (entry[name] for name in ("auc", "accuracy", "f1"))
            rows.append((title, _training(repeat)[1], *judged))
    return pd.DataFrame(rows, columns=["model", "seed", "auc", "accuracy", "f1"])


def data_sets(own: Path) -> list[Path]:
    """Return `own` and every complete data set under the data folder, sorted by name."""
    found = [own]
    for folder in sorted(config.DATA_DIR.glob("*")):
        if folder.resolve() == own.resolve() or folder.name == own.name or not folder.is_dir():
            continue
        try:
            check_layout(folder)
        except UserError:
            continue
        found.append(folder)
    return found


def across_data_sets(
    own: Path,
    split: str = "Test",
    everything: bool = True,
    log: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Return each model of each run on each data set at hand, scoring what was not scored yet.

    Without `everything` only models trained on the data set `own`, on that set.

    Columns: run, model (folder name), trained_on and tested_on (names of data sets), images, auc,
    low, high. Of repeats with other seeds only one is taken. A run that cannot be read is named
    in the log and left out. Sets are never pooled: a row is one model on one set.
    """
    rows, seen = [], set()
    sets = [(data, data_fingerprint(data)) for data in (data_sets(own) if everything else [own])]
    for folder in find_models(config.BUILD_DIR / "runs"):
        try:
            if (what := _training(folder)[0]) in seen:
                continue
            seen.add(what)
            trained_on = read_configuration(folder)["data"]
            if not everything and place(folder, own, sets[0][1]) != folder:
                continue
            for data, fingerprint in sets:
                evaluate([folder], data, split, log)
                entry = read_metrics(place(folder, data, fingerprint), split)
                ends = entry["auc"], *entry["intervals"]["auc"]
                row = (folder.parent.name, folder.name, trained_on, data.name, entry["images"])
                rows.append((*row, *ends))
        except UserError as error:
            log(f"left out: {error}")
    columns = ["run", "model", "trained_on", "tested_on", "images", "auc", "low", "high"]
    return pd.DataFrame(rows, columns=columns)
