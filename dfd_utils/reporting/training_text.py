"""Tables and sentences about a training."""

import pandas as pd

from dfd_utils.config import SPLITS
from dfd_utils.evaluation.published import published_results
from dfd_utils.models.trained import TrainedModel, best_epoch
from dfd_utils.reporting.formatting import escape_markdown, metric_label


def epoch_table(history: pd.DataFrame, title: str) -> pd.DataFrame:
    """Return metrics (columns) after 1, 3, 5, 8 and all epochs (rows), as "ours / published".

    Ours are from `history`, on Validation; the course project published its own, on Test, by the
    model's `title`. A dash stands for what it did not publish.
    """
    names = ["accuracy", "precision", "recall", "f1score"]
    ours = history[history["epoch"].isin([1, 3, 5, 8, history["epoch"].max()])]
    ours = ours.set_index("epoch")[names]
    published = published_results().query("model == @title").set_index("epochs")[names]
    ours, published = (
        table.map(lambda value: "-" if pd.isna(value) else f"{value:.3f}")
        for table in (ours, published.reindex(ours.index))
    )
    return (ours + " / " + published).rename_axis("epochs").rename(columns=metric_label)


def summarize_training(model: TrainedModel) -> str:
    """Return how a training went, as a Markdown list."""
    history, config = model.history, model.config
    best = history.set_index("epoch").loc[best_epoch(history)]
    excluded = sum(config["excluded_images"][split] for split in SPLITS[:2])
    settings = config["settings"]
    return "\n".join([
        f"- {model.title} at {settings['image_size']} px, seed {settings['seed']}: epoch "
        f"{best.name} of {len(history)} is best on Validation, with an AUC of {best['auc']:.3f} "
        f"({best['degraded_auc']:.3f} on degraded images) and an accuracy of "
        f"{best['accuracy']:.3f} at the threshold 0.5.",
        f"- Training took {history['seconds'].sum() / 60:.1f} minutes on "
        f"{escape_markdown(config['device'])} in {settings['precision']}, at "
        f"{history['images_per_second'].median():.0f} images/s.",
        f"- The audit excluded {excluded} images of Train and Validation. Test was not used.",
    ])  # fmt: skip


def provenance_table(models: dict[str, TrainedModel]) -> pd.DataFrame:
    """Return the data, settings, versions and commit (rows) of each model (columns, by title)."""
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
