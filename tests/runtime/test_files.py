"""Atomic writes, JSON, hashes and durations."""

import math

import pytest

from dfd_utils.config import UserError
from dfd_utils.runtime.files import (
    content_hash,
    format_duration,
    printable,
    read_json,
    write_atomic,
    write_json,
)


def test_control_characters_are_printed_as_escapes():
    text = "\x1b[31mred\nline\u202egpj.exe é漢😀 \udcff"
    assert printable(text) == r"\x1b[31mred\nline\u202egpj.exe é漢😀 " + "\udcff"


def test_text_and_bytes_are_written_into_new_folders(tmp_path):
    assert write_atomic(tmp_path / "new" / "a.txt", "\u00e4\n").read_bytes() == "\u00e4\n".encode()
    assert write_atomic(tmp_path / "new" / "a.txt", b"\0\xff").read_bytes() == b"\0\xff"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_a_failed_write_keeps_the_earlier_file(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "a.txt", "before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match=r"a\.txt.*No space left"):
        write_atomic(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_below_a_file_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_atomic(tmp_path / "file" / "a.txt", "text")


def test_json_is_strict_and_checked(tmp_path):
    path = write_json(tmp_path / "a.json", {"a": 1.5, "b": None})
    assert read_json(path, ["a", "b"], "") == {"a": 1.5, "b": None}
    for number in (math.nan, math.inf):
        with pytest.raises(ValueError, match="JSON compliant"):
            write_json(path, {"a": number})
    assert read_json(path, ["a"], "")["a"] == 1.5, "the earlier file is kept"
    for text, keys in (("{", ()), ("[]", ()), ('{"a": 1}', ["b"]), ("\udcff", ())):
        path.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(UserError, match=r"a\.json: damaged; remove it"):
            read_json(path, keys, "remove it")
    with pytest.raises(UserError, match=r"b\.json: missing; train first"):
        read_json(tmp_path / "b.json", (), "train first")


def test_hashes_depend_on_contents_order_and_boundaries():
    parts = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("c", "ab"), ()]
    hashes = {content_hash(*part) for part in parts}
    assert len(hashes) == len(parts)
    assert all(len(text) == 16 and int(text, 16) >= 0 for text in hashes)
    assert content_hash("ab", "c") == content_hash(b"ab", b"c")
    assert content_hash("no\udcff") == content_hash(b"no\xff"), "any file name has a hash"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations_as_text(seconds, text):
    assert format_duration(seconds) == text
