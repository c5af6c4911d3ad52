"""Download data sets from Kaggle by kagglehub and lay them out as {split}/{class}."""

import csv
import errno
import hashlib
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from dfd_utils.config import CLASSES, DATA_DIR, SPLITS, UserError
from dfd_utils.data.image_io import is_image_name
from dfd_utils.data.scan import CLASS_NAMES, SPLIT_NAMES

MARKER = "dataset.json"  # marks a complete data set
UNPACK_LIMIT = 3  # times the published size: a larger archive is not unpacked
FAILURES = {  # by the status of Kaggle's response
    None: "Kaggle cannot be reached: check the network and run again",
    404: "Kaggle has no such data set (404): look for its new name",
    401: "Kaggle refuses access (401): renew or remove the token (KAGGLE_API_TOKEN, ~/.kaggle)",
}
FAILURES[403] = FAILURES[401].replace("401", "403")
SPACE_REMEDY = "free some space, or set DFD_DATA_DIR to a folder on another disk"


@dataclass(frozen=True)
class KaggleDataset:
    """A data set on Kaggle; `counts` are the published (Real, Fake) per split, or of "all"."""

    handle: str
    gigabytes: float  # unpacked, approximately; the archive is assumed to be as large
    counts: dict[str, tuple[int, int]]
    by_source_video: bool = False  # it has no splits: make them from metadata.csv


DATASETS = {
    "openforensics": KaggleDataset(
        "manjilkarki/deepfake-and-real-images",
        2.0,
        {"Train": (70_000, 70_000), "Validation": (19_800, 19_600), "Test": (5_413, 5_492)},
    ),
    "stylegan-140k": KaggleDataset(
        "xhlulu/140k-real-and-fake-faces",
        4.1,
        {"Train": (50_000, 50_000), "Validation": (10_000, 10_000), "Test": (10_000, 10_000)},
    ),
    "dfdc-faces": KaggleDataset(
        "dagnelies/deepfake-faces", 0.5, {"all": (16_293, 79_341)}, by_source_video=True
    ),
}


def download(name: str = "openforensics", folder: str | Path | None = None) -> Path:
    """Download a data set from Kaggle unless it is complete, lay it out and return its folder.

    The images in `folder/{Train,Validation,Test}/{Real,Fake}` are hard links to kagglehub's cache
    if the disk allows them, else symbolic links, else copies.

    Args:
        name: a key of DATASETS.
        folder: None: DATA_DIR/name. kagglehub's cache is next to it, or at KAGGLEHUB_CACHE.

    Raises:
        UserError: one line with the problem and the remedy; no partial data set remains.
    """
    if name not in DATASETS:
        raise UserError(f"unknown data set '{name}': choose from {', '.join(DATASETS)}")
    dataset = DATASETS[name]
    folder = Path(os.path.abspath(folder or DATA_DIR / name))
    if _is_laid_out(folder, name):
        return folder
    cache = Path(os.path.abspath(os.environ.get("KAGGLEHUB_CACHE") or folder.parent / ".kagglehub"))
    try:
        downloads = cache / "datasets" / dataset.handle
        _check_space(downloads, dataset)
        with _kagglehub_cache(cache):
            source = _fetch(downloads, dataset)
        targets = _by_source_video(source) if dataset.by_source_video else _by_folder(source)
        counts = _lay_out(targets, folder, {"name": name, "kaggle": dataset.handle})
    except OSError as error:
        reason = f"{error.filename or folder}: {error.strerror or error}"
        raise UserError(f"cannot write {reason}; {SPACE_REMEDY}") from error
    _warn_of_counts(name, counts)
    return folder


@contextmanager
def _kagglehub_cache(folder: Path) -> Iterator[None]:
    before = os.environ.get("KAGGLEHUB_CACHE", "")
    os.environ["KAGGLEHUB_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ["KAGGLEHUB_CACHE"] = before
        if not before:
            del os.environ["KAGGLEHUB_CACHE"]


def _is_laid_out(folder: Path, name: str) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        marker = dict(json.loads((folder / MARKER).read_text()))
    except (OSError, ValueError, TypeError):
        marker = {}
    if marker.get("name") != name:
        raise UserError(f"{folder} does not contain {name}: move it or choose another folder")
    for target, count in marker["counts"].items():
        names = os.listdir(folder / target) if (folder / target).is_dir() else []
        if len(names) < count or not (folder / target / names[0]).exists():
            raise UserError(f"{folder / target} has lost images: remove {folder} and run again")
    return True


def _check_space(downloads: Path, dataset: KaggleDataset) -> None:
    attached = "KAGGLE_KERNEL_RUN_TYPE" in os.environ  # a Kaggle notebook: nothing to download
    if attached or any(downloads.glob("*.complete")):
        return
    disk = next(parent for parent in downloads.parents if parent.exists())
    # The archive and its unpacked images are on the disk together.
    needed, free = 2e9 * dataset.gigabytes - _archive_size(downloads), shutil.disk_usage(disk).free
    if free < needed:
        space = f"{needed / 1e9:.1f} GB, {disk} has {free / 1e9:.1f} GB free"
        raise UserError(f"{dataset.handle} needs {space}; {SPACE_REMEDY}")


def _archive_size(downloads: Path) -> int:
    return sum(path.stat().st_size for path in downloads.glob("*.archive"))


def _fetch(downloads: Path, dataset: KaggleDataset) -> Path:
    """Return kagglehub's folder of the data set; download and unpack it if necessary."""
    import kagglehub
    from kagglehub import http_resolver
    from requests.exceptions import RequestException

    # kagglehub unpacks whatever it receives, and keeps a damaged archive forever.
    http_resolver._extract_archive = partial(_unpack, limit=UNPACK_LIMIT * 1e9 * dataset.gigabytes)
    by_hand = f"or download it from kaggle.com/datasets/{dataset.handle} and pass --data DIR"
    while True:
        before = _archive_size(downloads)
        try:
            return Path(kagglehub.dataset_download(dataset.handle))
        except RequestException as error:
            status = getattr(error.response, "status_code", None)
            if status is None and _archive_size(downloads) > before:
                continue  # the connection was lost: kagglehub continues where it stopped
            message = FAILURES.get(status, f"Kaggle responds with {status}: try again later")
            raise UserError(f"{message}, {by_hand}") from error
        except (UserError, OSError):
            raise
        except Exception as error:  # kagglehub's own: md5 of the archive, credentials, mounting
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"kagglehub failed ({reason}): try again, {by_hand}") from error


