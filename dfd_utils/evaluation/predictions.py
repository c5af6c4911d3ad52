"""Files of predictions: `path,label,score`."""

from pathlib import Path

import pandas as pd

from dfd_utils.config import UserError

COLUMNS = ["path", "label", "score"]


def read_predictions(path: str | Path) -> pd.DataFrame:
    """Return the predictions in a CSV file: path (text), label (0 or 1), score (0..1).

    Raises:
        UserError: missing or unreadable file, missing column, no row, a path twice, a bad value.
    """
    try:  # all as text: an image may be named "NA", and float() reads every bit of a score
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; `dfd evaluate` writes it") from error
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise UserError(f"{path}: not a readable CSV file ({error})") from error
    if missing := [column for column in COLUMNS if column not in frame]:
        raise UserError(f"{path}: column {', '.join(missing)} is missing")
    if frame.empty:
        raise UserError(f"{path}: contains no predictions")
    frame = frame[COLUMNS].reset_index(drop=True)
    label, score = (pd.to_numeric(frame[name], errors="coerce") for name in COLUMNS[1:])
    bad = ~(label.isin((0, 1)) & score.between(0, 1))
    if bad.any():
        row = ",".join(map(str, frame[bad].iloc[0]))
        raise UserError(f"{path}: label 0 or 1 and score in 0..1 expected, found '{row}'")
    if (twice := frame["path"].duplicated()).any():
        raise UserError(f"{path}: {twice.sum()} paths repeated, as {frame['path'][twice].iloc[0]}")
    return frame.assign(label=label.astype(int), score=[float(text) for text in frame["score"]])
