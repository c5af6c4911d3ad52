"""Atomic writes, checked JSON, content hashes and durations as text."""

import hashlib
import json
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from dfd_utils.config import UserError


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Write a file under a temporary name, then rename it: no reader sees half a file.

    Raises:
        UserError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()  # it may occupy the last free bytes of the disk
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); "
            "choose another path, or set DFD_OUTPUT_DIR to a writable folder"
        ) from error
    return path


def read_json(path: Path, keys: Collection[str], remedy: str) -> dict:
    """Return the object in a JSON file, which has at least these keys.

    Raises:
        UserError: the file is missing or damaged; the message names it and the remedy.
    """
    try:
        content = json.loads(path.read_text())
        if isinstance(content, dict) and content.keys() >= set(keys):
            return content
        problem = "damaged"
    except FileNotFoundError:
        problem = "missing"
    except (OSError, ValueError):
        problem = "damaged"
    raise UserError(f"{path}: {problem}; {remedy}")


def write_json(path: Path, content: object) -> Path:
    """Write strict, indented JSON atomically; NaN and infinity raise a ValueError."""
    return write_atomic(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def with_checksum(content: dict) -> dict:
    """Return a JSON object with its hash as "checksum"."""
    content = {key: value for key, value in content.items() if key != "checksum"}
    return content | {"checksum": content_hash(json.dumps(content, sort_keys=True))}


def is_intact(content: object) -> bool:
    """Return whether a JSON object is as `with_checksum` returned it."""
    return isinstance(content, dict) and content == with_checksum(content)


def printable(text: str) -> str:
    """Return a text for a terminal: control characters, line breaks and the marks that turn the
    direction of writing are written as escapes. The bytes of a name that is not UTF-8 stay.
    """
    return "".join(
        c if c.isprintable() or "\udc80" <= c <= "\udcff" else c.encode("unicode_escape").decode()
        for c in text
    )


def content_hash(*parts: str | bytes) -> str:
    """Return a hash (16 hex digits) of the parts; moving text between parts changes it."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode(errors="surrogateescape") if isinstance(part, str) else part
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def format_duration(seconds: float) -> str:
    """Return seconds as text: "45 s", "3 min 20 s", "2 h 5 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
