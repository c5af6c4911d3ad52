"""Classify a user's images: labels, probabilities and warnings."""

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

from dfd_utils.config import UserError
from dfd_utils.data.dataset import read_image
from dfd_utils.data.image_io import expand_paths
from dfd_utils.data.loader import data_loader, inference_batch_size
from dfd_utils.inference.face_check import has_face
from dfd_utils.inference.verdict import UNSURE, VARIANTS, doubts, plain_label, with_variants
from dfd_utils.models.description import ModelDescription
from dfd_utils.models.gradcam import grad_cam, save_overlay
from dfd_utils.models.scoring import apply_temperature, logit_margins
from dfd_utils.models.trained import TrainedModel, choose_model
from dfd_utils.runtime.accelerator import make_accelerator
from dfd_utils.stats.abstention import LIMIT

COLUMNS = (
    "path", "label", "score", "threshold", "error", "warning", "score_low", "score_high"
)  # fmt: skip
MAX_FILES_FOR_VARIANTS = 64  # by default not for more images: each is scored several times
MIN_FILES_FOR_WORKERS = 65  # with fewer, starting worker processes takes longer than it saves
FACE_CHECK_LIMIT = 1000  # by default not for more images: it takes longer than scoring them
MAX_HEAT_MAP_NAME = 40  # characters of the image's name in the heat map's file name
MIN_SIDE_RATIO = 0.5  # of the model's image size; a shorter side gets a warning


class UntrustedImages(Dataset):
    """Images of unknown origin; one that cannot be read is a black image with an error.

    An item is the model's inputs `[1 + variants, …]` of the image and its variants, its index, its
    error and its warning ("" for none).
    """

    def __init__(
        self,
        files: Sequence[str],
        model: TrainedModel,
        find_faces: bool = True,
        variants: int = 0,
        threads: ThreadPoolExecutor | None = None,
    ):
        self.files, self.find_faces, self.variants = files, find_faces, variants
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
            return self._inputs(black), index, str(error).removeprefix(f"{file}: "), ""
        return self._inputs(image), index, "", "; ".join(self._warnings(image))

    def _inputs(self, image: Tensor) -> Tensor:
        versions = with_variants(image, self.variants)
        return torch.stack([self.transform(version) for version in versions])

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
    paths: Iterable[str | Path] | str | Path,
    model: TrainedModel | str | Path | None = None,
    **options: object,
) -> pd.DataFrame:
    """Classify images as Real, Fake or Unsure; return a row per input, in the order given.

    Columns: path; label; score (calibrated probability of Fake, 0 to 1); threshold (Fake from this
    score on, chosen on Validation); error (None, or why there is no label); warning (None, or why
    the label is Unsure or less reliable); score_low and score_high (of the image and its variants;
    None if no variants were scored).

    Args:
        paths: files, folders and patterns; see `expand_paths`.
        model: see `choose_model`.
        options: see `iter_predictions`.

    Raises:
        UserError: no such model.
    """
    paths = [paths] if isinstance(paths, str | Path) else paths
    rows = iter_predictions(list(expand_paths(paths)), choose_model(model), **options)
    return pd.DataFrame(list(rows), columns=COLUMNS, dtype=object)


def iter_predictions(
    files: Sequence[str],
    model: TrainedModel,
    start: int = 0,
    explanations: Path | None = None,
    progress: bool = False,
    find_faces: bool | None = None,
    variants: int | None = None,
    always_answer: bool = False,
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
        variants: how many of `verdict.VARIANTS` of each image are scored, too; None: all, if there
            are at most `MAX_FILES_FOR_VARIANTS` files and not `always_answer`.
        always_answer: "Real" or "Fake" by the threshold alone; the doubts stay in the warning.
    """
    if explanations and not model.has_heat_maps:
        raise UserError(f"{model.folder}: {model.title} has no heat maps; leave out --explain")
    if start == len(files):
        return
    if find_faces is None:
        find_faces = len(files) <= FACE_CHECK_LIMIT
    if variants is None:
        few = len(files) <= MAX_FILES_FOR_VARIANTS and not always_answer
        variants = len(VARIANTS) if few else 0
    described, network = model.description, model.load()
    accelerator = make_accelerator(described.precision)
    on_gpu = accelerator.device.type == "cuda"
    threads = None if on_gpu else _reading_threads()
    dataset = UntrustedImages(files[start:], model, find_faces, variants, threads)
    parallel = on_gpu and len(dataset) >= MIN_FILES_FOR_WORKERS
    workers = min(8, torch.get_num_threads()) if parallel else 0
    processes = accelerator.num_processes
    batch_size = inference_batch_size(accelerator.device, described.image_size, processes)
    batch_size = processes * max(1, batch_size // (processes * (1 + variants)))
    loader = accelerator.prepare_data_loader(data_loader(dataset, batch_size, num_workers=workers))
    scorer = network.to(accelerator.device).fuse_batchnorm()
    bar = tqdm(
        total=len(files), initial=start, unit="img", desc="Predicting",
        disable=None if progress and accelerator.is_main_process else True,
    )  # fmt: skip
    with bar, threads or nullcontext():
        for images, indices, errors, warnings in loader:
            with torch.inference_mode(), accelerator.autocast():
                logits = scorer(images.flatten(0, 1)).float().cpu().numpy()
            scores = apply_temperature(logit_margins(logits), described.temperature)
            scores = scores.reshape(len(images), -1)
            numbers = [start + int(index) for index in indices]
            rows = [
                _row(files[number], *result, described, always_answer)
                for number, *result in zip(numbers, scores, errors, warnings, strict=True)
            ]
            own_rows = rows
            if processes > 1:
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


def _row(
    path: str,
    scores: np.ndarray,
    error: str,
    warning: str,
    described: ModelDescription,
    always_answer: bool,
) -> dict:
    row = dict.fromkeys(COLUMNS) | {"path": path, "threshold": described.threshold}
    if not error and not np.isfinite(scores).all():
        error = "the model's output is not a number"
    if error:
        return row | {"error": error}
    reasons = doubts(described, scores)
    unsure = reasons and not always_answer
    row["label"] = UNSURE if unsure else plain_label(scores[0], described.threshold)
    row["score"] = float(scores[0])
    if len(scores) > 1:
        row |= {"score_low": float(scores.min()), "score_high": float(scores.max())}
    if described.unsure_from is None:
        reasons.append(f"more than {100 * LIMIT:.0f} % of such answers may be wrong")
    return row | {"warning": "; ".join([*reasons, *filter(None, [warning])]) or None}
