"""Bytes to pixels: every kind of file decodes to the right pixels or is refused with its reason."""

from __future__ import annotations

import io
import re
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from services import Proxy, upload
from tiny import Result, broken_exif, jpeg, make_folder, read_log

from gaeanet.config.experiment import Hyperparameters
from gaeanet.data.images.decode import ImageError, oddities, opened, to_pixels
from gaeanet.data.images.jpeg import read_header
from gaeanet.data.images.transforms import TrainingTransform, ValidationTransform
from gaeanet.data.loading.loader import training_batches, validation_batches
from gaeanet.data.prepare.prepare import prepare
from gaeanet.data.sources.folder import FolderSource
from gaeanet.data.sources.open import open_location
from gaeanet.errors import RunError

Run = Callable[..., Result]
Write = Callable[..., Path]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def flat(mode: str, colour: object, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new(mode, size, colour)  # type: ignore[arg-type]


def mean(data: bytes) -> list[int]:
    pixels = to_pixels(data)
    assert pixels.dtype == torch.uint8
    assert pixels.shape[0] == 3
    return [round(x) for x in pixels.float().mean((1, 2)).tolist()]


def ycck(colour: tuple[int, int, int, int]) -> bytes:
    """An Adobe YCCK JPEG: a CMYK one whose marker says that its colours were transformed."""
    data = encoded(flat("CMYK", colour), "JPEG", quality=95)
    at = data.find(b"Adobe")
    return data[: at + 11] + b"\x02" + data[at + 12 :] if at >= 0 else data


RED = (254, 0, 0)
RAMP = np.linspace(0, 65535, 256 * 16).reshape(16, 256).astype(np.uint16)


def test_field_report_26_every_pixel_format_becomes_three_times_eight_bits() -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8))
    exact = np.asarray(photo)
    for data in (
        encoded(photo, "PNG"),
        encoded(photo, "BMP"),
        encoded(photo, "WEBP", lossless=True),
        encoded(photo, "TIFF"),
    ):
        assert np.array_equal(to_pixels(data).permute(1, 2, 0).numpy(), exact)
    assert mean(encoded(flat("CMYK", (0, 255, 255, 0)), "JPEG", quality=95)) == pytest.approx(RED, abs=3)
    assert mean(encoded(flat("L", 77), "JPEG", quality=95)) == [77, 77, 77]
    assert mean(encoded(flat("RGB", RED), "JPEG", quality=95, progressive=True)) == pytest.approx(RED, abs=3)
    assert mean(encoded(flat("RGBA", (255, 0, 0, 0)), "PNG")) == [255, 255, 255]  # laid on white
    assert mean(encoded(flat("RGBA", (255, 0, 0, 255)), "PNG")) == [255, 0, 0]
    assert mean(encoded(flat("RGBA", (0, 0, 0, 127)), "PNG")) == pytest.approx([128] * 3, abs=1)
    assert mean(encoded(flat("LA", (10, 255)), "PNG")) == [10, 10, 10]
    assert mean(encoded(flat("RGB", (255, 0, 0)).convert("P"), "PNG")) == [255, 0, 0]
    assert mean(encoded(flat("RGB", (255, 0, 0)).convert("P"), "GIF")) == [255, 0, 0]
    assert mean(encoded(flat("1", 1), "PNG")) == [255, 255, 255]
    for kind in ("PNG", "TIFF"):
        ramp = to_pixels(encoded(Image.fromarray(RAMP), kind))
        assert len(ramp.unique()) > 200
        expected = torch.from_numpy(RAMP.astype(np.float64) / 257)
        assert (ramp[0].double() - expected).abs().max() <= 0.51
    dark = to_pixels(encoded(Image.fromarray(np.full((8, 8), 200, np.uint16)), "PNG"))
    assert int(dark.max()) == 1  # 200 of 65,535 is black, not light grey


def test_field_report_26_cmyk_jpegs_are_pillows_pixels() -> None:
    for data in (encoded(flat("CMYK", (200, 30, 60, 10)), "JPEG"), ycck((200, 30, 60, 10))):
        with Image.open(io.BytesIO(data)) as image:
            assert np.array_equal(to_pixels(data).permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))


