"""The embedded sample: drawn portraits and simulated face swaps, in the Kaggle layout.

A Fake is a portrait whose inner face comes from another portrait, with the artefacts of mediocre
face swaps. It passes through the same camera and JPEG compression as a Real, so that the classes
differ only in the swap.
"""

import glob
import json
import multiprocessing
import os
import shutil
import time
import uuid
from concurrent.futures import ProcessPoolExecutor
from copy import copy
from math import copysign, exp
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dfd_utils.config import CLASSES, SPLITS, UserError
from dfd_utils.data.sample.face import SIZE, noise
from dfd_utils.data.sample.portrait import PERSON, SCENE, Portrait, draw, photograph

VERSION = 2  # raise it whenever the same seed gives other images
MARKER = "sample.json"
MAX_PROCESSES = 8  # each imports torch
ABANDONED = 86400  # seconds after which an unfinished sample is removed: its process was killed
NOTE = "Drawn portraits and simulated swaps: they test the software, not real deepfakes."
# The strength of each artefact of a swap; a pair is the range of a uniform distribution.
SOURCE_SIZE = (32, 60)  # pixels per side at which the source is drawn; smaller is blurrier
COLOUR_LEFT = (0.05, 0.28)  # share of the colour difference that remains after adaptation
COLOUR_BIAS = (0.94, 1.0, 1.07)  # red, green, blue: swapped faces have colder colours
COLOUR_CAST = 0.07  # largest error of the adapted colour per channel, in log units
BRIGHTNESS_CAST = 0.16  # largest error of the adapted brightness, in log units
CONTRAST_LEFT = (0.65, 0.95)  # spread of the swapped face, as a share of the target's
LIGHT_TURN = (0.5, 1.4)  # radians between the light of the source and of the target
MISPLACED = 0.035  # shift of the source's face, standard deviation in units of half a head
FEATHER = (0.06, 0.18)  # width of the blend, as a share of the mask
SEAM = (0.02, 0.16)  # relative darkening of the middle of the blend
JPEG_QUALITY = (85, 95)  # of both classes
# Test is degraded, like the Kaggle data's Test.
DEGRADED_SHARE = 0.8
DEGRADED_SEVERITY = (1, 3)
DEGRADED_BY = ("jpeg", "blur", "noise", "pixelate", "grey", "brightness", "contrast", "hue")
# What a swap keeps of the target.
KEPT = ("hair_length", "hairline", "hair_slant", "hair_volume", "hair_shade", "baldness")
KEPT += ("beard", "glasses", "face_width", "jaw")


def mask_path(image_path: Path) -> Path:
    """Return the file of a Fake's mask: 8-bit PNG, 256 x 256, 255 in the swapped region, else 0.

    Raises:
        ValueError: `image_path` is not in a Fake folder; Real images have no mask.
    """
    image_path = Path(image_path)
    if image_path.parent.name != "Fake":
        raise ValueError(f"{image_path} is not in a Fake folder: only Fake images have masks")
    split = image_path.parent.parent
    return split.parent / "masks" / split.name / f"{image_path.stem}.png"


def is_sample(folder: Path) -> bool:
    """Return whether `folder` contains an embedded sample, by its marker `sample.json`."""
    return _marker(Path(folder)).get("name") == "embedded sample"


