"""Tables and sentences about the data set and its audit."""

import pandas as pd

from dfd_utils.config import CLASSES, SPLITS
from dfd_utils.data.audit import SHORTCUT_AUC
from dfd_utils.data.folder import DataFolder
from dfd_utils.reporting.formatting import format_interval


def data_note(data: DataFolder) -> str:
    """Return a Markdown note on which data a notebook is about, and what its figures can show."""
    if data.is_sample:
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
    """Return how well attributes of the file alone predict the label, from an audit."""
    table = pd.DataFrame(summary["shortcuts"])
    table = table[table["split"] == SPLITS[0]].set_index("attributes")
    shown = [format_interval(row.auc, row.low, row.high) for row in table.itertuples()]
    shown = {"images": table["images"], "AUC [95 % interval]": shown}
    return pd.DataFrame(shown).rename_axis(None)


def shift_table(summary: dict) -> pd.DataFrame:
    """Return how much Validation and Test differ from Train (Cliff's delta), from an audit."""
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


def summarize_audit(summary: dict) -> str:
    """Return the findings of an audit as a Markdown list."""
    exact, near = (summary["duplicates"][kind] for kind in ("exact", "near"))
    leaks = ", ".join(f"{count} {name}" for name, count in summary["leakage"].items())
    excluded = sum(sum(by_class.values()) for by_class in summary["excluded"].values())
    broken = ", ".join(f"`{path}`" for path in summary["unreadable_files"][:3])
    lines = [
        f"{summary['images']:,} images, {summary['unreadable']} of them unreadable"
        + (f" (the first: {broken})." if broken else "."),
        f"{exact['pairs']} exact and {near['pairs']} near-duplicate pairs; across splits: {leaks}.",
        f"{excluded} images are on the exclusion list; training and evaluation leave them out.",
        *(f"**Warning:** {text}." for text in summary["warnings"]),
    ]
    if not any(row["warning"] for row in summary["shortcuts"]):
        lines.append(_no_shortcut(summary))
    shift = [row for row in summary["shift"] if row["split"] == "Test" and row["class"] == "All"]
    strongest = max(shift, key=lambda row: abs(row["cliffs_delta"]))
    lines.append(
        f"Test differs from Train most in {strongest['statistic'].replace('_', ' ')}: Cliff's "
        f"delta {strongest['cliffs_delta']:+.2f}, a {strongest['size']} effect."
    )
    return "\n".join(f"- {line}" for line in lines)


def _no_shortcut(summary: dict) -> str:
    if all(row["auc"] is None for row in summary["shortcuts"]):
        return "There are too few images to test whether attributes of the file predict the label."
    return (
        "No attribute of the file is shown to predict the label: no AUC's interval is above "
        f"{SHORTCUT_AUC}."
    )
