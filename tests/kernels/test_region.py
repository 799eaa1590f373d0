"""Parts of photographs: the kernel's pixels are those of the whole, bit for bit, and damage is never overlooked."""

from __future__ import annotations

import io
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import jpeg, make_folder
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from gaeanet.config.experiment import Hyperparameters
from gaeanet.data.images.decode import ImageError, Photograph, Pixels, opened, to_pixels
from gaeanet.data.images.transforms import TrainingTransform, crop_box
from gaeanet.data.loading.loader import training_batches
from gaeanet.data.sources.folder import FolderSource
from gaeanet.kernels.build import availability
from gaeanet.kernels.pixels import jpeg_region

Box = tuple[int, int, int, int]

HERE = (
    isinstance(picture := opened(data := jpeg((1, 2, 3), (40, 30))), Photograph)
    and jpeg_region(data, 0, 0, picture.height, picture.width) is not None
)
needs_kernels = pytest.mark.skipif(not HERE, reason=f"{availability()}, or a processor without AVX2")


def scene(width: int, height: int, seed: int, detail: int = 8, noise: int = 20) -> Image.Image:
    """Soft colours and a little noise, as cameras make them."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (2 + height // detail, 2 + width // detail, 3), dtype=np.uint8)
    soft = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), dtype=int)
    return Image.fromarray((soft + rng.integers(-noise, noise + 1, soft.shape)).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def part_by_kernel(data: bytes, box: Box) -> Tensor | None:
    return jpeg_region(data, *box)


def part_of_whole(data: bytes, box: Box) -> Tensor:
    """By torchvision: of thin pictures, too, everything."""
    whole = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    return Pixels(whole).region(*box)


def outcome(data: bytes, box: tuple[float, float, float, float]) -> Tensor | str:
    """A part's pixels, or why there are none; the box in shares of what there is of the picture."""
    try:
        picture = opened(data)
        return picture.region(*inside(picture.height, picture.width, box))
    except ImageError as error:
        return str(error)


def outcome_of_whole(data: bytes, box: tuple[float, float, float, float]) -> Tensor | str:
    """The same without the kernel."""
    try:
        with mock.patch("gaeanet.data.images.decode.availability", return_value="none"):
            pixels = Pixels(to_pixels(data))
    except ImageError as error:
        return str(error)
    return pixels.region(*inside(pixels.height, pixels.width, box))


def inside(height: int, width: int, box: tuple[float, float, float, float]) -> Box:
    top, left = int(box[0] * (height - 1)), int(box[1] * (width - 1))
    return top, left, 1 + int(box[2] * (height - top - 1)), 1 + int(box[3] * (width - left - 1))


def same(a: Tensor | str, b: Tensor | str) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or str(a) == str(b)


SHARE = st.floats(0, 1)
BOXES = st.tuples(SHARE, SHARE, SHARE, SHARE)
KINDS = st.fixed_dictionaries(
    {"quality": st.integers(1, 100), "subsampling": st.integers(0, 2), "optimize": st.booleans()},
    optional={"restart_marker_blocks": st.integers(1, 9), "restart_marker_rows": st.integers(1, 3)},
)


@needs_kernels
@settings(max_examples=250)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from(["RGB", "L"]), KINDS, st.integers(0, 99), BOXES)
def test_a_part_has_the_pixels_of_the_whole(
    width: int, height: int, mode: str, kind: dict[str, int], seed: int, box: tuple[float, float, float, float]
) -> None:
    data = encoded(scene(width, height, seed, noise=seed).convert(mode), **kind)
    for place in (inside(height, width, box), (0, 0, height, width)):
        pixels = part_by_kernel(data, place)
        assert pixels is not None or (width < 5 and kind["subsampling"])
        if pixels is not None:
            assert torch.equal(pixels, part_of_whole(data, place))
    assert same(outcome(data, box), outcome_of_whole(data, box))


