"""The audit of a data set: unreadable files, duplicates, leakage, shortcuts, shift."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dfd_utils.config import CLASSES, SPLITS, UserError
from dfd_utils.data import duplicates
from dfd_utils.data.image_io import describe_skipped
from dfd_utils.data.image_statistics import COLOURS, STATISTICS, TRANSPARENCY, VERSION
from dfd_utils.data.scan import measure_cached
from dfd_utils.runtime.files import (
    content_hash,
    is_intact,
    read_json,
    with_checksum,
    write_atomic,
    write_json,
)

if TYPE_CHECKING:
    from dfd_utils.data.folder import DataFolder

FILES = ("files.csv", "unreadable.csv", "duplicates.csv", "exclude.csv", "summary.json")
EFFECT_SIZES = ("negligible", "small", "medium", "large")  # Romano et al. (2006), Cliff's delta
FILE_ATTRIBUTES = {
    "file size": ["bytes"],
    "dimensions": ["width", "height"],
    "JPEG tables": ["tables", "jpeg_quality"],
    "brightness": ["brightness", "contrast"],
    "mean colour": list(COLOURS),
}
FILE_ATTRIBUTES["all attributes"] = [
    column for columns in FILE_ATTRIBUTES.values() for column in columns
]
FILE_ATTRIBUTES["transparency"] = [TRANSPARENCY]  # last: left out where all images are opaque
SHORTCUT_AUC = 0.55  # the audit warns if the whole interval is above
MAX_CLASSIFIED = 10_000  # images per split: enough for an interval of width 0.02


def audit(data: DataFolder, out: Path | None = None, processes: int | None = None) -> dict:
    """Audit a data set and return the summary, which is also written to `out`.

    Writes files.csv (a row per image), unreadable.csv, duplicates.csv, exclude.csv and
    summary.json; paths are relative to the data set, labels are 0 = Real and 1 = Fake. Unchanged
    files are not audited again by the same rules, and an unchanged image is never read again.

    Args:
        data: the data set.
        out: None: `data.audit_folder`.
        processes: workers that decode images; None: one per core, or one for a small data set.

    Raises:
        UserError: there is no image; `out` cannot be written.
    """
    folder, listing, out = data.path, data.images, Path(out or data.audit_folder)
    if listing.empty:
        data.check_layout()
    if (summary := find_summary(data, out)) is not None:
        return summary
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be made ({error.strerror}); choose another folder"
        ) from error

    records = measure_cached(folder, listing, out / "cache.npz", processes)
    readable = records["error"] == b""
    files = _files_table(listing, records)
    good = files[readable].reset_index(drop=True)
    pairs, clusters = duplicates.find_duplicates(records[readable])
    for side in ("a", "b"):
        pairs[f"path_{side}"] = good.path.to_numpy()[pairs[side]]
    for kind in ("split", "label"):
        values = good[kind].to_numpy()
        pairs[f"across_{kind}s"] = values[pairs.a] != values[pairs.b]
    reasons = duplicates.build_exclusion_list(good, clusters)
    unreadable = pd.DataFrame({"path": files.path, "error": np.char.decode(records["error"])})
    unreadable = unreadable[~readable]
    exclude = pd.DataFrame({"path": good.path, "reason": reasons})[reasons != ""]
    broken = unreadable.assign(reason="unreadable: " + unreadable.error)[["path", "reason"]]
    exclude = pd.concat([exclude, broken]).sort_values("path")
    contents = files["path"] + "\0" + files["sha256"]
    summary = {"version": VERSION, "state": _state(data), "data": data.name}
    summary |= {"fingerprint": content_hash(*contents)}
    summary |= _summarise(files, good, pairs, clusters, exclude, data.skipped)
    columns = ["path_a", "path_b", "kind", "match", "across_splits", "across_labels", "hamming"]
    columns += ["correlation", "difference", "cluster"]
    tables = (files, unreadable, pairs[columns], exclude)
    for name, table in zip(FILES[:4], tables, strict=True):
        write_atomic(out / name, table.to_csv(index=False, float_format="%.6g"))
    summary = with_checksum(summary | {"tables": _hash_tables(out)})
    write_json(out / "summary.json", summary)  # last: it marks the audit as complete
    return summary


def find_summary(data: DataFolder, out: Path) -> dict | None:
    """Return the summary in `out` if it, its tables, the files and the rules are unchanged."""
    if not all((out / name).is_file() for name in FILES):
        return None
    try:
        summary = read_json(out / "summary.json", ("state", "tables"), "delete it")
    except UserError:  # damaged, or of an earlier version
        return None
    if not is_intact(summary) or summary["tables"] != _hash_tables(out):
        return None
    return summary if summary["state"] == _state(data) else None


def _hash_tables(out: Path) -> str:
    return content_hash(*((out / name).read_bytes() for name in FILES[:4]))


def _state(data: DataFolder) -> str:
    """Return a hash of all that an audit depends on: its rules, the files' sizes and times."""
    rules = [VERSION, duplicates.RULES, FILE_ATTRIBUTES, SHORTCUT_AUC, MAX_CLASSIFIED]
    paths, attributes = "\n".join(data.images["path"]), data.images[["bytes", "mtime", "ctime"]]
    numbers = attributes.to_numpy(np.int64).tobytes()
    return content_hash(str(data.path.resolve()), repr(rules), paths, numbers)


def _files_table(listing: pd.DataFrame, records: np.ndarray) -> pd.DataFrame:
    """Return the table files.csv, with empty measurements for unreadable files."""
    table = listing.drop(columns=["mtime", "ctime"])
    for name in ("width", "height"):
        table[name] = pd.array(records[name], "Int64")
    for name in ("format", "mode", "sha256", "jpeg_tables"):
        table[name] = np.char.decode(records[name])
    for name in (*STATISTICS, *COLOURS, TRANSPARENCY):
        table[name] = records[name].astype(np.float64)
    table.loc[records["error"] != b"", ["width", "height", *STATISTICS, *COLOURS, TRANSPARENCY]] = (
        np.nan
    )
    return table