def make_sample(
    folder: Path, per_class: int = 600, seed: int = 0, processes: int | None = None
) -> Path:
    """Write the sample to `folder` and return it; keep a complete sample of the same settings.

    Writes `folder/{Train,Validation,Test}/{Real,Fake}/NNNN.jpg` (RGB, 256 x 256), the masks of
    the Fakes (see `mask_path`) and `sample.json`: `per_class` images per class in Train, a quarter
    of it (at least 2) in Validation and in Test. The bytes of an image depend only on `seed`, its
    split, class and number. `processes`: None for one per core, at most 8, or
    one for a small sample.

    Raises:
        UserError: `per_class` is below 1; `folder` has other contents or cannot be written.
    """
    folder = Path(folder)
    if per_class < 1:
        raise UserError(f"per_class is {per_class}: give at least 1")
    counts = dict.fromkeys(SPLITS, max(2, per_class // 4)) | {"Train": per_class}
    marker = {"name": "embedded sample", "note": NOTE, "seed": seed, "per_class": per_class}
    marker |= {"version": VERSION, "counts": counts}
    try:
        if _is_complete(folder, marker):
            return folder
        for path in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):
            if time.time() - path.stat().st_mtime > ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
        # Another process may make the same sample: the first that is complete is kept.
        partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.partial"
        try:
            _write_images(partial, counts, seed, processes)
            (partial / MARKER).write_text(json.dumps(marker, indent=2) + "\n")
            partial.rename(folder)
        except OSError:
            if not _is_complete(folder, marker):
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {folder} ({reason}): choose another folder") from error
    return folder


def _marker(folder: Path) -> dict:
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return {}
    return marker if isinstance(marker, dict) else {}


def _is_complete(folder: Path, marker: dict) -> bool:
    """Return True for the same sample, False for an empty folder; else raise a `UserError`."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    remedy = "remove it or choose another folder"
    existing = _marker(folder)
    if not is_sample(folder):
        raise UserError(f"{folder} contains other files than a sample: choose another folder")
    for key in ("version", "seed", "per_class"):
        if existing.get(key) != marker[key]:
            text = f"a sample of {key} {existing.get(key)}, not {marker[key]}"
            raise UserError(f"{folder} contains {text}: {remedy}")
    for split, count in marker["counts"].items():
        for name in CLASSES:
            if len(list((folder / split / name).glob("*.jpg"))) != count:
                raise UserError(
                    f"{folder / split / name} does not contain {count} images: {remedy}"
                )
    return True


def _write_images(folder: Path, counts: dict, seed: int, processes: int | None) -> None:
    for split in SPLITS:
        for name in (*(f"{split}/{name}" for name in CLASSES), f"masks/{split}"):
            (folder / name).mkdir(parents=True)
    jobs = [
        (folder, seed, split, label, index)
        for split in reversed(SPLITS)  # Test first: its images take longest
        for index in range(counts[split])
        for label in range(len(CLASSES))
    ]
    if processes is None:  # starting workers takes longer than drawing a hundred images
        processes = 1 if len(jobs) < 100 else min(MAX_PROCESSES, os.cpu_count() or 1)
    progress = {"total": len(jobs), "desc": "Drawing the sample", "unit": "img", "disable": None}
    if processes == 1:
        for _ in tqdm(map(_write_image, jobs), **progress):
            pass
        return
    # Not from a server, which would keep torch in memory for the rest of the run.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, _use_one_thread) as pool:
        for _ in tqdm(pool.map(_write_image, jobs, chunksize=8), **progress):
            pass


def _use_one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _write_image(job: tuple[Path, int, str, int, int]) -> None:
    folder, seed, split, label, index = job
    rng = np.random.default_rng(np.random.SeedSequence([seed, SPLITS.index(split), label, index]))
    target = Portrait(draw(PERSON, rng), draw(SCENE, rng), rng)
    image = target.image()
    if label:
        alpha = _swap_mask(target, rng)
        image += alpha * (_source_face(target, image, alpha, rng) - image)
        image *= 1 - rng.uniform(*SEAM) * 4 * alpha * (1 - alpha)
        mask = Image.fromarray(np.where(alpha >= 0.5, 255, 0).astype(np.uint8))
        mask.save(folder / "masks" / split / f"{index:04d}.png")
    pixels = photograph(image, rng)
    quality = int(rng.integers(JPEG_QUALITY[0], JPEG_QUALITY[1] + 1))
    if split == "Test":
        pixels = _degrade(pixels, rng)
    path = folder / split / CLASSES[label] / f"{index:04d}.jpg"
    Image.fromarray(pixels.transpose(1, 2, 0)).save(path, quality=quality)


def _swap_mask(target: Portrait, rng: np.random.Generator) -> np.ndarray:
    """Return the opacity of the swapped face: an uneven soft oval from brows to chin."""
    wide, high = rng.uniform(0.46, 0.58), rng.uniform(0.5, 0.6)
    x, y = target.face_x / np.float32(wide), (target.face_y - 0.28) / np.float32(high)
    inside = 1 - np.sqrt(x**2 + y**2) + 0.09 * noise(rng, 5)
    soft = np.clip(inside / np.float32(rng.uniform(*FEATHER)) + 0.5, 0, 1)
    return soft * np.clip((0.97 - target.radius) * 30, 0, 1)


def _source_face(
    target: Portrait, image: np.ndarray, alpha: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Paint another person in nearly the target's pose, at lower resolution, colours adapted."""
    person, scene = draw(PERSON, rng), copy(target.scene)
    for name in KEPT:
        setattr(person, name, getattr(target.person, name))
    person.skin = min(max(target.person.skin + rng.uniform(-0.2, 0.2), 0), 1)
    scene.light_x -= copysign(rng.uniform(*LIGHT_TURN), scene.light_x)
    scene.centre_x += rng.normal(0, MISPLACED) * scene.scale
    scene.centre_y += rng.normal(0, MISPLACED) * scene.scale
    scene.scale *= exp(rng.normal(0, MISPLACED))
    scene.roll += rng.normal(0, MISPLACED)
    size = int(rng.integers(*SOURCE_SIZE))
    low = Portrait(person, scene, rng, size).image()
    face = np.stack(
        [np.asarray(Image.fromarray(c).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for c in low]
    )
    left, contrast = rng.uniform(*COLOUR_LEFT), rng.uniform(*CONTRAST_LEFT)
    cast = BRIGHTNESS_CAST * rng.uniform(-1, 1) + COLOUR_CAST * rng.uniform(-1, 1, 3)
    cast = np.exp(cast) * COLOUR_BIAS
    inside = alpha > 0.5
    for channel in range(3):  # adapt mean and spread within the mask, as swap tools do
        here, there = face[channel][inside], image[channel][inside]
        goal = float(cast[channel]) * (left * here.mean() + (1 - left) * there.mean())
        face[channel] -= here.mean()
        face[channel] *= contrast * there.std() / (here.std() + 0.001)
        face[channel] += goal
    return face


def _degrade(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    import torch  # it takes seconds to import, and only Test needs it

    from dfd_utils.data.degradations import degrade

    image = torch.from_numpy(pixels)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    if rng.random() < DEGRADED_SHARE:
        for name in rng.choice(DEGRADED_BY, rng.integers(1, 3), replace=False):
            severity = int(rng.integers(DEGRADED_SEVERITY[0], DEGRADED_SEVERITY[1] + 1))
            image = degrade(image, str(name), severity, generator)
    return image.numpy()
