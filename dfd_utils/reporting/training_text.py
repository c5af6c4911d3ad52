"""Tables and sentences about a training."""

import pandas as pd

from dfd_utils.config import SPLITS
from dfd_utils.evaluation.published import published_results
from dfd_utils.models.trained import TrainedModel, best_epoch


def epoch_table(history: pd.DataFrame, title: str) -> pd.DataFrame:
    """Return "ours / published" after 1, 3, 5 and 8 epochs: our Validation, the published Test."""
    names = ["accuracy", "precision", "recall", "f1score"]
    ours = history[history["epoch"].isin([1, 3, 5, 8, history["epoch"].max()])]
    ours = ours.set_index("epoch")[names]
    theirs = published_results().query("model == @title").set_index("epochs")[names]
    ours, theirs = (
        table.map(lambda x: "-" if pd.isna(x) else f"{x:.3f}")
        for table in (ours, theirs.reindex(ours.index))
    )
    return (ours + " / " + theirs).rename_axis("epochs").rename(columns={"f1score": "F1"})


def summarize_training(model: TrainedModel) -> str:
    """Return how a training went, as a Markdown list."""
    history, config = model.history, model.config
    best = history.set_index("epoch").loc[best_epoch(history)]
    excluded = sum(config["excluded_images"][split] for split in SPLITS[:2])
    settings = config["settings"]
    return "\n".join([
        f"- {model.title} at {settings['image_size']} px, seed {settings['seed']}: epoch "
        f"{best.name} of {len(history)} is best on Validation: AUC {best['auc']:.3f} (degraded "
        f"{best['degraded_auc']:.3f}) and accuracy {best['accuracy']:.3f} at the threshold 0.5.",
        f"- Training took {history['seconds'].sum() / 60:.1f} minutes on {config['device']} in "
        f"{settings['precision']}, at {history['images_per_second'].median():.0f} images/s.",
        f"- {excluded} images of Train and Validation were left out because of the audit. Test was "
        "not used.",
    ])  # fmt: skip


def provenance_table(models: dict[str, TrainedModel]) -> pd.DataFrame:
    """Return the data, settings, versions and commit that made each model, a column per model."""
    columns = {}
    for title, model in models.items():
        config = model.config
        columns[title] = {
            "data set": config["data"],
            "data fingerprint": config["data_fingerprint"],
            **config["settings"],
            "weights": _weights(config),
            "device": config["device"],
            **{f"version of {name}": number for name, number in config["versions"].items()},
            "git commit": config["git_commit"],
        }
    return pd.DataFrame(columns).map(str).rename({"name": "profile"})


def _weights(config: dict) -> str:
    used, requested = config["settings"]["weights"], config.get("requested_weights")
    return used if requested in (None, used) else f"{used} ({requested} could not be downloaded)"
