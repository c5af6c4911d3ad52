"""Tables and sentences made from the files of a run: what the notebooks say in numbers."""

from pathlib import Path

import pandas as pd

from dfd_utils.audit import SHORTCUT_AUC
from dfd_utils.config import CLASSES, SPLITS, UserError
from dfd_utils.history import best_epoch
from dfd_utils.models import MODELS, read_description
from dfd_utils.published import published_results
from dfd_utils.run import read_configuration
from dfd_utils.sample import is_sample


def data_note(data: Path) -> str:
    """Say in Markdown which data a notebook speaks of, and how far its figures carry."""
    if is_sample(data):
        return (
            "> **Embedded sample.** All figures of this run are those of the embedded sample: "
            "procedurally drawn portraits with simulated face swaps. They show that the software "
            "works; they are no evidence about real deepfakes."
        )
    return f"> **Data set `{data.name}`.** All figures of this run are those of this data set."


def counts_table(summary: dict) -> pd.DataFrame:
    """Return the images by split (rows) and class (columns Real, Fake), from an audit."""
    return pd.DataFrame(summary["counts"]).T.loc[list(SPLITS), list(CLASSES)]


def shortcut_table(summary: dict) -> pd.DataFrame:
    """Return how well file-level traits alone tell the label, from an audit."""
    table = pd.DataFrame(summary["shortcuts"])
    table = table[table["split"] == SPLITS[0]].set_index("traits")
    shown = [interval(row.auc, row.low, row.high) for row in table.itertuples()]
    shown = {"images": table["images"], "AUC [95 % interval]": shown}
    return pd.DataFrame(shown).rename_axis(None)


def shift_table(summary: dict) -> pd.DataFrame:
    """Return how far Validation and Test differ from Train (Cliff's delta), from an audit."""
    table = pd.DataFrame(summary["shift"])
    shown = table["cliffs_delta"].map("{:+.2f}".format)
    all_images = table["class"] == "All"
    table["shown"] = shown.where(~all_images, shown + " (" + table["size"] + ")")
    table["column"] = table["split"].where(all_images, table["split"] + ", " + table["class"])
    columns = table["column"].unique()
    table = table.pivot(index="statistic", columns="column", values="shown")[columns].fillna("")
    return (
        table.rename(lambda name: name.replace("_", " "))
        .rename_axis(None)
        .rename_axis(None, axis=1)
    )


def audit_words(summary: dict) -> str:
    """Say what an audit found, as a Markdown list."""
    exact, near = (summary["duplicates"][kind] for kind in ("exact", "near"))
    leaks = ", ".join(f"{count} {name}" for name, count in summary["leakage"].items())
    excluded = sum(sum(by_class.values()) for by_class in summary["excluded"].values())
    broken = ", ".join(f"`{path}`" for path in summary["unreadable_files"][:3])
    lines = [
        f"{summary['images']:,} images, {summary['unreadable']} of them unreadable"
        + (f" (the first: {broken})." if broken else "."),
        f"{exact['pairs']} exact and {near['pairs']} near-duplicate pairs; across splits: {leaks}.",
        f"{excluded} images are on the exclusion list, which every loader honours.",
        *([f"**Warning:** {text}" for text in summary["warnings"]] or [_no_shortcut(summary)]),
    ]
    shift = [row for row in summary["shift"] if row["split"] == "Test" and row["class"] == "All"]
    strongest = max(shift, key=lambda row: abs(row["cliffs_delta"]))
    lines.append(
        f"Test differs from Train most in {strongest['statistic'].replace('_', ' ')}: Cliff's "
        f"delta {strongest['cliffs_delta']:+.2f}, a {strongest['size']} effect."
    )
    return "\n".join(f"- {line}" for line in lines)


def _no_shortcut(summary: dict) -> str:
    if all(row["auc"] is None for row in summary["shortcuts"]):
        return "There are too few images to tell whether file-level traits give the label away."
    return (
        "No file-level trait is shown to tell Real from Fake: no AUC's interval lies above "
        f"{SHORTCUT_AUC}."
    )


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


def training_words(title: str, history: pd.DataFrame, configuration: dict) -> str:
    """Say how a training went, as a Markdown list."""
    best = history.set_index("epoch").loc[best_epoch(history)]
    excluded = sum(configuration["excluded_images"].values())
    settings = configuration["settings"]
    return "\n".join([
        f"- {title} at {settings['image_size']} px, seed {settings['seed']}: epoch {best.name} of "
        f"{len(history)} did best on Validation, with AUC {best['auc']:.3f} (degraded "
        f"{best['degraded_auc']:.3f}) and accuracy {best['accuracy']:.3f} at the threshold 0.5.",
        f"- Training took {history['seconds'].sum() / 60:.1f} minutes on {configuration['device']} "
        f"in {settings['precision']}, at {history['images_per_second'].median():.0f} images/s.",
        f"- {excluded} images were left out on account of the audit. Test was not read.",
    ])  # fmt: skip


def title_of(folder: Path) -> str:
    """Return the printed name of the model in a folder, as "ResNet50".

    Raises:
        UserError: no trained model there.
    """
    if not (folder / "model.json").is_file():
        raise UserError(f"{folder}: no trained model; run notebooks 02 and 03 first")
    return MODELS[read_description(folder)["architecture"]].title


def colophon(folders: list[Path]) -> pd.DataFrame:
    """Return the data, settings, versions and commit that made each model."""
    columns = {}
    for folder in folders:
        told = read_configuration(folder)
        columns[title_of(folder)] = {
            "data set": told["data"],
            "data fingerprint": told["data_fingerprint"],
            **told["settings"],
            "device": told["device"],
            **{f"version of {name}": number for name, number in told["versions"].items()},
            "git commit": told["git_commit"],
        }
    return pd.DataFrame(columns).map(str).rename({"name": "profile"})


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """Return "value [low, high]" as printed in tables and sentences."""
    if value is None or pd.isna(value):
        return "too few images"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