@needs_kernels
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_every_box_of_a_picture_is_right(subsampling: int) -> None:
    data = encoded(scene(37, 35, 1), quality=90, subsampling=subsampling)
    whole = to_pixels(data)
    for top in range(35):
        for left in range(37):
            for height, width in ((1, 1), (35 - top, 37 - left), (1 + (34 - top) // 2, 1 + (36 - left) // 3)):
                pixels = part_by_kernel(data, (top, left, height, width))
                assert pixels is not None
                assert torch.equal(pixels, whole[:, top : top + height, left : left + width])
    for box in ((-1, 0, 2, 2), (0, -1, 2, 2), (34, 0, 2, 1), (0, 36, 1, 2), (0, 0, 36, 1), (2**62, 0, 1, 1)):
        assert part_by_kernel(data, box) is None


@needs_kernels
def test_noise_and_the_coarsest_tables_are_right() -> None:
    """Samples beyond black and white, and values so large that it is left to libjpeg what they mean."""
    rng = np.random.default_rng(0)
    for size in ((64, 48), (41, 57)):
        for quality in (1, 2, 5, 20, 100):
            for extreme in (False, True):
                levels = rng.integers(0, 2, (*size, 3)) * 255 if extreme else rng.integers(0, 256, (*size, 3))
                photo = Image.fromarray(levels.astype(np.uint8))
                for subsampling in (0, 1, 2):
                    data = encoded(photo, quality=quality, subsampling=subsampling)
                    pixels = part_by_kernel(data, (0, 0, *size))
                    assert pixels is not None
                    assert torch.equal(pixels, to_pixels(data))
                    coarse = bytearray(data)
                    at = coarse.find(b"\xff\xdb") + 5
                    coarse[at : at + 64] = b"\xff" * 64
                    assert same(outcome(bytes(coarse), (0, 0, 1, 1)), outcome_of_whole(bytes(coarse), (0, 0, 1, 1)))


def with_adobe_marker(data: bytes, transform: int) -> bytes:
    """In place of JFIF's."""
    length = int.from_bytes(data[4:6], "big")
    assert data[2:4] == b"\xff\xe0"
    return data[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform]) + data[4 + length :]


@needs_kernels
def test_the_common_kinds_are_the_kernels_and_all_others_are_right_too() -> None:
    photo = scene(50, 40, 3)
    plain = encoded(photo, quality=85)
    at = plain.find(b"\xff\xc0")
    common = {
        "baseline": plain,
        "grey": encoded(photo.convert("L")),
        "extended": plain[:at] + b"\xff\xc1" + plain[at + 2 :],
        "Adobe": with_adobe_marker(plain, 1),
        "comment": encoded(photo, comment=b"\xff\xd9\xff\xda"),
        "EXIF": encoded(photo, exif=b"Exif\x00\x00damaged"),
    }
    others = {
        "progressive": encoded(photo, progressive=True),
        "CMYK": encoded(photo.convert("CMYK")),
        "Adobe RGB": with_adobe_marker(plain, 0),
        "Adobe unknown": with_adobe_marker(plain, 7),
        "12 bit": plain[: at + 4] + b"\x0c" + plain[at + 5 :],
        "4:4:0": plain[: at + 11] + b"\x12" + plain[at + 12 :],
        "no sampling": plain[: at + 11] + b"\x0b" + plain[at + 12 :],
        "bytes before a marker": plain[:2] + b"\x00\x00" + plain[2:],
        "bytes after the last unit": plain[:-2] + b"\x00\x00\x00" + plain[-2:],
        "a marker amid the data": plain[:-20] + b"\xff\xd3" + plain[-20:],
        "a second scan": plain[:-2] + plain[plain.find(b"\xff\xda") :],
        "no tables": plain.replace(b"\xff\xc4", b"\xff\xfe"),
        "height 0": plain[: at + 5] + b"\x00\x00" + plain[at + 7 :],
        "PNG": b"\x89PNG\r\n\x1a\n",
        "nothing": b"",
    }
    if (rgb := encoded(photo, keep_rgb=True)) != encoded(photo):  # Pillow 10.2 or later
        others["RGB"] = rgb
    for name, data in {**common, **others}.items():
        assert name in others or isinstance(opened(data), Photograph), name
        assert (part_by_kernel(data, (0, 0, 40, 50)) is not None) == (name in common), name
        for box in ((0.0, 0.0, 1.0, 1.0), (0.3, 0.4, 0.5, 0.2)):
            assert same(outcome(data, box), outcome_of_whole(data, box)), name


@needs_kernels
def test_a_file_that_is_cut_short_is_refused_whichever_part_is_asked_for() -> None:
    for options in ({}, {"subsampling": 0}, {"restart_marker_blocks": 4}):
        whole = encoded(scene(160, 120, 2), **options)
        for share in (0.3, 0.7, 0.95):
            cut = whole[: int(len(whole) * share)]
            for data in (cut, cut + b"\xff\xd9"):
                for box in ((0.0, 0.0, 0.1, 0.1), (0.9, 0.9, 1.0, 1.0)):
                    found = outcome(data, box)
                    assert isinstance(found, str)
                    assert "damaged image" in found
                    assert same(found, outcome_of_whole(data, box))


@needs_kernels
@settings(max_examples=400)
@given(
    st.integers(0, 11),
    st.lists(st.tuples(SHARE, st.integers(0, 255)), min_size=1, max_size=4),
    st.sampled_from(["set", "insert", "drop", "cut"]),
    BOXES,
)
def test_damage_has_the_same_end_with_and_without_the_kernel(
    number: int, places: list[tuple[float, int]], how: str, box: tuple[float, float, float, float]
) -> None:
    kinds = [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"subsampling": 2, "restart_marker_blocks": 2}]
    photo = scene(40 + number, 33, number, noise=60)
    data = bytearray(
        encoded(photo.convert("RGB" if number < 10 else "L"), optimize=number % 2 == 0, **kinds[number % 4])
    )
    for share, value in places:
        at = int(share * (len(data) - 1))
        if how == "set":
            data[at] = value
        elif how == "insert":
            data.insert(at, value)
        elif how == "drop":
            del data[at : at + 1 + value % 5]
        else:
            del data[at : at + value]
    assert same(outcome(bytes(data), box), outcome_of_whole(bytes(data), box))