def _unpack(archive: str, folder: str, limit: float) -> None:
    """Unpack a zip file of at most `limit` bytes of content completely, or not at all."""
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed process
    try:
        with zipfile.ZipFile(archive) as members:
            size = sum(member.file_size for member in members.infolist())
            if size > limit:
                raise ValueError(f"it would unpack to {size / 1e9:.1f} GB")
            print(f"Unpacking {len(members.infolist()):,} files", file=sys.stderr)
            members.extractall(folder)  # removes ".." and roots from names, creates no links
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if full or not isinstance(error, Exception):
            raise  # the archive is not the cause
        os.remove(archive)
        text = f"the archive from Kaggle is damaged and was removed ({error}): run again"
        raise UserError(text) from error


def _by_folder(source: Path) -> Iterator[tuple[Path, str]]:
    """Yield files with their targets, by the names of their folders at any depth and case."""
    for root, _, names in os.walk(source):
        parts = [part.lower() for part in Path(root).relative_to(source).parts]
        splits = [SPLIT_NAMES[part] for part in parts if part in SPLIT_NAMES]
        labels = [CLASS_NAMES[part] for part in parts if part in CLASS_NAMES]
        if splits and labels and "__macosx" not in parts:
            target = f"{splits[-1]}/{labels[-1]}"
            yield from ((Path(root, name), f"{target}/{name}") for name in sorted(names))


def _by_source_video(source: Path) -> Iterator[tuple[Path, str]]:
    """Yield faces of videos with their targets: a real video and all its fakes share a split."""
    if not (tables := sorted(source.rglob("metadata.csv"))):
        raise UserError(f"{source} contains no metadata.csv: the data set on Kaggle has changed")
    images = {path.stem: path for path in source.rglob("*.jpg")}
    with open(tables[0], newline="") as file:
        for row in csv.DictReader(file):
            try:
                image = images.get(Path(row["videoname"]).stem)
                label = CLASS_NAMES[row["label"].lower()]
                video = row["original"] or row["videoname"]
            except KeyError as error:
                raise UserError(f"{tables[0]}: no column or unknown label {error}") from error
            if image:
                yield image, f"{split_of_video(video)}/{label}/{image.name}"


def split_of_video(name: str) -> str:
    """Return the split of a source video, by a hash of its name: 80 %, 10 % and 10 %."""
    share = int.from_bytes(hashlib.sha256(Path(name).stem.encode()).digest()[:4]) / 2**32
    return "Train" if share < 0.8 else "Validation" if share < 0.9 else "Test"


def _lay_out(targets: Iterator[tuple[Path, str]], folder: Path, marker: dict) -> dict[str, int]:
    """Create `folder`, which appears only when complete; return image counts per "split/class"."""
    hidden = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(hidden, ignore_errors=True)
    counts = {f"{split}/{name}": 0 for split in SPLITS for name in CLASSES}
    try:
        for target in counts:
            (hidden / target).mkdir(parents=True)
        for file, target in tqdm(targets, desc="Laying out", unit="img", disable=None):
            if is_image_name(file.name) and not file.is_symlink():
                _link(file, hidden / target)
                counts[target.rpartition("/")[0]] += 1
        if empty := [target for target, count in counts.items() if not count]:
            raise UserError(f"{marker['kaggle']} contains no images for {', '.join(empty)}")
        (hidden / MARKER).write_text(json.dumps(marker | {"counts": counts}, indent=2) + "\n")
        hidden.rename(folder)  # may replace an empty folder
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    return counts


def _link(file: Path, target: Path) -> None:
    if target.exists():
        raise UserError(f"the archive contains two files for {'/'.join(target.parts[-3:])}")
    for link in (os.link, os.symlink):
        try:
            return link(file, target)
        except OSError:  # another disk, or a file system without links
            pass
    shutil.copyfile(file, target)


def _warn_of_counts(name: str, counts: dict[str, int]) -> None:
    for split, published in DATASETS[name].counts.items():
        for label, expected in zip(CLASSES, published, strict=True):
            count = sum(counts[f"{s}/{label}"] for s in SPLITS if split in (s, "all"))
            if count != expected:
                text = f"{split}/{label} has {count:,} images, but {expected:,} were published"
                print(f"warning: {name}: {text}", file=sys.stderr)
