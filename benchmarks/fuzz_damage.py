"""Ways to damage bytes at random, any bytes and JPEGs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from gaeanet.data.images.jpeg import segments

_ODD_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63, 2**64 - 1)
_FRAMES = range(0xC0, 0xD0)


def damaged(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """A copy of `data` with one to eight things changed."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        chance.choice(_WAYS)(changed, others, chance)
    return bytes(changed)


def _place(data: bytearray, chance: random.Random) -> int:
    """Heads are where sizes are, and half of the damage."""
    return chance.randrange(min(len(data), 200) if chance.random() < 0.5 else len(data)) if data else 0


def _flip(data: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    if data:
        data[_place(data, chance)] ^= 1 << chance.randrange(8)


def _set(data: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    if data:
        data[_place(data, chance)] = chance.randrange(256)


def _number(data: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    at, size = _place(data, chance), chance.choice((1, 2, 4, 8))
    value = chance.choice(_ODD_NUMBERS) % 256**size
    data[at : at + size] = value.to_bytes(size, chance.choice(("big", "little")))


def _digits(data: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    """Numbers written as text: sizes in tar headers, JSON, tables."""
    places = [k for k, byte in enumerate(data) if 48 <= byte < 58]
    if places:
        at = chance.choice(places)
        data[at : at + 1] = chance.choice((b"-", b".", b"9", b"0", b"7", b"99999999999999999999", b"1e999", b"null"))


def _insert(data: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    at = _place(data, chance)
    data[at:at] = chance.randbytes(chance.choice((1, 2, 4, 512)))


def _remove(data: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    at = _place(data, chance)
    del data[at : at + chance.choice((1, 2, 4, 64, 512))]


def _repeat(data: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    at = _place(data, chance)
    part = data[at : at + chance.choice((1, 16, 512))]
    data[at:at] = part * chance.choice((1, 2, 30))


def _cut(data: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    del data[_place(data, chance) :]


def _zeros(data: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    at, count = _place(data, chance), chance.choice((4, 64, 512))
    data[at : at + count] = bytes(len(data[at : at + count]))


def _splice(data: bytearray, others: Sequence[bytes], chance: random.Random) -> None:
    other, at = chance.choice(others), _place(data, chance)
    begin = chance.randrange(len(other) + 1)
    data[at:] = other[begin:]


_Way = Callable[[bytearray, Sequence[bytes], random.Random], None]
_WAYS: tuple[_Way, ...] = (_flip, _set, _number, _digits, _insert, _remove, _repeat, _cut, _zeros, _splice)


def damaged_jpeg(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """The same, or with changes that only a JPEG has."""
    if chance.random() < 0.5:
        return damaged(data, others, chance)
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2))):
        found = list(segments(bytes(changed)))
        if not found:
            break
        way = chance.choice(_JPEG_WAYS)
        way(changed, found, chance)
    return bytes(changed) if chance.random() < 0.7 else damaged(bytes(changed), others, chance)


Segment = tuple[int, int, int]


def _frame(data: bytearray, found: list[Segment], chance: random.Random) -> None:
    """Precision, height, width, number of components, sampling factors, tables."""
    for marker, start, end in found:
        if marker in _FRAMES and marker not in (0xC4, 0xC8, 0xCC) and end <= len(data) and end - start > 8:
            at = chance.choice((start, start + 1, start + 3, start + 5, *range(start + 6, end)))
            if at in (start + 1, start + 3):
                size = chance.choice((0, 1, 2, 7, 8, 9, 16, 17, 255, 8192, 32768, 65500, 65535))
                data[at : at + 2] = size.to_bytes(2, "big")
            else:
                data[at] = chance.choice((0, 1, 2, 3, 4, 8, 12, 16, 0x11, 0x12, 0x21, 0x22, 0x41, 0x44, 0xFF))


def _coding(data: bytearray, found: list[Segment], chance: random.Random) -> None:
    """Another kind of frame: extended, progressive, lossless, arithmetic."""
    for marker, start, _ in found:
        if marker in _FRAMES and marker not in (0xC4, 0xC8, 0xCC):
            data[start - 3] = chance.choice(tuple(_FRAMES))


def _length(data: bytearray, found: list[Segment], chance: random.Random) -> None:
    _, start, end = chance.choice(found)
    length = min(max(0, chance.choice((0, 1, 2, 3, end - start + 1, end - start + 3, 32768, 65535))), 65535)
    data[start - 2 : start] = length.to_bytes(2, "big")


def _inside(data: bytearray, found: list[Segment], chance: random.Random) -> None:
    """A byte of a table."""
    _, start, end = chance.choice(found)
    at = chance.randrange(start, max(start + 1, min(end, start + 40)))
    if at < len(data):
        data[at] = chance.randrange(256)


def _order(data: bytearray, found: list[Segment], chance: random.Random) -> None:
    """A segment twice, nowhere, or at another place."""
    _, start, end = chance.choice(found)
    part, way = data[start - 4 : end], chance.randrange(3)
    if way:
        del data[start - 4 : end]
    if way != 1:
        _, other, _ = chance.choice(found)
        data[other - 4 : other - 4] = part


def _restarts(data: bytearray, found: list[Segment], chance: random.Random) -> None:
    """An interval that was not there, or a mark amid the data."""
    _, start, end = found[-1]
    if chance.random() < 0.5:
        data[start - 4 : start - 4] = b"\xff\xdd\0\4" + chance.choice((0, 1, 2, 3, 65535)).to_bytes(2, "big")
    else:
        at = chance.randrange(min(end, len(data)), len(data) + 1)
        data[at:at] = bytes((0xFF, chance.choice((0x00, 0xD0, 0xD1, 0xD7, 0xD8, 0xD9, 0xDA, 0xFF))))


_JPEG_WAYS: tuple[Callable[[bytearray, list[Segment], random.Random], None], ...] = (
    _frame,
    _frame,
    _coding,
    _length,
    _inside,
    _inside,
    _order,
    _restarts,
    _restarts,
)