def test_training_batches_are_the_same_without_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Odd, thin and damaged files among them."""
    root = make_folder(tmp_path / "photos", train=6, val=1)
    folder = root / "train" / "n00000001"
    whole = encoded(scene(120, 90, 5))
    files = {
        "large": whole,
        "grey": encoded(scene(64, 80, 6).convert("L")),
        "halved": encoded(scene(99, 81, 7), subsampling=1, restart_marker_rows=1),
        "full": encoded(scene(75, 70, 8), subsampling=0, optimize=True),
        "thin": encoded(scene(5, 300, 9)),
        "progressive": encoded(scene(50, 60, 10), progressive=True),
        "cut": whole[: len(whole) // 2],
        "cut-with-end": whole[: len(whole) * 3 // 4] + b"\xff\xd9",
        "page": b"<html></html>",
    }
    for name, data in files.items():
        (folder / f"{name}.JPEG").write_bytes(data)
    source, hp = FolderSource(str(root)), Hyperparameters(image_size=40, autoaugment=True)

    def batches(workers: int = 0) -> list[tuple[Tensor, list[int], set[str]]]:
        loader = training_batches(
            source, TrainingTransform(hp), global_batch=9, epochs=2, seed=3, max_bad=9, workers=workers
        )
        return [(batch.images, batch.labels.tolist(), set(batch.bad)) for batch in loader]

    ours, in_workers = batches(), batches(2)
    monkeypatch.setattr("gaeanet.data.images.decode.availability", lambda: "PyTorch's kernels (no C++ compiler)")
    theirs = batches()
    assert sum(len(bad) for _, _, bad in theirs) >= 3
    assert len(ours) == len(in_workers) == len(theirs) > 3
    for a, b, c in zip(ours, in_workers, theirs):
        assert torch.equal(a[0], c[0])
        assert torch.equal(b[0], c[0])
        assert a[1:] == b[1:] == c[1:]


def test_without_kernels_a_picture_is_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gaeanet.data.images.decode.availability", lambda: "PyTorch's kernels (no C++ compiler)")
    data = jpeg((9, 99, 199), (40, 30))
    picture = opened(data)
    assert isinstance(picture, Pixels)
    assert (picture.height, picture.width) == (30, 40)
    assert torch.equal(picture.region(3, 5, 7, 9), to_pixels(data)[:, 3:10, 5:14])


def test_photographs_and_odd_files_are_what_they_were(evaluation_data: Path) -> None:
    samples = sorted((evaluation_data / "imagenet-samples").glob("*.JPEG"))[::5]
    torch.default_generator.manual_seed(0)
    for path in samples:
        data = path.read_bytes()
        whole, picture = to_pixels(data), opened(data)
        assert (3, picture.height, picture.width) == tuple(whole.shape)
        for box in (crop_box(picture.height, picture.width, 0.08), (0, 0, picture.height, picture.width)):
            assert torch.equal(picture.region(*box), Pixels(whole).region(*box))
            if HERE:
                assert part_by_kernel(data, box) is not None
    for path in (evaluation_data / "edge-cases").iterdir():
        data = path.read_bytes()
        for part in ((0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.1, 0.1), (0.5, 0.3, 0.4, 0.5)):
            assert same(outcome(data, part), outcome_of_whole(data, part)), path.name
