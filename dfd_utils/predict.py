"""Images and folders in, labels and probabilities out."""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch
from torch.utils.data import Dataset

from dfd_utils import transforms
from dfd_utils.config import BUILD_DIR, CLASSES, UserError
from dfd_utils.dataset import data_loader, read_image
from dfd_utils.images import IMAGE_SUFFIXES
from dfd_utils.models import find_models, load_model
from dfd_utils.precision import make_accelerator

BATCH_SIZE = 64
COLUMNS = ("path", "label", "score", "threshold", "error")


class _ImageFiles(Dataset):
    """Images by path; what cannot be read comes as a black image with its error."""

    def __init__(self, paths: list[Path], image_size: int):
        self.paths, self.image_size = paths, image_size
        self.transform = transforms.eval_transform(image_size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        try:
            return self.transform(read_image(self.paths[index])), ""
        except UserError as error:
            black = torch.zeros(3, self.image_size, self.image_size, dtype=torch.uint8)
            return black, str(error).removeprefix(f"{self.paths[index]}: ")


def predict(paths: Iterable[str | Path], model: str | Path | None = None) -> pd.DataFrame:
    """Call every image Real or Fake; return a row an input, in the order given.

    Columns: path; label ("Real" or "Fake"); score (calibrated probability of Fake, 0 to 1);
    threshold (Fake from this score on, chosen on Validation); error (None, or why there is no
    label). A folder stands for the images in it and below.

    Args:
        paths: image files and folders.
        model: a model's folder or file; None takes `default_model()`.

    Raises:
        UserError: no such model.
    """
    network, description = load_model(model or default_model())
    files = [file for path in paths for file in _expanded(Path(path))]
    rows = []
    if files:
        accelerator = make_accelerator(description["precision"])
        dataset = _ImageFiles(files, description["image_size"])
        # One picture is not worth a worker process.
        workers = 0 if len(files) <= BATCH_SIZE else None
        loader = data_loader(dataset, BATCH_SIZE, num_workers=workers)
        network, loader = accelerator.prepare(network, loader)
        with torch.inference_mode():
            for images, errors in loader:
                with accelerator.autocast():
                    logits = network(images).double()
                margin = (logits[:, 1] - logits[:, 0]) / description["temperature"]
                rows += zip(torch.sigmoid(margin).tolist(), errors, strict=True)
    threshold = description["threshold"]
    table = [
        (str(path), None, None, threshold, error)
        if error
        else (str(path), CLASSES[int(score >= threshold)], score, threshold, None)
        for path, (score, error) in zip(files, rows, strict=True)
    ]
    return pd.DataFrame(table, columns=COLUMNS, dtype=object)


def default_model(runs: Path | None = None) -> Path:
    """Return the model of the newest run that did best on Validation (highest AUC).

    Raises:
        UserError: nothing was trained yet.
    """
    runs = runs or BUILD_DIR / "runs"
    folders = find_models(runs)
    newest = max(folders, key=lambda folder: (folder / "model.json").stat().st_mtime).parent
    return max((f for f in folders if f.parent == newest), key=_validation_auc)


def _validation_auc(folder: Path) -> float:
    history = folder / "history.csv"
    return pd.read_csv(history)["auc"].max() if history.is_file() else -1.0


def _expanded(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)


def as_text(table: pd.DataFrame, form: str) -> str:
    """Return predictions as "text" (a line an input), "json" (an object a line) or "csv"."""
    if form == "csv":
        return table.to_csv(index=False).rstrip("\n")
    rows = table.to_dict("records")
    if form == "json":
        return "\n".join(json.dumps(row) for row in rows)
    return "\n".join(
        f"{row['path']}: {row['error']}"
        if row["error"]
        else f"{row['path']}: {row['label']} (probability of Fake {row['score']:.3f})"
        for row in rows
    )
