"""Classify a user's images: labels, probabilities and warnings."""

import math
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

from dfd_utils.config import CLASSES, UserError
from dfd_utils.data.dataset import read_image
from dfd_utils.data.image_io import expand_paths
from dfd_utils.data.loader import data_loader, inference_batch_size
from dfd_utils.inference.face_check import has_face
from dfd_utils.models.gradcam import grad_cam, save_overlay
from dfd_utils.models.scoring import apply_temperature, logit_margins
from dfd_utils.models.trained import TrainedModel, choose_model
from dfd_utils.runtime.accelerator import make_accelerator

COLUMNS = ("path", "label", "score", "threshold", "error", "warning")
MIN_FILES_FOR_WORKERS = 65  # with fewer, starting worker processes takes longer than it saves
FACE_CHECK_LIMIT = 1000  # by default not for more images: it takes longer than scoring them
MAX_HEAT_MAP_NAME = 40  # characters of the image's name in the heat map's file name
MIN_SIDE_RATIO = 0.5  # of the model's image size; a shorter side gets a warning


class UntrustedImages(Dataset):
    """Images of unknown origin; one that cannot be read is a black image with an error.

    An item is the model's input, its index, its error and its warning ("" for none).
    """

    def __init__(
        self,
        files: Sequence[str],
        model: TrainedModel,
        find_faces: bool = True,
        threads: ThreadPoolExecutor | None = None,
    ):
        self.files, self.find_faces = files, find_faces
        self.transform, self.image_size = model.transform, model.description.image_size
        self.threads = threads

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str, str]:
        file = self.files[index]
        try:
            image = read_image(file)
        except UserError as error:
            black = torch.zeros(3, 32, 32, dtype=torch.uint8)
            return self.transform(black), index, str(error).removeprefix(f"{file}: "), ""
        return self.transform(image), index, "", "; ".join(self._warnings(image))

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int, str, str]]:
        if self.threads is None:
            return self._read(indices)
        shares = np.array_split(indices, torch.get_num_threads())
        return [item for items in self.threads.map(self._read, shares) for item in items]

    def _read(self, indices: Sequence[int]) -> list[tuple[Tensor, int, str, str]]:
        return [self[int(index)] for index in indices]

    def _warnings(self, image: Tensor) -> Iterator[str]:
        height, width = image.shape[1:]
        if min(height, width) < MIN_SIDE_RATIO * self.image_size:
            yield f"tiny: {width} x {height} pixels, the model's input has {self.image_size}"
        if self.find_faces and not has_face(image):
            yield "no face found: the score may mean nothing"


def predict(
    paths: Iterable[str | Path] | str | Path, model: TrainedModel | str | Path | None = None
) -> pd.DataFrame:
    """Classify images as Real or Fake; return a row per input, in the order given.

    Columns: path; label ("Real" or "Fake"); score (calibrated probability of Fake, 0 to 1);
    threshold (Fake from this score on, chosen on Validation); error (None, or why there is no
    label); warning (None, or why the score is less reliable).

    Args:
        paths: files, folders and patterns; see `expand_paths`.
        model: see `choose_model`.

    Raises:
        UserError: no such model.
    """
    paths = [paths] if isinstance(paths, str | Path) else paths
    rows = iter_predictions(list(expand_paths(paths)), choose_model(model))
    return pd.DataFrame(list(rows), columns=COLUMNS, dtype=object)


def iter_predictions(
    files: Sequence[str],
    model: TrainedModel,
    start: int = 0,
    explanations: Path | None = None,
    progress: bool = False,
    find_faces: bool | None = None,
) -> Iterator[dict]:
    """Yield a row (`COLUMNS`) for each of `files` from index `start` on, in order.

    Memory does not grow with their number. With several processes, each scores a share of the
    images and yields all rows.

    Args:
        files: image files.
        model: the model.
        start: how many of `files` to skip.
        explanations: a folder that receives each image's heat map as `<number>_<name>.png`.
        progress: show a progress bar on standard error, if that is a terminal.
        find_faces: warn if no face is found; None: if there are at most `FACE_CHECK_LIMIT` files.
    """
    if explanations and not model.has_heat_maps:
        raise UserError(f"{model.folder}: {model.title} has no heat maps; leave out --explain")
    if start == len(files):
        return
    if find_faces is None:
        find_faces = len(files) <= FACE_CHECK_LIMIT
    described, network = model.description, model.load()
    accelerator = make_accelerator(described.precision)
    on_gpu = accelerator.device.type == "cuda"
    threads = None if on_gpu else _reading_threads()
    dataset = UntrustedImages(files[start:], model, find_faces, threads)
    parallel = on_gpu and len(dataset) >= MIN_FILES_FOR_WORKERS
    workers = min(8, torch.get_num_threads()) if parallel else 0
    batch_size = inference_batch_size(
        accelerator.device, described.image_size, accelerator.num_processes
    )
    loader = accelerator.prepare_data_loader(data_loader(dataset, batch_size, num_workers=workers))
    scorer = network.to(accelerator.device).fuse_batchnorm()
    bar = tqdm(
        total=len(files), initial=start, unit="img", desc="Predicting",
        disable=None if progress and accelerator.is_main_process else True,
    )  # fmt: skip
    with bar, threads or nullcontext():
        for images, indices, errors, warnings in loader:
            with torch.inference_mode(), accelerator.autocast():
                logits = scorer(images).float().cpu().numpy()
            scores = apply_temperature(logit_margins(logits), described.temperature).tolist()
            numbers = [start + int(index) for index in indices]
            rows = [
                _row(files[number], *result, described.threshold)
                for number, *result in zip(numbers, scores, errors, warnings, strict=True)
            ]
            own_rows = rows
            if accelerator.num_processes > 1:
                rows = accelerator.gather_for_metrics(rows, use_gather_object=True)
            yield from rows
            bar.update(len(rows))
            if explanations:  # last: a heat map that fails does not cost the scores
                _write_heat_maps(model, numbers, own_rows, explanations)


def _write_heat_maps(
    model: TrainedModel, numbers: list[int], rows: list[dict], folder: Path
) -> None:
    scored = [index for index, row in enumerate(rows) if row["error"] is None]
    maps = grad_cam(model, [Path(rows[index]["path"]) for index in scored]) if scored else ()
    for index, heat in zip(scored, maps, strict=True):
        path = Path(rows[index]["path"])
        name = f"{numbers[index] + 1:06}_{path.stem[:MAX_HEAT_MAP_NAME]}.png"
        save_overlay(read_image(path), heat, folder / name)


def _reading_threads() -> ThreadPoolExecutor:
    """Return as many single-threaded threads as torch computes with.

    They read a batch while the network waits. Worker processes that read at the same time as the
    network computes slow it down by more than they save: all its threads wait for the slowest.
    """
    count = torch.get_num_threads()
    threads = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    all_started = Barrier(count)
    list(threads.map(lambda _: all_started.wait(), range(count)))
    torch.set_num_threads(count)  # each call above also set the default of new threads
    return threads


def _row(path: str, score: float, error: str, warning: str, threshold: float) -> dict:
    if not error and not math.isfinite(score):
        error = "the model's output is not a number"
    if error:
        result = (None, None, threshold, error, None)
    else:
        result = (CLASSES[int(score >= threshold)], score, threshold, None, warning or None)
    return dict(zip(COLUMNS, (path, *result), strict=True))
