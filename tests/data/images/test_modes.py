"""Mode x bit depth x transparency: each cell beside a reference that is computed by other means."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gaeanet.data.images.decode import ImageError, oddities, to_pixels

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Of PNG's colour types: grey, colour, palette, grey and alpha, colour and alpha."""
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
CELLS = [(kind, depth, clear) for kind in CHANNELS for depth in DEPTHS[kind] for clear in (False, True)]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values: np.ndarray[Any, Any], kind: int, depth: int, *extra: bytes) -> bytes:
    """A PNG, written by hand, of values (H, W, channels)."""
    height, width, _ = values.shape
    rows = []
    for row in values.reshape(height, -1):
        if depth == 16:
            rows.append(row.astype(">u2").tobytes())
        else:
            bits = (row[:, None].astype(np.uint8) >> np.arange(depth - 1, -1, -1)) & 1
            rows.append(np.packbits(bits.reshape(-1)).tobytes())
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    image = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + image + chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "depth", "clear"), CELLS)
def test_field_report_82_every_kind_of_png(kind: int, depth: int, clear: bool) -> None:
    rng = np.random.default_rng(kind * 100 + depth)
    top = 2**depth - 1
    values = rng.integers(0, top + 1, (9, 13, CHANNELS[kind]))
    extra = []
    shares = values[..., : 1 if kind in (0, 4) else 3] / top  # 0..1
    alpha = values[..., -1:] / top if kind in (4, 6) else np.ones((9, 13, 1))
    if kind == 3:
        palette = rng.integers(0, 256, (top + 1, 3), dtype=np.uint8)
        extra.append(chunk(b"PLTE", palette.tobytes()))
        shares = palette[values[..., 0]] / 255
    if clear and kind == 3:
        opacity = rng.integers(0, 256, top + 1, dtype=np.uint8)
        extra.append(chunk(b"tRNS", opacity.tobytes()))
        alpha = (opacity[values[..., 0]] / 255)[..., None]
    elif clear and kind in (0, 2):
        values[2, 3] = values[4, 5]  # more than one pixel has that colour
        shares = values / top
        extra.append(chunk(b"tRNS", values[4, 5].astype(">u2").tobytes()))
        alpha = (values != values[4, 5]).any(-1, keepdims=True).astype(float)
    expected = np.broadcast_to(255 * (shares * alpha + 1 - alpha), (9, 13, 3))
    found = to_pixels(png(values, kind, depth, *extra)).permute(1, 2, 0).numpy().astype(float)
    # 16 bits lose their lower half, and what is half transparent is rounded twice.
    assert np.abs(found - expected).max() <= (1.5 if depth == 16 or kind in (3, 4, 6) else 0.5)


def tiff(values: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("values", "white"),
    [
        (np.linspace(0, 1, 48, dtype=np.float32), 1),
        (np.linspace(0, 255, 48, dtype=np.float32), 255),
        (np.linspace(0, 65535, 48).astype(np.uint16), 65535),
        (np.linspace(0, 65535, 48).astype(np.int32), 65535),
        (np.linspace(0, 255, 48).astype(np.uint8), 255),
    ],
)
def test_field_report_82_more_than_eight_bits_are_scaled(values: np.ndarray[Any, Any], white: float) -> None:
    values = values.reshape(6, 8)
    expected = values.astype(float) * 255 / white
    assert np.abs(to_pixels(tiff(values)).numpy() - expected).max() <= 0.51


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.linspace(0, 65535, 48, dtype=np.float32), "floating-point pixels from 0 to 65535, not 0 to 1 or 0 to 255"),
        (np.linspace(-1, 1, 48, dtype=np.float32), "from -1 to 1"),
        (np.linspace(0, 256, 48, dtype=np.float32), "from 0 to 256"),
        (np.full(48, np.nan, np.float32), "not finite"),
        (np.full(48, np.inf, np.float32), "not finite"),
        (np.linspace(0, 2**31 - 1, 48).astype(np.int32), "integer pixels from 0 to 2.14748e\\+09, not 0 to 65535"),
        (np.linspace(-5, 100, 48).astype(np.int32), "from -5 to 100"),
    ],
)
def test_field_report_82_nothing_is_clipped_in_silence(values: np.ndarray[Any, Any], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        to_pixels(tiff(values.reshape(6, 8)))


def test_field_report_82_colour_spaces_of_print_are_refused_by_name() -> None:
    buffer = io.BytesIO()
    Image.new("LAB", (8, 6)).save(buffer, "TIFF")
    with pytest.raises(ImageError, match="LAB pixels are not read: save it as RGB"):
        to_pixels(buffer.getvalue())


@given(st.sampled_from(["iTXt", "zTXt", "tEXt", "iCCP"]), st.integers(0, 3_000_000), st.booleans())
def test_field_report_72_texts_of_any_size_do_not_matter(kind: str, size: int, whole: bool) -> None:
    values = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    packed = zlib.compress(b"x" * size)
    content = {
        "iTXt": b"Comment\0\1\0\0\0" + packed,
        "zTXt": b"Comment\0\0" + packed,
        "tEXt": b"Comment\0" + packed,
        "iCCP": b"profile\0\0" + packed,
    }[kind]
    text = chunk(kind.encode(), content)
    if not whole:
        text = text[:-4] + b"\0\0\0\0"  # a wrong checksum
    data = png(values, 2, 8, *[text] * 3)
    assert np.array_equal(to_pixels(data).permute(1, 2, 0).numpy(), values)
    assert oddities(data) == ["PNG, not JPEG"]
