"""`gaeanet predict`: images, directories and standard input in, names with probabilities out."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import Result, TinyRun

from gaeanet.artifacts.find import find
from gaeanet.data.formats import FORMATS
from gaeanet.data.images.decode import to_pixels
from gaeanet.data.images.transforms import ValidationTransform, normalize

Run = Callable[..., Result]


class Input:
    """Standard input that holds these bytes."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


def rows_of(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.out.splitlines()]


def test_the_probabilities_are_the_networks(gaeanet: Run, tiny_run: TinyRun) -> None:
    images = sorted((tiny_run.data / "val").rglob("*.JPEG"))
    rows = rows_of(gaeanet("predict", tiny_run.run, tiny_run.data / "val", "--json", "--batch-size", 4))
    assert [row["image"] for row in rows] == [str(path) for path in images]
    trained = find(tiny_run.run)
    network = trained.network(trained.preferred)
    for row, path in zip(rows[:3], images):
        with torch.inference_mode():
            logits = network(normalize(ValidationTransform(32)(to_pixels(path.read_bytes()))[None]))
        probabilities = logits.softmax(1)[0]
        assert [guess["index"] for guess in row["top"]] == probabilities.argsort(descending=True).tolist()
        assert [guess["probability"] for guess in row["top"]] == pytest.approx(
            probabilities.sort(descending=True).values.tolist(), abs=1e-5
        )
        assert row["top"][0]["class"] == f"n{row['top'][0]['index']:08d}"


def test_words_for_people(gaeanet: Run, tiny_run: TinyRun) -> None:
    image = next((tiny_run.data / "val").rglob("*.JPEG"))
    lines = gaeanet("predict", tiny_run.run, image, "--top", 2).out.splitlines()
    assert lines[0] == str(image)
    assert len(lines) == 3
    assert " %  n0000000" in lines[1]


def test_standard_input_holds_names_or_an_image(
    gaeanet: Run, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = sorted((tiny_run.data / "val").rglob("*.JPEG"))[:3]
    direct = rows_of(gaeanet("predict", tiny_run.run, *images, "--json"))
    monkeypatch.setattr(sys, "stdin", Input("".join(f"{path}\n" for path in images).encode()))
    assert rows_of(gaeanet("predict", tiny_run.run, "-", "--json")) == direct
    monkeypatch.setattr(sys, "stdin", Input(images[0].read_bytes()))
    (row,) = rows_of(gaeanet("predict", tiny_run.run, "-", "--json"))
    assert row == {**direct[0], "image": "standard input", "top": row["top"]}
    assert row["top"][0]["index"] == direct[0]["top"][0]["index"]


def test_an_image_that_does_not_decode_is_named_and_the_others_are_told(
    gaeanet: Run, tiny_run: TinyRun, tmp_path: Path
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    image = next((tiny_run.data / "val").rglob("*.JPEG"))
    result = gaeanet("predict", tiny_run.run, "bad.jpg", image, "--json")
    assert result.code == 1
    rows = rows_of(result)
    assert rows[0] == {"image": "bad.jpg", "error": "not an image"}
    assert len(rows[1]["top"]) == 3
    assert result.err == "gaeanet: bad.jpg: not an image\ngaeanet: 1 of 2 images could not be read\n"


def test_each_wrong_request_gets_one_clear_line(gaeanet: Run, tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, message in [
        (["nowhere", "x.jpg"], "nowhere: no such file or directory: name a checkpoint"),
        ([tiny_run.run, "x.jpg"], "x.jpg: no such file or directory: name images"),
        ([tiny_run.run, "empty"], "empty: no images in this directory"),
        ([tiny_run.run], "required: IMAGE"),
        ([tiny_run.run, "empty", "--top", "0"], "must be 1 or more"),
    ]:
        result = gaeanet("predict", *arguments)
        assert result.code == 2, arguments
        assert message in result.err
        assert result.err.count("\n") == 1


def images_on_standard_input() -> dict[str, bytes]:
    image = Image.effect_noise((40, 30), 90)
    made = {}
    for name, mode in (("PPM", "RGB"), ("PPM", "L"), ("PPM", "1"), *((kind, "RGB") for kind in FORMATS)):
        buffer = io.BytesIO()
        image.convert(mode).save(buffer, name)
        made[f"{name} {mode}"] = buffer.getvalue()
    made["comment"] = b"P6\n# by hand\n2 2\n255\n" + bytes(range(10, 22))
    made["plain"] = b"P3 2 2 255\n" + b"9 " * 12
    return made


@pytest.mark.parametrize("name", images_on_standard_input())
def test_field_report_81_an_image_on_standard_input_is_told_by_what_it_is(
    gaeanet: Run, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(sys, "stdin", Input(images_on_standard_input()[name]))
    result = gaeanet("predict", tiny_run.run, "-", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["image"] == "standard input"


def test_field_report_81_names_on_standard_input_may_be_any_bytes(
    gaeanet: Run, tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = next((tiny_run.data / "val").rglob("*.JPEG")).read_bytes()
    names = [b"BMW.jpg", b"GIF8.jpg", b"P6", b"RIFF", b"M\xfcller.jpg", b" spaced .jpg"]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(photo)
    for ends in (b"\n", b"\r\n"):
        monkeypatch.setattr(sys, "stdin", Input(ends.join(names) + ends))
        result = gaeanet("predict", tiny_run.run, "-", "--json")
        assert result.code == 0, result.err
        rows = [json.loads(line)["image"] for line in result.out.splitlines()]
        assert rows == ["BMW.jpg", "GIF8.jpg", "P6", "RIFF", "M\\udcfcller.jpg", " spaced .jpg"]
    monkeypatch.setattr(sys, "stdin", Input(b"nowhere.jpg\nbell\x07\n"))
    result = gaeanet("predict", tiny_run.run, "-", "--json")
    assert result.code == 1
    assert "Traceback" not in result.err
    assert "\x07" not in result.err
