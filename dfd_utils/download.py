"""Data sets from Kaggle: fetch through kagglehub, check, lay out as {split}/{class}."""

import csv
import errno
import hashlib
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from tqdm import tqdm

from dfd_utils.config import CLASSES, DATA_DIR, SPLITS, UserError
from dfd_utils.dataset import IMAGE_SUFFIXES

MARKER = "dataset.json"  # lies in a data set that is whole
UNPACK_LIMIT = 3  # times the published size; beyond it an archive is not unpacked
SPLIT_NAMES = {"train": "Train", "training": "Train", "test": "Test", "testing": "Test"}
SPLIT_NAMES |= {"valid": "Validation", "val": "Validation", "validation": "Validation"}
CLASS_NAMES = {name.lower(): name for name in CLASSES}

REFUSED = "Kaggle refuses access: renew or remove the token in KAGGLE_API_TOKEN or ~/.kaggle"
FAILURES = {  # by the status of Kaggle's answer
    None: "Kaggle cannot be reached: check the network and run again",
    401: f"{REFUSED} (401)",
    403: f"{REFUSED} (403)",
    404: "Kaggle has no such data set (404): look for its new name",
}
SPACE_REMEDY = "free some, or set DFD_DATA_DIR to a folder on a larger disk"

Placed = Iterator[tuple[Path, str]]  # a file of the archive, and its place in the layout


@dataclass(frozen=True)
class KaggleDataset:
    """A data set on Kaggle: `counts` as published, by "split/class" or by class alone."""

    handle: str
    gigabytes: float  # unpacked, about; the archive is taken to be as large
    counts: dict[str, int]
    by_source_video: bool = False  # has no splits: they are made from metadata.csv


DATASETS = {
    "openforensics": KaggleDataset(
        "manjilkarki/deepfake-and-real-images",
        2.0,
        {"Train/Real": 70_000, "Validation/Real": 19_800, "Test/Real": 5_413}
        | {"Train/Fake": 70_000, "Validation/Fake": 19_600, "Test/Fake": 5_492},
    ),
    "stylegan-140k": KaggleDataset(
        "xhlulu/140k-real-and-fake-faces",
        4.1,
        {"Train/Real": 50_000, "Validation/Real": 10_000, "Test/Real": 10_000}
        | {"Train/Fake": 50_000, "Validation/Fake": 10_000, "Test/Fake": 10_000},
    ),
    "dfdc-faces": KaggleDataset(
        "dagnelies/deepfake-faces", 0.5, {"Real": 16_293, "Fake": 79_341}, by_source_video=True
    ),
}


def download(name: str = "openforensics", folder: str | Path | None = None) -> Path:
    """Fetch a data set from Kaggle, lay it out and return its folder; returns at once if there.

    The images become `folder/{Train,Validation,Test}/{Real,Fake}/*` as hard links to kagglehub's
    cache where the disk allows, else as symbolic links, else as copies.

    Args:
        name: a key of DATASETS.
        folder: None: DATA_DIR/name. kagglehub's cache lies beside it unless KAGGLEHUB_CACHE is set.

    Raises:
        UserError: in one line, what went wrong and the remedy; no half data set is left behind.
    """
    if name not in DATASETS:
        raise UserError(f"unknown data set '{name}': choose from {', '.join(DATASETS)}")
    dataset = DATASETS[name]
    folder = Path(os.path.abspath(folder or DATA_DIR / name))
    if _is_laid_out(folder, name):
        return folder
    cache = Path(os.environ.get("KAGGLEHUB_CACHE") or folder.parent / ".kagglehub")
    try:
        _check_space(cache, dataset)
        with mock.patch.dict(os.environ, {"KAGGLEHUB_CACHE": str(cache)}):
            source = _fetch(dataset, cache)
        placed = _by_source_video(source) if dataset.by_source_video else _by_folder(source)
        counts = _lay_out(placed, folder, {"name": name, "kaggle": dataset.handle})
    except OSError as error:
        remedy = f"; {SPACE_REMEDY}" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        message = f"cannot write {error.filename or folder}: {error.strerror or error}{remedy}"
        raise UserError(message) from error
    _warn_of_counts(name, counts)
    return folder


def _is_laid_out(folder: Path, name: str) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        marker = json.loads((folder / MARKER).read_text())
        if marker["name"] == name:
            for place, count in marker["counts"].items():
                names = os.listdir(folder / place)
                if len(names) < count or not (folder / place / names[0]).exists():
                    raise UserError(f"{folder / place} has lost images: remove {folder}, run again")
            return True
    except (OSError, ValueError, LookupError, TypeError):
        pass
    raise UserError(f"{folder} holds something else than {name}: move it or choose another folder")


def _check_space(cache: Path, dataset: KaggleDataset) -> None:
    """While unpacking, archive and images lie side by side."""
    here = cache / "datasets" / dataset.handle
    attached = "KAGGLE_KERNEL_RUN_TYPE" in os.environ  # a Kaggle notebook's input: nothing to fetch
    if attached or any(here.glob("*.complete")):
        return
    disk = next(parent for parent in (cache, *cache.parents) if parent.exists())
    needed, free = 2e9 * dataset.gigabytes - _archive_size(here), shutil.disk_usage(disk).free
    if free < needed:
        space = f"{needed / 1e9:.1f} GB, {disk} has {free / 1e9:.1f} GB free"
        raise UserError(f"{dataset.handle} needs {space}; {SPACE_REMEDY}")


def _archive_size(here: Path) -> int:
    return sum(path.stat().st_size for path in here.glob("*.archive"))


