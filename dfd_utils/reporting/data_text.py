"""Tables and sentences about the data set and its audit."""

import pandas as pd

from dfd_utils.config import CLASSES, SPLITS
from dfd_utils.data.audit import SHORTCUT_AUC
from dfd_utils.data.folder import DataFolder
from dfd_utils.reporting.formatting import code_span, escape_markdown, format_interval, metric_label


def data_note(data: DataFolder) -> str:
    """Return a Markdown note that names the data set of a run and what its results can show."""
    if data.is_sample:
        return (
            "> **Embedded sample.** All results of this run come from the embedded sample: "
            "procedurally drawn portraits with simulated face swaps. They show that the software "
            "works; they are no evidence about real deepfakes."
        )
    return f"> **Data set {code_span(data.name)}.** All results of this run come from it."


def name_data(data: DataFolder) -> str:
    """Return what to call a data set within a sentence, as Markdown."""
    return "the embedded sample" if data.is_sample else f"the data set {code_span(data.name)}"


def counts_table(summary: dict) -> pd.DataFrame:
    """Return the number of images by split (rows) and class (columns), from an audit's summary."""
    return pd.DataFrame(summary["counts"]).T.loc[list(SPLITS), list(CLASSES)]


def shortcut_table(summary: dict) -> pd.DataFrame:
    """Return how well attributes of the file alone predict the label on Train, by attribute."""
    table = pd.DataFrame(summary["shortcuts"])
    table = table[table["split"] == SPLITS[0]].set_index("attributes").rename_axis(None)
    auc = [format_interval(row.auc, row.low, row.high) for row in table.itertuples()]
    return table[["images"]].assign(**{"AUC [95 % interval]": auc})


def shift_table(summary: dict) -> pd.DataFrame:
    """Return how much Validation and Test differ from Train (Cliff's delta), by statistic."""
    table = pd.DataFrame(summary["shift"])
    all_images = table["class"] == "All"
    delta = table["cliffs_delta"].map("{:+.2f}".format)
    table["delta"] = delta.where(~all_images, delta + " (" + table["size"] + ")")
    table["column"] = table["split"].where(all_images, table["split"] + ", " + table["class"])
    columns = table["column"].unique()
    wide = table.pivot(index="statistic", columns="column", values="delta")[columns].fillna("")
    return wide.rename(index=metric_label).rename_axis(index=None, columns=None)


def summarize_audit(summary: dict) -> str:
    """Return the findings of an audit as a Markdown list."""
    exact, near = (summary["duplicates"][kind] for kind in ("exact", "near"))
    leaks = ", ".join(f"{name} {count}" for name, count in summary["leakage"].items())
    excluded = sum(sum(by_class.values()) for by_class in summary["excluded"].values())
    unreadable = ", ".join(code_span(path) for path in summary["unreadable_files"][:3])
    lines = [
        f"{summary['images']:,} images, {summary['unreadable']} of them unreadable"
        + (f" (the first: {unreadable})." if unreadable else "."),
        f"{exact['pairs']} exact and {near['pairs']} near-duplicate pairs; images that are also in "
        f"another split: {leaks}.",
        f"{excluded} images are on the exclusion list; training and evaluation leave them out.",
        *(f"**Warning:** {escape_markdown(text)}." for text in summary["warnings"]),
    ]
    if not any(row["warning"] for row in summary["shortcuts"]):
        lines.append(_no_shortcut(summary))
    shift = [row for row in summary["shift"] if row["split"] == "Test" and row["class"] == "All"]
    strongest = max(shift, key=lambda row: abs(row["cliffs_delta"]))
    lines.append(
        f"Test differs most from Train in {metric_label(strongest['statistic'])} (Cliff's "
        f"delta {strongest['cliffs_delta']:+.2f}; size of the effect: {strongest['size']})."
    )
    return "\n".join(f"- {line}" for line in lines)


def _no_shortcut(summary: dict) -> str:
    if all(row["auc"] is None for row in summary["shortcuts"]):
        return "There are too few images to test whether attributes of the file predict the label."
    return (
        "No attribute of the file was found to predict the label: no interval of an AUC is "
        f"entirely above {SHORTCUT_AUC}."
    )