def _by_split_and_class(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    counts = table.groupby(["split", "label"]).size()
    return {
        split: {name: int(counts.get((split, label), 0)) for label, name in enumerate(CLASSES)}
        for split in SPLITS
    }


def _summarise(
    files: pd.DataFrame,
    good: pd.DataFrame,
    pairs: pd.DataFrame,
    clusters: np.ndarray,
    exclude: pd.DataFrame,
    skipped: Counter,
) -> dict:
    size = good.width.astype(str) + " x " + good.height.astype(str)
    pair_counts = {}
    for kind in ("exact", "near"):
        table = pairs[pairs.kind == kind]
        across = {k: int(table[k].sum()) for k in ("across_splits", "across_labels")}
        pair_counts[kind] = {"pairs": len(table)} | across
    inside = {s: set(clusters[good.split == s]) for s in SPLITS}
    leakage, warnings = {}, []
    if line := describe_skipped(skipped):
        warnings.append(line)
    for low, high in (("Train", "Validation"), ("Train", "Test"), ("Validation", "Test")):
        shared = list(inside[low] & inside[high])
        leaks = int(((good.split == low) & np.isin(clusters, shared)).sum())
        leakage[f"{low} in {high}"] = leaks
        warnings += [f"{leaks:,} images of {low} are also in {high}"] if leaks else []
    shortcuts = find_shortcuts(good[~pd.Series(clusters).duplicated()])
    return {
        "images": len(files),
        "counts": _by_split_and_class(files),
        "skipped": dict(skipped),
        "unreadable": len(files) - len(good),
        "unreadable_files": files.path[~files.path.isin(good.path)].head(100).tolist(),
        "formats": good["format"].value_counts().to_dict(),
        "modes": good["mode"].value_counts().to_dict(),
        "not_rgb": good.path[good["mode"] != "RGB"].head(100).tolist(),
        "sizes": size.value_counts().head(20).to_dict(),
        "duplicates": pair_counts,
        "near_duplicate_rule": duplicates.RULES,
        "leakage": leakage,
        "excluded": _by_split_and_class(files[files.path.isin(exclude.path)]),
        "shortcuts": shortcuts,
        "warnings": warnings + [row["warning"] for row in shortcuts if row["warning"]],
        "shift": find_shift(good),
    }


def find_shortcuts(files: pd.DataFrame) -> list[dict]:
    """Measure how well file attributes predict the label without the image's content.

    The scores are those of a cross-validated decision tree.

    Args:
        files: rows of files.csv, without duplicates (which could be in two folds).

    Returns:
        a row per split and set of attributes: split, attributes, images, auc with low and high
        (95 %; None for fewer than 50 images of a class), and warning (empty for none).
    """
    # Imported here: an audit that is already done should not cost the seconds that these take.
    from sklearn.model_selection import cross_val_predict
    from sklearn.tree import DecisionTreeClassifier

    from dfd_utils.stats.paired_tests import delong_interval

    codes = files.assign(tables=pd.factorize(files.jpeg_tables, sort=True)[0])
    rows = []
    for split in SPLITS:
        table = codes[codes.split == split]
        if len(table) > MAX_CLASSIFIED:
            table = table.sample(MAX_CLASSIFIED, random_state=0)
        labels = table.label.to_numpy()
        for name, columns in FILE_ATTRIBUTES.items():
            if name == "transparency" and not files[TRANSPARENCY].any():
                continue
            row = {"split": split, "attributes": name, "images": len(table)}
            row |= {"auc": None, "low": None, "high": None, "warning": ""}
            rows.append(row)
            if np.bincount(labels, minlength=2).min() < 50:
                continue
            model = DecisionTreeClassifier(max_depth=6, min_samples_leaf=20, random_state=0)
            values = table[columns].to_numpy(np.float64)
            scores = cross_val_predict(model, values, labels, cv=5, method="predict_proba")[:, 1]
            row["auc"], row["low"], row["high"] = delong_interval(labels, scores)
            if row["low"] > SHORTCUT_AUC:
                row["warning"] = (
                    f"{split}: {name} alone predicts the label with an AUC of {row['auc']:.2f} "
                    f"({row['low']:.2f} to {row['high']:.2f}); a model may learn that instead"
                )
    return rows


def find_shift(files: pd.DataFrame) -> list[dict]:
    """Compare each degradation statistic of Test and Validation with that of Train.

    Args:
        files: the rows of files.csv of readable images.

    Returns:
        a row per split, class (All, Real, Fake) and statistic: the medians of the split and of
        Train, and Cliff's delta in [-1, 1] (positive: higher than in Train) with its size in words.
    """
    from scipy.stats import rankdata

    rows = []
    for split in ("Validation", "Test"):
        for label, name in ((None, "All"), *enumerate(CLASSES)):
            table = files if label is None else files[files.label == label]
            for statistic in STATISTICS:
                here = table[statistic][table.split == split].dropna()
                there = table[statistic][table.split == "Train"].dropna()
                row = {"split": split, "class": name, "statistic": statistic}
                if len(here) and len(there):
                    rank = rankdata(np.concatenate([here, there]))[: len(here)].mean()
                    delta = float((2 * rank - len(here) - 1) / len(there) - 1)
                    size = EFFECT_SIZES[np.searchsorted((0.147, 0.33, 0.474), abs(delta))]
                    row |= {"median": float(here.median()), "train_median": float(there.median())}
                    rows.append(row | {"cliffs_delta": delta, "size": size})
    return rows