def _fetch(dataset: KaggleDataset, cache: Path) -> Path:
    """Return kagglehub's folder of the data set, downloaded and unpacked where it is not yet."""
    import kagglehub
    from kagglehub import http_resolver
    from requests.exceptions import RequestException

    def unpack(archive: str, folder: str) -> None:
        _unpack(Path(archive), Path(folder), UNPACK_LIMIT * 1e9 * dataset.gigabytes)

    here = cache / "datasets" / dataset.handle
    by_hand = f"or get it by hand from kaggle.com/datasets/{dataset.handle} and pass --data DIR"
    while True:
        before = _archive_size(here)
        try:
            # kagglehub would unpack whatever it is sent, and keep a damaged archive for ever.
            with mock.patch.object(http_resolver, "_extract_archive", unpack):
                return Path(kagglehub.dataset_download(dataset.handle))
        except RequestException as error:
            status = getattr(error.response, "status_code", None)
            if status is None and _archive_size(here) > before:
                continue  # the connection was cut: kagglehub takes it up where it broke off
            message = FAILURES.get(status, f"Kaggle answers {status}: try again later")
            raise UserError(f"{message}, {by_hand}") from error
        except (UserError, OSError):
            raise
        except Exception as error:  # kagglehub's own: md5 of the archive, credentials, mounting
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"kagglehub failed ({reason}): try again, {by_hand}") from error


def _unpack(archive: Path, folder: Path, limit: float) -> None:
    """Unpack a zip file of at most `limit` bytes of content; all of it or nothing.

    `extractall` drops "..", drive and root from member names and makes no links, so that nothing
    lands outside `folder`.
    """
    shutil.rmtree(folder, ignore_errors=True)  # of an unpacking that was killed
    try:
        with zipfile.ZipFile(archive) as members:
            size = sum(member.file_size for member in members.infolist())
            if size > limit:
                raise ValueError(f"it would unpack to {size / 1e9:.1f} GB")
            print(f"Unpacking {len(members.infolist()):,} files", file=sys.stderr)
            members.extractall(folder)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, (OSError, KeyboardInterrupt)):
            raise  # the archive is good
        archive.unlink()
        message = f"the archive from Kaggle is damaged and was removed ({error}): run again"
        raise UserError(message) from error


def _by_folder(source: Path) -> Placed:
    """Place images by the names of the folders they lie in, whatever nesting and letter case."""
    for root, _, names in os.walk(source):
        parts = [part.lower() for part in Path(root).relative_to(source).parts]
        split = next((SPLIT_NAMES[part] for part in reversed(parts) if part in SPLIT_NAMES), None)
        label = next((CLASS_NAMES[part] for part in reversed(parts) if part in CLASS_NAMES), None)
        if split and label and "__macosx" not in parts:
            yield from ((Path(root, name), f"{split}/{label}/{name}") for name in sorted(names))


def _by_source_video(source: Path) -> Placed:
    """Place faces of videos by metadata.csv: a real video and all its fakes share a split."""
    tables = sorted(source.rglob("metadata.csv"))
    if not tables:
        raise UserError(f"{source} holds no metadata.csv: the data set on Kaggle has changed")
    images = {path.stem: path for path in source.rglob("*.jpg")}
    with open(tables[0], newline="") as file:
        for row in csv.DictReader(file):
            try:
                image = images.get(Path(row["videoname"]).stem)
                label, video = (
                    CLASS_NAMES[row["label"].lower()],
                    row["original"] or row["videoname"],
                )
            except KeyError as error:
                raise UserError(f"{tables[0]}: no column or unknown label {error}") from error
            if image:
                yield image, f"{split_of_video(video)}/{label}/{image.name}"


def split_of_video(name: str) -> str:
    """Return the split of a source video: by a hash of its name, 80, 10 and 10 in 100."""
    share = int.from_bytes(hashlib.sha256(Path(name).stem.encode()).digest()[:4]) / 2**32
    return "Train" if share < 0.8 else "Validation" if share < 0.9 else "Test"


def _lay_out(placed: Placed, folder: Path, marker: dict) -> dict[str, int]:
    """Make `folder`, which appears only when it is whole; return images by "split/class"."""
    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    counts = {f"{split}/{name}": 0 for split in SPLITS for name in CLASSES}
    try:
        for place in counts:
            (partial / place).mkdir(parents=True)
        for file, place in tqdm(placed, desc="Laying out", unit="img", disable=None):
            hidden = file.is_symlink() or file.name.startswith(".")
            if not hidden and file.suffix.lower() in IMAGE_SUFFIXES:
                _link(file, partial / place)
                counts[place.rpartition("/")[0]] += 1
        empty = [place for place, count in counts.items() if not count]
        if empty:
            raise UserError(f"{marker['kaggle']} holds no images for {', '.join(empty)}")
        (partial / MARKER).write_text(json.dumps(marker | {"counts": counts}, indent=2) + "\n")
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return counts


def _link(file: Path, place: Path) -> None:
    if place.exists():
        raise UserError(f"the archive holds two files for {'/'.join(place.parts[-3:])}")
    for make in (os.link, os.symlink, shutil.copyfile):
        try:
            make(file, place)
            break
        except OSError:  # another disk, or a file system without links
            if make is shutil.copyfile:
                raise


def _warn_of_counts(name: str, counts: dict[str, int]) -> None:
    for place, expected in DATASETS[name].counts.items():
        found = sum(n for key, n in counts.items() if f"/{key}".endswith(f"/{place}"))
        if found != expected:
            text = f"{place} has {found:,} images where {expected:,} were published"
            print(f"warning: {name}: {text}", file=sys.stderr)
