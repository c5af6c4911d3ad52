"""Damaged copies of files for the fuzzing programs, made anew from a number alone."""

import random
import zlib
from collections.abc import Callable, Sequence

EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutate(contents: Sequence[bytes], number: int) -> tuple[int, bytes]:
    """Return the index of one of the files and a damaged copy of it; the same for each `number`."""
    rng = random.Random(number)
    which = rng.randrange(len(contents))
    damaged = bytearray(contents[which])
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        rng.choice(_DAMAGES)(rng, damaged, contents)
    if damaged.startswith(b"\x89PNG") and rng.random() < 0.7:
        _repair_png(damaged)
    return which, bytes(damaged)


def _place(rng: random.Random, content: bytearray) -> int:
    """Return a position, half of the time in the first 200 bytes, where headers are."""
    end = max(len(content), 1)
    return rng.randrange(min(end, 200) if rng.random() < 0.5 else end)


def _flip_bit(rng: random.Random, content: bytearray, _: object) -> None:
    if content:
        content[_place(rng, content)] ^= 1 << rng.randrange(8)


def _set_number(rng: random.Random, content: bytearray, _: object) -> None:
    start, size = _place(rng, content), rng.choice((1, 2, 4))
    number = rng.choice(EDGES) & (256**size - 1)
    content[start : start + size] = number.to_bytes(size, rng.choice(("little", "big")))


def _set_text(rng: random.Random, content: bytearray, _: object) -> None:
    start = _place(rng, content)
    words = (b"null", b"true", b"-1", b"1e999", b"NaN", b'"', b"{}", b"[]", b"\n", b",", b"\0")
    word = rng.choice((*words, "ä\u202e".encode(), b"\xff\xfe", b"=cmd|'/c calc'!A1", b"9" * 400))
    content[start : start + rng.choice((0, 1, len(word)))] = word


def _replace_value(rng: random.Random, content: bytearray, _: object) -> None:
    """Replace what stands behind a colon or a comma: JSON and CSV stay well-formed."""
    starts = [i for i, byte in enumerate(content) if byte in b":,\n"]
    if not starts:
        return
    start = rng.choice(starts) + 1
    end = start
    while end < len(content) and content[end] not in b",}]\n":
        end += 1
    words = (
        b"null",
        b"true",
        b"-1",
        b"0",
        b"1e308",
        b"NaN",
        b'"x"',
        b"{}",
        b"[]",
        b"[1, [2]]",
        b"",
    )
    content[start:end] = rng.choice(words)


def _delete(rng: random.Random, content: bytearray, _: object) -> None:
    start = _place(rng, content)
    del content[start : start + rng.choice((1, 2, 4, 16, 64, 1000))]


def _cut(rng: random.Random, content: bytearray, _: object) -> None:
    del content[rng.randrange(len(content) + 1) :]


def _repeat(rng: random.Random, content: bytearray, _: object) -> None:
    start, size = _place(rng, content), rng.choice((1, 4, 16, 64, 1000))
    content[start:start] = content[start : start + size] * rng.choice((1, 2, 20))


def _splice(rng: random.Random, content: bytearray, contents: Sequence[bytes]) -> None:
    other = rng.choice(contents)
    if other:
        start = rng.randrange(len(other))
        content[_place(rng, content) :] = other[start:]


_DAMAGES: tuple[Callable, ...] = (
    _flip_bit, _flip_bit, _set_number, _set_text, _replace_value, _delete, _cut, _repeat, _splice,
)  # fmt: skip


def _repair_png(content: bytearray) -> None:
    """Write the right checksums into a PNG: without them its decoders look no further."""
    position = 8
    while position + 12 <= len(content):
        size = int.from_bytes(content[position : position + 4], "big")
        end = position + 8 + size
        if end + 4 > len(content):
            return
        content[end : end + 4] = zlib.crc32(content[position + 4 : end]).to_bytes(4, "big")
        position = end + 4
