"""Pictures in, labels and probabilities out."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Barrier

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from dfd_utils import explain, transforms
from dfd_utils.config import BUILD_DIR, CLASSES, UserError
from dfd_utils.dataset import data_loader, scoring_batch_size
from dfd_utils.face_finder import shows_face
from dfd_utils.history import validation_auc
from dfd_utils.models import Detector, find_models, fused, load_model
from dfd_utils.pictures import find_pictures, read_picture
from dfd_utils.precision import make_accelerator

FEW = 64  # pictures that are not worth worker processes
SEARCHED = 1000  # pictures; of more, faces are not searched for: it takes longer than scoring
COLUMNS = ("path", "label", "score", "threshold", "error", "warning")
TINY = 0.5  # warned of: a shorter side below this share of the model's image size


class PicturesDataset(Dataset):
    """Pictures by path; what cannot be read comes as a black image with its error.

    An item: uint8 `[3, S, S]`, its position, error, warning ("" where there is none). A batch's
    items are read by `threads`, if there are any.
    """

    def __init__(
        self,
        files: Sequence[str],
        image_size: int,
        find_faces: bool = True,
        threads: ThreadPoolExecutor | None = None,
    ):
        self.files, self.image_size, self.find_faces = files, image_size, find_faces
        self.transform = transforms.eval_transform(image_size)
        self.threads = threads

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str, str]:
        file, size = self.files[index], self.image_size
        try:
            picture = read_picture(file)
        except UserError as error:
            black = torch.zeros(3, size, size, dtype=torch.uint8)
            return black, index, str(error).removeprefix(f"{file}: "), ""
        resized = self.transform(picture)
        return resized, index, "", "; ".join(self._warnings(picture, resized))

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int, str, str]]:
        if self.threads is None:
            return self._read(indices)
        shares = np.array_split(indices, torch.get_num_threads())
        return [item for items in self.threads.map(self._read, shares) for item in items]

    def _read(self, indices: Sequence[int]) -> list[tuple[Tensor, int, str, str]]:
        return [self[int(index)] for index in indices]

    def _warnings(self, picture: Tensor, resized: Tensor) -> Iterator[str]:
        height, width = picture.shape[1:]
        if min(height, width) < TINY * self.image_size:
            yield f"tiny: {width} x {height} pixels, the model looks at {self.image_size}"
        if self.find_faces and not shows_face(resized):
            yield "no face found: the score may mean nothing"


def predict(
    paths: Iterable[str | Path] | str | Path, model: str | Path | None = None
) -> pd.DataFrame:
    """Call every picture Real or Fake; return a row an input, in the order given.

    Columns: path; label ("Real" or "Fake"); score (calibrated probability of Fake, 0 to 1);
    threshold (Fake from this score on, chosen on Validation); error (None, or why there is no
    label); warning (None, or why the score deserves less trust).

    Args:
        paths: files, folders and patterns, see `find_pictures`.
        model: a model, see `choose_model`.

    Raises:
        UserError: no such model.
    """
    paths = [paths] if isinstance(paths, str | Path) else paths
    model = choose_model(model)
    rows = stream(list(find_pictures(paths)), *load_model(model))
    return pd.DataFrame(list(rows), columns=COLUMNS, dtype=object)


def stream(
    files: Sequence[str],
    network: Detector,
    description: dict,
    start: int = 0,
    explanations: Path | None = None,
    progress: bool = False,
    find_faces: bool | None = None,
) -> Iterator[dict]:
    """Yield a row (`COLUMNS`) for each of `files` from position `start` on, in order.

    Memory does not grow with their number. In several processes each scores a share, and every
    one yields all rows.

    Args:
        files: pictures.
        network: a model in eval mode.
        description: what `load_model` returns beside it.
        start: how many of `files` to pass over.
        explanations: a folder; gets `<position>_<name>.png` for each picture, with the heat map.
        progress: show a bar on standard error, if that is a terminal.
        find_faces: warn where no face is found; None: if there are no more than `SEARCHED` files.
    """
    if start == len(files):
        return
    if find_faces is None:
        find_faces = len(files) <= SEARCHED
    accelerator = make_accelerator(description["precision"])
    on_gpu = accelerator.device.type == "cuda"
    threads = None if on_gpu else _reading_threads()
    dataset = PicturesDataset(files[start:], description["image_size"], find_faces, threads)
    workers = min(8, torch.get_num_threads()) if on_gpu and len(dataset) > FEW else 0
    at_once = scoring_batch_size(accelerator.device, description["image_size"])
    loader = data_loader(dataset, at_once, num_workers=workers)
    loader = accelerator.prepare_data_loader(loader)
    network = network.to(accelerator.device)
    scorer = fused(network)
    bar = tqdm(
        total=len(files), initial=start, unit="img", desc="Predicting",
        disable=None if progress and accelerator.is_main_process else True,
    )  # fmt: skip
    with bar, threads or nullcontext():
        for images, positions, errors, warnings in loader:
            with torch.inference_mode(), accelerator.autocast():
                logits = scorer(images).double()
            names = [(start + int(i), files[start + int(i)]) for i in positions]
            scores = torch.sigmoid((logits[:, 1] - logits[:, 0]) / description["temperature"])
            rows = [
                _row(name, *told, description["threshold"])
                for (_, name), *told in zip(names, scores.tolist(), errors, warnings, strict=True)
            ]
            if explanations:
                maps = explain.heat_maps(network, description, images)
                for (position, name), row, heat in zip(names, rows, maps, strict=True):
                    if row["error"] is None:
                        out = explanations / f"{position + 1:06}_{Path(name).stem}.png"
                        explain.save_overlay(read_picture(name), heat, out)
            if accelerator.num_processes > 1:
                rows = accelerator.gather_for_metrics(rows, use_gather_object=True)
            yield from rows
            bar.update(len(rows))


def _reading_threads() -> ThreadPoolExecutor:
    """Return as many threads as torch computes with, in each of which it computes with one.

    They read a batch while the model waits. Read beside it, by other processes, each picture took
    more from the model than its own time: a thread of the model that is held up holds up all.
    """
    number = torch.get_num_threads()
    threads = ThreadPoolExecutor(number, initializer=torch.set_num_threads, initargs=(1,))
    all_started = Barrier(number)
    list(threads.map(lambda _: all_started.wait(), range(number)))
    torch.set_num_threads(number)  # for threads that others start: each call sets that, too
    return threads


def _row(path: str, score: float, error: str, warning: str, threshold: float) -> dict:
    if error:
        told = (None, None, threshold, error, None)
    else:
        told = (CLASSES[int(score >= threshold)], score, threshold, None, warning or None)
    return dict(zip(COLUMNS, (path, *told), strict=True))


def choose_model(model: str | Path | None = None) -> Path:
    """Return the model's folder or file that `model` means.

    A model's own folder or file stands for itself; a folder of models for the one of its newest
    run with the highest AUC on Validation; None for the best of all runs' newest.

    Raises:
        UserError: nothing was trained yet.
    """
    path = BUILD_DIR / "runs" if model is None else Path(model)
    if (path / "model.json").is_file() or path.is_file():
        return path
    folders = find_models(path)
    newest = max(folders, key=lambda folder: (folder / "model.json").stat().st_mtime).parent
    return max((f for f in folders if f.parent == newest), key=validation_auc)
