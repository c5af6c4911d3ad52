"""Tables and sentences made from the files of a run: what the notebooks say in numbers."""

import json
from pathlib import Path

import pandas as pd
from scipy.stats import binomtest

from dfd_utils.config import CLASSES, SPLITS, UserError
from dfd_utils.evaluate import read_metrics
from dfd_utils.models import MODELS
from dfd_utils.published import published_results
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
    shown = [_interval(row.auc, row.low, row.high) for row in table.itertuples()]
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
        *([f"**Warning:** {text}" for text in summary["warnings"]]
          or ["No file-level trait tells Real from Fake by more than the audit's margin."]),
    ]  # fmt: skip
    shift = [row for row in summary["shift"] if row["split"] == "Test" and row["class"] == "All"]
    strongest = max(shift, key=lambda row: abs(row["cliffs_delta"]))
    lines.append(
        f"Test differs from Train most in {strongest['statistic'].replace('_', ' ')}: Cliff's "
        f"delta {strongest['cliffs_delta']:+.2f}, a {strongest['size']} effect."
    )
    return "\n".join(f"- {line}" for line in lines)


def best_epoch(history: pd.DataFrame) -> int:
    """Return the epoch with the highest Validation AUC, the later of two equal ones."""
    return int(history["epoch"][history["auc"][::-1].idxmax()])


def epoch_table(history: pd.DataFrame, title: str) -> pd.DataFrame:
    """Return our Validation metrics after 1, 3, 5 and 8 epochs beside the published Test ones."""
    names = ["accuracy", "precision", "recall", "f1score"]
    ours = history[history["epoch"].isin([1, 3, 5, 8, history["epoch"].max()])]
    ours = ours.set_index("epoch")[names].add_suffix(" (here)")
    theirs = published_results().query("model == @title").set_index("epochs")[names]
    table = ours.join(theirs.add_suffix(" (published)"))
    return table.rename_axis("epochs").map(lambda x: "" if pd.isna(x) else f"{x:.3f}")


def training_words(title: str, history: pd.DataFrame, configuration: dict) -> str:
    """Say how a training went, as a Markdown list."""
    best = history.set_index("epoch").loc[best_epoch(history)]
    excluded = sum(configuration["excluded_images"].values())
    settings = configuration["settings"]
    return "\n".join([
        f"- {title} at {settings['image_size']} px, seed {settings['seed']}: epoch {best.name} of "
        f"{len(history)} did best on Validation, with AUC {best['auc']:.3f} and accuracy "
        f"{best['accuracy']:.3f} at the threshold 0.5.",
        f"- Training took {history['seconds'].sum() / 60:.1f} minutes on {configuration['device']} "
        f"in {settings['precision']}, at {history['images_per_second'].median():.0f} images/s.",
        f"- {excluded} images were left out on account of the audit. Test was not read.",
    ])  # fmt: skip


def metrics_table(folders: list[Path], split: str, names: list[str]) -> pd.DataFrame:
    """Return metrics (rows) of models (columns) on a split, each with its 95 % interval."""
    columns = {}
    for folder in folders:
        entry = read_metrics(folder, split)
        columns[title_of(folder)] = {
            name.replace("_", " "): _interval(entry[name], *entry["intervals"][name])
            for name in names
        }
    return pd.DataFrame(columns)


def threshold_table(folders: list[Path], split: str) -> pd.DataFrame:
    """Return the metrics at the threshold 0.5 and at the one chosen on Validation."""
    rows = {}
    for folder in folders:
        entry = read_metrics(folder, split)
        chosen = json.loads((folder / "model.json").read_text())["threshold"]
        for name, values in ((0.5, entry), (chosen, entry["at_validation_threshold"])):
            shown = {key: f"{values[key]:.3f}" for key in entry["at_validation_threshold"]}
            rows[title_of(folder), f"{name:.3f}"] = shown
    table = pd.DataFrame(rows).T.rename_axis(["model", "threshold"])
    return table.rename(columns=lambda name: name.replace("_", " ")).reset_index()