def test_plain_jpegs_are_pillows_pixels() -> None:
    noise = np.random.default_rng(1).integers(0, 255, (53, 67, 3), dtype=np.uint8)
    for options in ({}, {"subsampling": 0}, {"progressive": True}, {"quality": 30}, {"restart_marker_blocks": 3}):
        data = encoded(Image.fromarray(noise), "JPEG", **options)
        with Image.open(io.BytesIO(data)) as image:
            theirs = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(to_pixels(data).permute(1, 2, 0).numpy().astype(int) - theirs).max() <= 1


def test_field_report_28_half_an_image_is_never_a_half_grey_picture() -> None:
    rng = np.random.default_rng(2)
    soft = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize(
        (160, 120), Image.Resampling.BICUBIC
    )
    for options in ({}, {"subsampling": 0}, {"restart_marker_blocks": 4}):
        whole = encoded(soft, "JPEG", **options)
        to_pixels(whole)
        for share in (0.3, 0.5, 0.7, 0.9):
            cut = whole[: int(len(whole) * share)]
            for data in (cut, cut + b"\xff\xd9"):  # as cut, and with an end mark put back
                with pytest.raises(ImageError, match="damaged image|not an image"):
                    to_pixels(data)
    png = encoded(soft, "PNG")
    for data, reason in (
        (png[: len(png) // 2], "damaged image"),
        (b"", "empty file"),
        (b"<html></html>", "not an image"),
    ):
        with pytest.raises(ImageError, match=reason):
            to_pixels(data)


def test_field_report_28_no_format_is_read_by_halves() -> None:
    photo = Image.fromarray(np.random.default_rng(5).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    for kind in ("PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM"):
        whole = encoded(photo, kind)
        to_pixels(whole)
        for share in (0.3, 0.6, 0.95):
            with pytest.raises(ImageError, match="damaged image|not an image"):
                to_pixels(whole[: int(len(whole) * share)])


def test_field_report_28_a_progressive_picture_needs_all_of_its_first_scan() -> None:
    soft = Image.fromarray(np.random.default_rng(6).integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((160, 120))
    for options in ({}, {"subsampling": 0}, {"restart_marker_blocks": 4}):
        whole = encoded(soft, "JPEG", progressive=True, **options)
        first, second = (match.start() for match in list(re.finditer(b"\xff\xda", whole))[:2])
        for cut in range(first + 14, second - 40, 37):
            for data in (whole[:cut], whole[:cut] + b"\xff\xd9"):
                with pytest.raises(ImageError, match="damaged image"):
                    to_pixels(data)


@given(
    st.integers(8, 120),
    st.integers(8, 120),
    st.sampled_from(["RGB", "L"]),
    st.booleans(),
    st.integers(5, 98),
    st.integers(0, 2),
    st.integers(0, 8),
)
def test_whole_jpegs_of_any_kind_are_never_taken_for_cut_ones(
    width: int, height: int, mode: str, progressive: bool, quality: int, subsampling: int, restart: int
) -> None:
    pixels = np.random.default_rng(width).integers(0, 255, (1 + height // 8, 1 + width // 8, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels).resize((width, height)).convert(mode)
    photo.paste(128 if mode == "L" else (128, 128, 128), (0, height // 2, width, height))  # as a cut one looks
    options = {"quality": quality, "subsampling": subsampling, "restart_marker_blocks": restart}
    assert to_pixels(encoded(photo, "JPEG", progressive=progressive, **options)).shape == (3, height, width)


def test_pictures_that_truly_end_in_grey_are_kept() -> None:
    pixels = np.full((120, 160, 3), 128, np.uint8)
    pixels[:60] = np.random.default_rng(3).integers(0, 255, (60, 160, 3), dtype=np.uint8)
    for options in ({}, {"subsampling": 0}, {"restart_marker_blocks": 5}, {"progressive": True}):
        data = encoded(Image.fromarray(pixels), "JPEG", **options)
        assert (to_pixels(data)[:, -8:] == 128).all()
    assert mean(encoded(flat("L", 128), "JPEG")) == [128, 128, 128]


def test_field_report_27_damaged_exif_is_silent_and_rotation_is_ignored(tmp_path: Path) -> None:
    rotated = Image.Exif()
    rotated[0x0112] = 6
    data = encoded(flat("RGB", RED, (60, 40)), "JPEG", exif=rotated)
    assert to_pixels(data).shape == (3, 40, 60)
    assert oddities(data) == ["EXIF rotation (ignored)"]
    assert to_pixels(broken_exif()).shape == (3, 40, 60)
    assert "damaged EXIF" in oddities(broken_exif())

    root = make_folder(tmp_path / "t3")
    for path in root.glob("train/*/*.JPEG"):
        path.write_bytes(broken_exif())
    (root / "train" / "n00000000" / "train_0.JPEG").write_bytes(
        encoded(flat("CMYK", (0, 9, 9, 0)), "JPEG", exif=broken_exif()[6:60])
    )
    code = f"""
from gaeanet.data.images.transforms import TrainingTransform
from gaeanet.config.experiment import Hyperparameters
from gaeanet.data.sources.folder import FolderSource
from gaeanet.data.loading.loader import training_batches
hp = Hyperparameters(image_size=32, color_jitter=False)
source = FolderSource({str(root)!r})
batches = training_batches(source, TrainingTransform(hp), global_batch=6, epochs=2, seed=0, workers=2)
print(sum(len(batch.labels) for batch in batches))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "36"
    assert "EXIF" not in result.stderr


def test_huge_and_thin_pictures_take_bounded_memory() -> None:
    huge = encoded(flat("L", 90, (20_000, 16_000)), "JPEG")  # 320 million pixels in two megabytes
    png = b"\x89PNG\r\n\x1a\n"
    for kind, content in (
        (b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ):
        png += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = to_pixels(huge)
    assert pixels.shape[1] * pixels.shape[2] <= 90_000_000
    assert pixels.shape == (3, 8000, 10_000)
    assert int(pixels[0, 5, 5]) == 90
    for data in (png, encoded(flat("L", 90, (20_000, 5_000)), "JPEG", progressive=True)):
        with pytest.raises(ImageError, match="too large: "):
            to_pixels(data)
    validation, training = ValidationTransform(224), TrainingTransform(Hyperparameters(color_jitter=False)).at(0)
    for size in ((1, 5000), (30_000, 2), (65_000, 40), (3, 3)):
        thin = encoded(flat("RGB", RED, size), "JPEG")
        assert validation(to_pixels(thin)).shape == (3, 224, 224)
        assert training(opened(thin)).shape == (3, 224, 224)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 900_000  # kilobytes


def outcome(data: bytes) -> str:
    """What came of decoding: the word pixels, or the reason why there are none."""
    try:
        pixels = to_pixels(data)
    except ImageError as error:
        return str(error)
    return "pixels" if pixels.dtype == torch.uint8 and pixels.shape[0] == 3 else f"{pixels.dtype} {pixels.shape}"


def test_headers_of_broken_files_are_read_without_harm() -> None:
    whole = jpeg((1, 2, 3), (40, 30))
    header = read_header(whole)
    assert header is not None
    assert (header.width, header.height, header.components) == (40, 30, 3)
    rng = np.random.default_rng(4)
    for length in range(0, len(whole), 7):
        read_header(whole[:length])
    for _ in range(300):  # any byte may be wrong: pixels or a refusal, nothing else
        data = bytearray(whole)
        for at in rng.integers(0, len(data), 3):
            data[at] = rng.integers(0, 256)
        assert "\n" not in outcome(bytes(data))


EDGE_CASES = {
    "broken.png": "not an image",
    "garbage.JPEG": "not an image",
    "real_truncated_20k.JPEG": "damaged image",
    "truncated_jpeg.jpg": "damaged image",
    "zero_bytes.JPEG": "empty file",
}


def test_every_edge_case_decodes_or_is_refused_and_crashes_no_worker(evaluation_data: Path, tmp_path: Path) -> None:
    files = sorted((evaluation_data / "edge-cases").iterdir())
    good = []
    for file in files:
        data = file.read_bytes()
        if file.name in EDGE_CASES:
            with pytest.raises(ImageError, match=EDGE_CASES[file.name]):
                to_pixels(data)
        else:
            pixels = to_pixels(data)
            with Image.open(file) as image:
                assert tuple(pixels.shape) == (3, image.height, image.width)
                if image.mode in ("RGB", "L", "CMYK"):
                    theirs = np.asarray(image.convert("RGB")).astype(int)
                    assert np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - theirs).max() <= 1
            good.append(file)
    root = make_folder(tmp_path / "t3")
    for file in files:
        (root / "train" / "n00000000" / file.name).write_bytes(file.read_bytes())
    source = FolderSource(str(root))
    hp = Hyperparameters(image_size=32)
    count = len(source.catalog.train)
    batches = list(
        training_batches(source, TrainingTransform(hp), global_batch=count, epochs=2, seed=0, workers=2, max_bad=5)
    )
    assert [len(batch.labels) for batch in batches] == [count, count]
    assert {Path(line.split(": ")[0]).name for batch in batches for line in batch.bad} == set(EDGE_CASES)
    assert len(good) + len(EDGE_CASES) == len(files)


def test_field_report_26_odd_files_are_the_same_everywhere(gcs: Proxy, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "t3")
    folder = root / "train" / "n00000001"
    kinds = {
        "cmyk.JPEG": encoded(flat("CMYK", (0, 255, 255, 0)), "JPEG"),
        "png.JPEG": encoded(flat("RGB", RED), "PNG"),
        "grey.JPEG": encoded(flat("L", 77), "JPEG"),
        "alpha.png": encoded(flat("RGBA", (255, 0, 0, 100)), "PNG"),
        "deep.png": encoded(Image.fromarray(RAMP), "PNG"),
        "palette.png": encoded(flat("RGB", RED).convert("P"), "PNG"),
        "web.webp": encoded(flat("RGB", RED), "WEBP"),
    }
    for name, data in kinds.items():
        (folder / name).write_bytes(data)
    prepare(str(root), tmp_path / "shards", shards=True)
    upload(root, "gs://photos/odd")
    sources = [open_location(place) for place in (str(root), str(tmp_path / "shards"), "gs://photos/odd")]
    names = [sources[0].catalog.train.name(k) for k in range(len(sources[0].catalog.train))]
    for name in kinds:
        index = names.index(f"n00000001/{name}")
        images = [to_pixels(source.read("train", index)) for source in sources]
        assert all(torch.equal(image, images[0]) for image in images)


def spoil(root: Path) -> list[Path]:
    bad = [root / "train" / "n00000001" / f"train_{k}.JPEG" for k in range(3)]
    bad[0].write_bytes(bad[0].read_bytes()[: bad[0].stat().st_size // 2])
    bad[1].write_bytes(b"")
    bad[2].write_text("<html>404</html>")
    return bad


def test_field_report_28_damaged_images_are_skipped_up_to_a_limit(
    gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path
) -> None:
    bad = spoil(t3)
    options = {"epochs": 1, "global_batch_size": 6}
    result = gaeanet("train", experiment_file(**options), "--data", t3, "--set", "data.max_bad=3", "--run-dir", "three")
    assert result.code == 0, result.err
    for path in bad:
        assert f"skipped {path}: " in result.out
    assert "(3 of at most 3)" in result.out
    lines = read_log(tmp_path / "three", "train")
    assert sum(line["skipped_images"] for line in lines) == 3
    assert lines[-1]["images"] == 18
    result = gaeanet("train", experiment_file(**options), "--data", t3, "--set", "data.max_bad=2", "--run-dir", "two")
    assert result.code == 1
    assert any(str(path) in result.err for path in bad)
    assert "data.max_bad lets 2 such training images pass" in result.err


def test_field_report_28_replacements_do_not_depend_on_processes_or_restarts(t3: Path) -> None:
    spoil(t3)
    source = FolderSource(str(t3))
    hp = Hyperparameters(image_size=32)

    def batches(**options: object) -> dict[tuple[int, int], tuple[list[int], list[int]]]:
        loader = training_batches(source, TrainingTransform(hp), global_batch=6, epochs=3, seed=1, max_bad=9, **options)  # type: ignore[arg-type]
        return {(b.epoch, b.step): (b.images.long().sum((1, 2, 3)).tolist(), b.labels.tolist()) for b in loader}

    plain = batches()
    assert batches(workers=2) == plain
    assert batches(start=(1, 1)) == {k: v for k, v in plain.items() if k >= (1, 1)}
    parts = [batches(rank=rank, world_size=3) for rank in range(3)]
    for position, (sums, labels) in plain.items():
        assert sum((part[position][0] for part in parts), []) == sums
        assert sum((part[position][1] for part in parts), []) == labels


def test_field_report_28_validation_never_passes_over_an_image(t3: Path) -> None:
    victim = t3 / "val" / "n00000002" / "val_1.JPEG"
    victim.write_bytes(victim.read_bytes()[:500])
    source = FolderSource(str(t3))
    with pytest.raises(RunError, match=f"{victim}: damaged image: .*; validation needs every image"):
        list(validation_batches(source, ValidationTransform(32), batch=4))
