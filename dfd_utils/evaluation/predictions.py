"""Files of predictions: `path,label,score` and, if `dfd evaluate` wrote them, `logit`."""

from pathlib import Path

import numpy as np
import pandas as pd

from dfd_utils.config import UserError
from dfd_utils.runtime.files import printable

COLUMNS = ["path", "label", "score"]


def read_predictions(path: str | Path) -> pd.DataFrame:
    """Return the predictions in a CSV file: path (text), label (0 or 1), score (0..1), any logit.

    Raises:
        UserError: missing or unreadable file, missing column, no row, a path twice, a bad value.
    """
    try:  # all as text: an image may be named "NA", and float() reads every bit of a score
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; `dfd evaluate` writes it") from error
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a readable CSV file ({reason})") from error
    if missing := [column for column in COLUMNS if column not in frame]:
        raise UserError(f"{path}: column {', '.join(missing)} is missing")
    if frame.empty:
        raise UserError(f"{path}: contains no predictions")
    exact = [name for name in ("score", "logit") if name in frame]
    frame = frame[["path", "label", *exact]].reset_index(drop=True)
    numbers = frame.drop(columns="path").apply(pd.to_numeric, errors="coerce")
    good = numbers["label"].isin((0, 1)) & numbers["score"].between(0, 1)
    good &= np.isfinite(numbers).all(axis=1)
    if not good.all():
        row = printable(",".join(map(str, frame[~good].iloc[0])))
        raise UserError(
            f"{path}: label 0 or 1, score in 0..1 and, if there is one, a finite logit expected, "
            f"found '{row}'"
        )
    if (twice := frame["path"].duplicated()).any():
        raise UserError(f"{path}: {twice.sum()} paths repeated, as {frame['path'][twice].iloc[0]}")
    frame[exact] = frame[exact].map(float)
    return frame.assign(label=numbers["label"].astype(int))
