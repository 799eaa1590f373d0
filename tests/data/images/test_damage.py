"""What a decoder warns of is damage, on every way that an image may take."""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin
from tiny import Result, make_folder, read_log
from torchvision.io import ImageReadMode, decode_jpeg

from gaeanet.data.images.decode import ImageError, opened, to_pixels
from gaeanet.kernels.build import OWN, availability

Run = Callable[..., Result]
Write = Callable[..., Path]


def photograph(mode: str = "RGB", **options: object) -> bytes:
    rng = np.random.default_rng(7)
    soft = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize((320, 240))
    pixels = np.asarray(soft).astype(int) + rng.integers(-9, 10, (240, 320, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def coded(data: bytes) -> int:
    """Where the last scan's data begin, or nearly."""
    return data.rfind(b"\xff\xda") + 20


def middle(data: bytes) -> int:
    return (coded(data) + len(data)) // 2


FOREIGN = photograph(quality=60)
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "second half zeros, no end mark": lambda d: d[: middle(d)] + bytes(len(d) - middle(d)),
    "bytes of zero in the middle": lambda d: d[: middle(d)] + bytes(512) + d[middle(d) + 512 :],
    "a part of another file": lambda d: d[: middle(d)] + FOREIGN[2000:6096] + d[middle(d) + 4096 :],
    "a part is missing": lambda d: d[: middle(d)] + d[middle(d) + 300 :],
    "cut, with an end mark": lambda d: d[: middle(d)] + b"\xff\xd9",
    "no end mark": lambda d: d[:-2],
    "no end mark, and a page behind": lambda d: d[:-2] + b"<html></html>" * 9,
    "a mark in the middle": lambda d: d[: middle(d)] + b"\xff\xd5" + d[middle(d) :],
    "bytes before the end mark": lambda d: d[:-2] + bytes(40) + d[-2:],
    "cut, and a header that libjpeg warns of": lambda d: (
        d[: middle(d)].replace(b"JFIF\0\1", b"JFIF\0\7").replace(b"Adobe\0\x64\0\0\0\0\2", b"Adobe\0\x64\0\0\0\0\7")
        + b"\xff\xd9"
    ),
}
KINDS = {
    "common": photograph(quality=90),
    "full colours": photograph(quality=90, subsampling=0),
    "restarts": photograph(quality=90, restart_marker_blocks=7),
    "grey": photograph("L", quality=90),
    "progressive": photograph(quality=90, progressive=True),
    "cmyk": photograph("CMYK", quality=90),
}


def warns(data: bytes, capfd: pytest.CaptureFixture[str]) -> str:
    """What torchvision's libjpeg says of a file when it is asked directly."""
    capfd.readouterr()
    try:
        decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    except RuntimeError as error:
        return capfd.readouterr().err + str(error)
    return capfd.readouterr().err


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", DAMAGE)
def test_field_report_90_what_libjpeg_warns_of_is_damage(
    how: str, kind: str, kernel: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel:
        monkeypatch.setattr("gaeanet.data.images.decode.availability", lambda: "none")
    whole, damaged = KINDS[kind], DAMAGE[how](KINDS[kind])
    assert warns(whole, capfd) == ""
    picture = opened(whole)
    assert (picture.width, picture.height) == (320, 240)
    assert picture.region(5, 6, 7, 8).equal(to_pixels(whole)[:, 5:12, 6:14])
    if not warns(damaged, capfd):  # zeros are codes too: not all damage can be seen
        assert "zero" in how or "missing" in how
        to_pixels(damaged)
        return
    with pytest.raises(ImageError, match="^damaged image: ") as of_whole:
        to_pixels(damaged)
    with pytest.raises(ImageError) as of_part:
        opened(damaged).region(0, 0, 8, 8)
    assert str(of_whole.value) == str(of_part.value)
    assert "\n" not in str(of_part.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_field_report_90_above_the_bound_damage_is_seen_at_a_smaller_scale(
    kind: str, kernel: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too large to be decoded in full: the kernel reads the coded data; without it only a missing end is seen."""
    monkeypatch.setattr("gaeanet.data.images.decode.MAX_PIXELS", 320 * 240 - 1)
    if not kernel:
        monkeypatch.setattr("gaeanet.data.images.decode.availability", lambda: "none")
    seen = {how: damage(KINDS[kind]) for how, damage in DAMAGE.items() if warns(damage(KINDS[kind]), capfd)}
    for how, data in {"": KINDS[kind], **seen}.items():
        try:
            assert to_pixels(data).shape == (3, 120, 160)
            fault = ""
        except ImageError as error:
            fault = str(error)
        if kind == "progressive":
            assert fault.startswith("too large")
        elif not how:
            assert not fault
        elif kernel and availability() == OWN:
            assert fault.startswith("damaged image: "), how
        elif "cut" in how and kind != "cmyk":
            assert fault.startswith("damaged image: its data end before"), how
    assert capfd.readouterr().err == ""


def strange_headers() -> dict[str, bytes]:
    """Files that libjpeg warns of and that are whole: what it says is of no pixel."""
    plain, cmyk = KINDS["common"], KINDS["cmyk"]
    table = plain.index(b"\xff\xdb")
    return {
        "revision": plain.replace(b"JFIF\0\1", b"JFIF\0\7"),
        "bytes between segments": plain[:table] + b"junk!" + plain[table:],
        "both": plain[:table].replace(b"JFIF\0\1", b"JFIF\0\7") + b"junk!" + plain[table:],
        "filled up": plain[:table] + b"\xff" * 9 + plain[table:],
        "data behind the end": plain + b"\xff\xd8thumbnail" * 40,
        "adobe": re.sub(rb"(Adobe.{6})[\0-\2]", lambda found: found[1] + b"\7", cmyk, flags=re.DOTALL),
    }


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("name", strange_headers())
def test_field_report_90_a_strange_header_is_no_damage(
    name: str, kernel: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel:
        monkeypatch.setattr("gaeanet.data.images.decode.availability", lambda: "none")
    pixels = to_pixels(strange_headers()[name])
    assert pixels.shape == (3, 240, 320)
    if name != "adobe":
        assert pixels.equal(to_pixels(KINDS["common"]))
    assert capfd.readouterr().err == ""


def tiffs() -> dict[str, bytes]:
    found = {}
    for compression in ("raw", "tiff_lzw", "tiff_deflate", "jpeg", "packbits"):
        buffer = io.BytesIO()
        Image.fromarray(np.arange(4800, dtype=np.uint8).reshape(40, 40, 3)).save(
            buffer, "TIFF", compression=compression
        )
        found[compression] = buffer.getvalue()
    return found


TIFFS = tiffs()


@pytest.mark.parametrize("compression", TIFFS)
def test_field_report_90_of_a_damaged_tiff_nothing_is_printed_and_nothing_passed_over(
    compression: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """libtiff prints, Pillow warns and logs; a tag that pixels depend on is none to do without."""
    data, refused = TIFFS[compression], 0
    assert to_pixels(data).shape == (3, 40, 40)
    directory = int.from_bytes(data[4:8], "little")
    tags = {int.from_bytes(data[at : at + 2], "little"): at for at in range(directory + 2, len(data) - 12, 12)}
    for tag in (256, 257, 258, 262, 273, 277, 279):
        for field, value in ((2, 99), (4, 0), (4, 2**31), (8, 2**31)):  # type, number of values, place or value
            odd = bytearray(data)
            struct.pack_into("<H" if field == 2 else "<I", odd, tags[tag] + field, value)
            try:
                to_pixels(bytes(odd))
            except ImageError:
                refused += 1
    for at in range(9, directory, 31):
        flipped = bytearray(data)
        flipped[at] ^= 0x55
        try:
            to_pixels(bytes(flipped))
        except ImageError:
            refused += 1
    assert refused > 10
    assert capfd.readouterr().err == ""


def test_field_report_90_a_tiff_with_odd_metadata_is_whole(capfd: pytest.CaptureFixture[str]) -> None:
    buffer = io.BytesIO()
    image = Image.fromarray(np.arange(4800, dtype=np.uint8).reshape(40, 40, 3))
    private = TiffImagePlugin.ImageFileDirectory_v2()
    private.tagtype[65000] = 2
    private[65000] = "x" * 40
    image.save(buffer, "TIFF", tiffinfo=private)
    data = bytearray(buffer.getvalue())
    directory = int.from_bytes(data[4:8], "little")
    at = next(k for k in range(directory + 2, len(data), 12) if data[k : k + 2] == (65000).to_bytes(2, "little"))
    data[at + 4 : at + 8] = (2**31).to_bytes(4, "little")  # characters
    assert to_pixels(bytes(data)).equal(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    assert capfd.readouterr().err == ""


def test_field_report_90_nothing_else_on_standard_error_is_lost(capfd: pytest.CaptureFixture[str]) -> None:
    from gaeanet.data.images import libjpeg

    def decode_and_speak(*_: object) -> None:
        os.write(2, b"from another thread\nCorrupt JPEG data: bad Huffman code\nand on\n")

    with mock.patch.object(libjpeg, "decode_jpeg", decode_and_speak), pytest.raises(libjpeg.Damage):
        libjpeg.decode(KINDS["common"])
    assert capfd.readouterr().err == "from another thread\nand on\n"


def test_field_report_90_training_counts_and_verify_names_them(
    gaeanet: Run, experiment_file: Write, tmp_path: Path
) -> None:
    root = make_folder(tmp_path / "t3")
    seen = [damage for how, damage in DAMAGE.items() if "zero in" not in how]
    bad = [root / "train" / "n00000000" / f"bad{k}.jpg" for k in range(len(seen))]
    for path, damage in zip(bad, seen):
        path.write_bytes(damage(KINDS["common"]))
    result = gaeanet("prepare", root, "--verify")
    assert result.code == 1
    for path in bad:
        assert f"{path}: damaged image: " in result.out
    config = experiment_file("damaged", epochs=1)
    result = gaeanet("train", config, "--data", root, "--run-dir", tmp_path / "run")
    assert result.code == 0, result.err
    for path in bad:
        assert f"skipped {path}: damaged image: " in result.out
    assert sum(line["skipped_images"] for line in read_log(tmp_path / "run", "train")) >= len(bad)
    assert "Corrupt" not in result.err