def evaluation_words(folders: list[Path]) -> str:
    """Say how each model did on Validation and on Test, as a Markdown list."""
    lines = []
    for folder in folders:
        validation, test = (read_metrics(folder, split) for split in SPLITS[1:])
        drop = validation["auc"] - test["auc"]
        apart = validation["intervals"]["auc"][0] > test["intervals"]["auc"][1]
        lines.append(
            f"- {title_of(folder)}: AUC {_interval(test['auc'], *test['intervals']['auc'])} on "
            f"Test against {_interval(validation['auc'], *validation['intervals']['auc'])} on "
            f"Validation, {abs(drop):.3f} {'less' if drop > 0 else 'more'}; the two intervals "
            f"{'do not overlap' if apart else 'overlap'}."
        )
    return "\n".join(lines)


def pointing_words(title: str, game: dict) -> str:
    """Say how often Grad-CAM's peak fell on the swapped region, against chance."""
    interval = binomtest(game["hits"], game["images"]).proportion_ci(0.95, "exact")
    beats = "more often than" if interval.low > game["chance"] else "not clearly more often than"
    share = _interval(game["hits"] / game["images"], interval.low, interval.high)
    return (
        f"- {title}: the peak lies on the swapped region in {game['hits']} of {game['images']} "
        f"fakes, {share}, {beats} chance ({game['chance']:.2f})."
    )


def title_of(folder: Path) -> str:
    """Return the printed name of the model in a folder, as "ResNet50".

    Raises:
        UserError: no trained model there.
    """
    place = folder / "model.json"
    if not place.is_file():
        raise UserError(f"{folder}: no trained model; run notebooks 02 and 03 first")
    return MODELS[json.loads(place.read_text())["architecture"]].title


def colophon(folders: list[Path]) -> pd.DataFrame:
    """Return the data, settings, versions and commit that made each model."""
    columns = {}
    for folder in folders:
        told = json.loads((folder / "config.json").read_text())
        columns[title_of(folder)] = {
            "data set": told["data"],
            "data fingerprint": told["data_fingerprint"],
            **told["settings"],
            "device": told["device"],
            **{f"version of {name}": number for name, number in told["versions"].items()},
            "git commit": told["git_commit"],
        }
    return pd.DataFrame(columns).map(str).rename({"name": "profile"})


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or pd.isna(value):
        return "too few images"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def pair_table(comparison: dict, first: str, second: str) -> pd.DataFrame:
    """Return the paired differences of `compare.compare_models` with intervals and tests."""
    pair = comparison["pair"]
    rows = {
        "AUC (DeLong)": pair["auc_difference"],
        "AUC (bootstrap)": pair["auc_difference_bootstrap"],
        "accuracy (bootstrap; p: McNemar)": pair["accuracy_difference"] | pair["mcnemar"],
        "F1 (bootstrap)": pair["f1_difference"],
    }
    table = {
        name: {
            f"{first} less {second}": f"{row['value']:+.3f}",
            "95 % interval": f"[{row['low']:+.3f}, {row['high']:+.3f}]",
            "p": f"{row['p']:.3g}" if "p" in row else "",
        }
        for name, row in rows.items()
    }
    return pd.DataFrame(table).T


def agreement_table(agreement: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Return `compare.agreement` with printed names and shares."""
    names = ["both right", f"only {first}", f"only {second}", "both wrong"]
    shown = {
        title: [
            f"{count:,} ({share:.1%})"
            for count, share in zip(agreement[images], agreement[part], strict=True)
        ]
        for title, images, part in (
            ("all", "images", "share"),
            ("Real", "real_images", "real_share"),
            ("Fake", "fake_images", "fake_share"),
        )
    }
    return pd.DataFrame(shown, index=names)


def cost_table(costs: dict[str, dict]) -> pd.DataFrame:
    """Return `evaluate.training_cost` of models, a column a model."""
    shown = {
        title: {k: v if isinstance(v, str) else f"{v:.3g}" for k, v in cost.items()}
        for title, cost in costs.items()
    }
    return pd.DataFrame(shown)


def cost_words(costs: dict[str, dict]) -> str:
    """Say which model is lighter and which trained faster, as a Markdown list."""
    lines = []
    for name, what in (("parameters (million)", "parameters"), ("training (min)", "minutes")):
        (low, least), (high, most) = sorted((cost[name], title) for title, cost in costs.items())
        lines.append(
            f"- {least} took {low:.3g} {'million ' * (what == 'parameters')}{what}, "
            f"{high / low:.1f} times fewer than {most} ({high:.3g})."
        )
    return "\n".join(lines)
