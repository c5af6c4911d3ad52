"""What a data set really is: unreadable files, duplicates, leakage, shortcuts, shift."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.model_selection import cross_val_predict
from sklearn.tree import DecisionTreeClassifier

from dfd_utils import duplicates
from dfd_utils.compare import delong_interval
from dfd_utils.config import CLASSES, SPLITS, UserError, read_json, write_whole
from dfd_utils.inventory import list_images, measure_all
from dfd_utils.measure import COLOURS, HASH_SIZE, STATISTICS, VERSION

FILES = ("files.csv", "unreadable.csv", "duplicates.csv", "exclude.csv", "summary.json")

EFFECT_SIZES = ("negligible", "small", "medium", "large")  # Romano et al. (2006), Cliff's delta

TRAITS = {
    "file size": ["bytes"],
    "dimensions": ["width", "height"],
    "JPEG tables": ["tables", "jpeg_quality"],
    "brightness": ["brightness", "contrast"],
    "mean colour": list(COLOURS),
}
TRAITS["all traits"] = [column for columns in TRAITS.values() for column in columns]
SHORTCUT_AUC = 0.55  # warned of where the interval lies above it
MOST_CLASSIFIED = 10_000  # images a split: enough for an interval of 0.02


def audit(folder: str | Path, out: str | Path, processes: int | None = None) -> dict:
    """Audit the data set in `folder` and return the summary, which is also written to `out`.

    Writes files.csv (a row an image), unreadable.csv, duplicates.csv, exclude.csv and
    summary.json; paths are relative to `folder`, labels 0 = Real and 1 = Fake. An image is
    measured once: the next audit into `out` measures what is new or changed, by path, size, time.

    Args:
        folder: holds {Train,Validation,Test}/{Real,Fake}.
        out: is made where it is missing.
        processes: workers that decode images; None: all cores, one for a small data set.

    Raises:
        UserError: a split or a class is missing or empty (named), or `out` cannot be written.
    """
    folder, out = Path(os.path.abspath(folder)), Path(out)
    listing = list_images(folder)
    state = hashlib.sha256(f"{VERSION} {folder.name}".encode())
    for column in ("path", "bytes", "mtime"):
        state.update("\n".join(map(str, listing[column])).encode(errors="surrogateescape"))
    state = state.hexdigest()
    if all((out / name).is_file() for name in FILES):
        summary = read_json(out / "summary.json", (), "delete it")
        if summary.get("state") == state:
            return summary
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be made ({error.strerror}); choose another folder"
        ) from error

    records = measure_all(folder, listing, out / "cache.npz", processes)
    readable = records["error"] == b""
    files = _files_table(listing, records)
    good = files[readable].reset_index(drop=True)
    pairs, clusters = duplicates.find_duplicates(records[readable])
    for side in ("a", "b"):
        pairs[f"path_{side}"] = good.path.to_numpy()[pairs[side]]
    for kind in ("split", "label"):
        values = good[kind].to_numpy()
        pairs[f"across_{kind}s"] = values[pairs.a] != values[pairs.b]
    reasons = duplicates.find_exclusions(good, clusters)
    unreadable = pd.DataFrame({"path": files.path, "error": np.char.decode(records["error"])})
    unreadable = unreadable[~readable]
    exclude = pd.DataFrame({"path": good.path, "reason": reasons})[reasons != ""]
    broken = unreadable.assign(reason="unreadable: " + unreadable.error)[["path", "reason"]]
    exclude = pd.concat([exclude, broken]).sort_values("path")
    summary = {"version": VERSION, "state": state, "data": folder.name}
    summary |= _summarise(files, good, pairs, clusters, exclude)
    columns = ["path_a", "path_b", "kind", "match", "across_splits", "across_labels", "hamming"]
    columns += ["correlation", "difference", "cluster"]
    tables = (files, unreadable, pairs[columns], exclude)
    for name, table in zip(FILES[:4], tables, strict=True):
        write_whole(out / name, table.to_csv(index=False, float_format="%.6g"))
    # The summary comes last: with it, and only then, the audit counts as done.
    write_whole(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _files_table(listing: pd.DataFrame, records: np.ndarray) -> pd.DataFrame:
    """Return files.csv: what an unreadable file lacks is empty."""
    table = listing.drop(columns="mtime")
    for name in ("width", "height"):
        table[name] = pd.array(records[name], "Int64")
    for name in ("format", "mode", "sha256", "jpeg_tables"):
        table[name] = np.char.decode(records[name])
    for name in (*STATISTICS, *COLOURS):
        table[name] = records[name].astype(np.float64)
    table.loc[records["error"] != b"", ["width", "height", *STATISTICS, *COLOURS]] = np.nan
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
) -> dict:
    size = good.width.astype(str) + " x " + good.height.astype(str)
    found = {}
    for kind in ("exact", "near"):
        some = pairs[pairs.kind == kind]
        found[kind] = {"pairs": len(some)}
        found[kind] |= {f"across_{k}": int(some[f"across_{k}"].sum()) for k in ("splits", "labels")}
    inside = {s: set(clusters[good.split == s]) for s in SPLITS}
    leakage, warnings = {}, []
    for low, high in (("Train", "Validation"), ("Train", "Test"), ("Validation", "Test")):
        shared = list(inside[low] & inside[high])
        leaks = int(((good.split == low) & np.isin(clusters, shared)).sum())
        leakage[f"{low} in {high}"] = leaks
        warnings += [f"{leaks:,} images of {low} stand in {high} too"] if leaks else []
    shortcuts = find_shortcuts(good[~pd.Series(clusters).duplicated()])
    return {
        "images": len(files),
        "counts": _by_split_and_class(files),
        "unreadable": len(files) - len(good),
        "unreadable_files": files.path[~files.path.isin(good.path)].head(100).tolist(),
        "formats": good["format"].value_counts().to_dict(),
        "modes": good["mode"].value_counts().to_dict(),
        "not_rgb": good.path[good["mode"] != "RGB"].head(100).tolist(),
        "sizes": size.value_counts().head(20).to_dict(),
        "duplicates": found,
        "near_duplicate_rule": {
            "hash_bits": HASH_SIZE**2,
            "hamming_radius": duplicates.RADIUS,
            "min_correlation": duplicates.MIN_CORRELATION,
            "max_block_difference": duplicates.MAX_BLOCK_DIFFERENCE,
        },
        "leakage": leakage,
        "excluded": _by_split_and_class(files[files.path.isin(exclude.path)]),
        "shortcuts": shortcuts,
        "warnings": warnings + [row["warning"] for row in shortcuts if row["warning"]],
        "shift": find_shift(good),
    }


def find_shortcuts(files: pd.DataFrame) -> list[dict]:
    """Say how well traits of the file alone tell the label, by a cross-validated decision tree.

    Args:
        files: rows of files.csv, without copies (which would stand in two folds).

    Returns:
        a row a split and set of traits: split, traits, images, auc, low, high (95 %; None for
        fewer than 50 images of a class) and warning, empty where there is none.
    """
    codes = files.assign(tables=pd.factorize(files.jpeg_tables, sort=True)[0])
    rows = []
    for split in SPLITS:
        table = codes[codes.split == split]
        if len(table) > MOST_CLASSIFIED:
            table = table.sample(MOST_CLASSIFIED, random_state=0)
        labels = table.label.to_numpy()
        for traits, columns in TRAITS.items():
            row = {"split": split, "traits": traits, "images": len(table)}
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
                    f"{split}: {traits} alone tells Real from Fake with an AUC of {row['auc']:.2f} "
                    f"({row['low']:.2f} to {row['high']:.2f}); a model may learn that instead"
                )
    return rows


def find_shift(files: pd.DataFrame) -> list[dict]:
    """Compare each degradation statistic of Test and of Validation with that of Train.

    Args:
        files: rows of files.csv of readable images.

    Returns:
        a row a split, class (All, Real, Fake) and statistic: the medians of the split and of Train,
        and Cliff's delta in [-1, 1] (positive: higher than in Train) with its size in words.
    """
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
