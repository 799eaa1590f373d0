"""Tiny photographs, experiments and runs, and what tests say of them."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from gaeanet.artifacts.checkpoint import load

COLOURS = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40), (40, 200, 200), (200, 40, 200)]


def jpeg(colour: tuple[int, int, int], size: tuple[int, int], noise: int = 0) -> bytes:
    """A JPEG of one colour, told from others of that colour by a little noise."""
    rng = np.random.default_rng(noise)
    pixels = np.clip(np.array(colour) + rng.integers(-12, 12, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def broken_exif() -> bytes:
    """A good JPEG whose EXIF block ends within a tag; it asks for a rotation too."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0" + struct.pack("<HHLL", 0x0112, 3, 1, 6) + b"\x0f\x01\x02\0\xff\xff\0\0"
    data = jpeg((200, 40, 40), (60, 40))
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def make_folder(root: Path, classes: int = 3, train: int = 6, val: int = 3) -> Path:
    """Class folders with `train` and `val` images each, one flat colour a class, 40 to 80 pixels."""
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for k in range(count):
                colour = COLOURS[label % len(COLOURS)]
                image = jpeg(colour, (40 + 8 * k % 41, 80 - 5 * k % 41), noise=label * 100 + k)
                (folder / f"{split}_{k}.JPEG").write_bytes(image)
    return root


NET: dict[str, Any] = {
    "num_classes": 3,
    "init_channels": 4,
    "layers": 3,
    "image_size": 32,
    "global_batch_size": 4,
    "epochs": 2,
    "warmup_epochs": 0,
    "learning_rate": 0.05,
    "color_jitter": False,
    "ema_decay": 0.9,
}


class TinyRun(NamedTuple):
    """A finished run and the images it was trained with."""

    run: Path
    data: Path


class Result:
    """What a command line did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def read_log(run_dir: Path, kind: str | None = None) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if kind is None or line["kind"] == kind]


def same_but_for_speed(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    """Whether two logs differ in nothing but the time that things took."""

    def strip(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]

    return strip(a) == strip(b)


def same_checkpoints(a: Path, b: Path) -> None:
    """Asserts that two runs' newest checkpoints are equal bit for bit."""
    tensors, state = load(a / "checkpoints" / "latest")
    others, other_state = load(b / "checkpoints" / "latest")
    assert tensors.keys() == others.keys()
    for group, values in tensors.items():
        assert values.keys() == others[group].keys()
        for name, value in values.items():
            assert torch.equal(value, others[group][name]), (group, name)
    assert state == other_state
