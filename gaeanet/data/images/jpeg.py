"""A JPEG's headers, and whether its coded data reach to its last row.

libjpeg, and so every reader built on it, fills what is missing at the end of the coded data with grey and reports
success if only an end mark follows. It warns, which `libjpeg.decode` hears; Pillow, which alone decodes the largest
pictures, does not. Most of those the kernel reads for damage. Where it cannot (several scans, no kernels), the
end is looked at: such a picture ends in exact mid-grey, which is cheap to look for; a photograph may end so too,
therefore the coded blocks of those few are counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_GREY = 128
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BASELINE, _EXTENDED = 0xC0, 0xC1
_SOS, _DHT, _DRI, _APP0, _APP14 = 0xDA, 0xC4, 0xDD, 0xE0, 0xEE


class JpegHeader(NamedTuple):
    """Size in pixels, number of colour components, and the marker of the coding (0xC0: baseline)."""

    width: int
    height: int
    components: int
    coding: int


def read_header(data: bytes) -> JpegHeader | None:
    """The frame header; None where these bytes are no JPEG or end before it."""
    for marker, start, _ in segments(data):
        if marker in _FRAMES and start + 6 <= len(data):
            height, width = (
                int.from_bytes(data[start + 1 : start + 3], "big"),
                int.from_bytes(data[start + 3 : start + 5], "big"),
            )
            return JpegHeader(width, height, data[start + 5], marker)
    return None


def tidied(data: bytes) -> bytearray:
    """The same picture without what libjpeg warns of in the segments before its coded data.

    That are bytes between two segments, a JFIF revision that it does not know and an Adobe transform that it does not
    know; it decodes as if there were none, or those that it does.
    """
    frame, header = read_header(data), bytearray(data[:2])
    for marker, start, end in segments(data):
        content = bytearray(data[start:end])
        if marker == _APP0 and content[:5] == b"JFIF\0" and len(content) > 5:
            content[5] = 1
        elif marker == _APP14 and content[:5] == b"Adobe" and len(content) > 11 and content[11] > 2:
            content[11] = 2 if frame and frame.components == 4 else 1
        header += bytes((0xFF, marker)) + data[start - 2 : start] + content
        if marker == _SOS:
            return header + data[end:]
    return bytearray(data)


def is_cut_short(data: bytes, header: JpegHeader, pixels: NDArray[np.uint8]) -> bool:
    """Whether the coded data end before the picture (3, H, W) does; known of sequential Huffman coding."""
    if header.coding not in (_BASELINE, _EXTENDED) or not (pixels[:, -1, -8:] == _GREY).all():
        return False
    try:
        return not all(coded >= needed for coded, needed in _coded_blocks(data))
    except (IndexError, KeyError, ValueError):
        return True  # tables or scans that make no sense: libjpeg made something up


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of each segment's content; of a scan, the content of its header."""
    if data[:2] != b"\xff\xd8":
        return
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            at = data.find(b"\xff", at)  # coded data, or junk between segments
            if at < 0:
                return
            continue
        marker = data[at + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == 0xD9:
            return
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, at + 4, at + 2 + length
        at += 2 + length


def _coded_blocks(data: bytes) -> Iterator[tuple[int, int]]:
    """For each scan: units (MCUs) that its data hold, and units that the picture needs."""
    tables: dict[int, list[tuple[int, int]]] = {}
    interval, frame = 0, b""
    for marker, start, end in segments(data):
        if marker in _FRAMES:
            frame = data[start:end]
        elif marker == _DRI:
            interval = int.from_bytes(data[start : start + 2], "big")
        elif marker == _DHT:
            while start < end:
                start = _read_table(data, start, tables)
        elif marker == _SOS:
            units, needed = _scan(frame, data[start:end], tables)
            coded = 0
            for part in _entropy_parts(data, end):
                coded += _count(part, units, min(interval or needed, needed - coded))
            yield coded, needed


def _read_table(data: bytes, start: int, tables: dict[int, list[tuple[int, int]]]) -> int:
    """Reads one Huffman table into a look-up by the next 16 bits: (length of the code, symbol)."""
    counts, symbols = data[start + 1 : start + 17], start + 17
    lookup: list[tuple[int, int]] = []
    for length, count in enumerate(counts, 1):
        for _ in range(count):
            lookup += [(length, data[symbols])] * (1 << (16 - length))
            symbols += 1
    tables[data[start]] = lookup + [(17, 0)] * (65536 - len(lookup))
    return symbols


def _scan(frame: bytes, scan: bytes, tables: dict[int, Any]) -> tuple[list[tuple[Any, Any]], int]:
    """The (DC, AC) tables of each block of one unit, and how many units the picture needs."""
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    factors = {frame[6 + 3 * k]: divmod(frame[7 + 3 * k], 16) for k in range(frame[5])}
    across, down = max(h for h, _ in factors.values()), max(v for _, v in factors.values())
    chosen = [(scan[1 + 2 * k], divmod(scan[2 + 2 * k], 16)) for k in range(scan[0])]
    if len(chosen) == 1:
        h, v = factors[chosen[0][0]]
        wide, high = _ceil(_ceil(width * h, across), 8), _ceil(_ceil(height * v, down), 8)
        repeats = [1]
    else:
        wide, high = _ceil(width, 8 * across), _ceil(height, 8 * down)
        repeats = [factors[component][0] * factors[component][1] for component, _ in chosen]
    pairs = [(tables[dc], tables[0x10 + ac]) for _, (dc, ac) in chosen]
    units = [pair for n, pair in zip(repeats, pairs) for _ in range(n)]
    return units, wide * high


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _entropy_parts(data: bytes, start: int) -> list[bytes]:
    """The coded data from `start` to the next segment, cut at restart marks, without stuffing."""
    end = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]").search(data, start)
    coded = data[start : end.start() if end else len(data)]
    return [part.replace(b"\xff\x00", b"\xff") for part in re.split(rb"\xff+[\xd0-\xd7]", coded)]


def _count(part: bytes, blocks: list[tuple[Any, Any]], wanted: int) -> int:
    """How many whole units, of `wanted`, are coded in `part`."""
    bits, have, used, done = 0, 0, 0, 0
    total = 8 * len(part)
    padded = part + b"\xff" * 8  # an encoder pads with ones; beyond them nothing counts
    at = 0
    while done < wanted:
        for dc, ac in blocks:
            k = 0
            while k < 64:
                while have < 32:
                    bits = ((bits << 8) | (padded[at] if at < len(padded) else 0xFF)) & 0xFFFFFFFFFFFF
                    at, have = at + 1, have + 8
                length, symbol = (ac if k else dc)[(bits >> (have - 16)) & 0xFFFF]
                if length > 16:
                    return done
                extra = symbol & 15 if k else symbol
                have -= length + extra
                used += length + extra
                if used > total:
                    return done
                if k and symbol == 0:
                    break
                k += (symbol >> 4) + 1 if k else 1
        done += 1
    return done
