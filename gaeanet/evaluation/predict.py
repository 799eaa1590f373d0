"""`gaeanet predict`: what a trained network sees in images, as text or JSON lines."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gaeanet.artifacts.find import Trained
from gaeanet.data.images.decode import ImageError, to_pixels
from gaeanet.data.images.transforms import ValidationTransform, normalize
from gaeanet.data.sources.entries import MOST_BYTES, images_under, read_image
from gaeanet.errors import RequestError, RunError, reason
from gaeanet.runtime.files import is_directory
from gaeanet.runtime.names import shown
from gaeanet.runtime.processes import default_device
from gaeanet.runtime.strict_json import dumps

_IMAGE = re.compile(
    rb"\xff\xd8\xff|\x89PNG|GIF8[79]a|RIFF.{4}WEBP|P[1-6]\s+(#.*\n\s*)*\d+\s|P[1-6]#|[^\n]*[\0-\x08]", re.DOTALL
)
"""How images begin; no list of names does."""
_LONGEST_NAME = 1 << 16


class Image(NamedTuple):
    """An image to look at: what it is called, and its bytes, or why there are none."""

    name: str
    data: bytes | None
    fault: str = ""


def images_of(paths: Sequence[str]) -> Iterator[Image]:
    """The images that arguments of a command line name.

    Args:
        paths: Files, directories (all images in and below them), or `-`: standard input, which holds either an image
            or the names of files, one a line.

    Raises:
        RequestError: A path does not exist, or a directory holds no images.
    """
    for path in paths:
        if path == "-":
            yield from _from_standard_input()
        elif is_directory(folder := Path(path)):
            closed: list[OSError] = []
            inside = sorted(folder / name for name in images_under(folder, closed=closed.append))
            if not inside and not closed:
                raise RequestError(f"{path}: no images in this directory")
            yield from map(_read, inside)
            yield from (Image(str(e.filename), None, f"cannot be listed: {reason(e)}") for e in closed)
        else:
            yield _read(folder)


def _read(path: Path) -> Image:
    try:
        return Image(str(path), read_image(path))
    except (OSError, ValueError) as error:  # ValueError: a name that can be none
        return Image(str(path), None, f"cannot be read: {reason(error)}")


def _from_standard_input() -> Iterator[Image]:
    raw = sys.stdin.buffer if hasattr(sys.stdin, "buffer") else io.BytesIO(sys.stdin.read().encode())
    stream = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw)  # type: ignore[type-var]
    if _IMAGE.match(stream.peek(64)[:64]):
        data = stream.read(MOST_BYTES + 1)
        fault = f"too large: more than {MOST_BYTES:,} bytes" if len(data) > MOST_BYTES else ""
        yield Image("standard input", None if fault else data, fault)
        return
    # Line by line, so that names can come from a process that is still finding them.
    while name := stream.readline(_LONGEST_NAME):
        if len(name) == _LONGEST_NAME:
            raise RunError(f"standard input: a line of more than {_LONGEST_NAME:,} bytes, which is no file's name")
        if line := os.fsdecode(name).rstrip("\r\n"):
            yield _read(Path(line))


@torch.inference_mode()
def predict(
    trained: Trained, kind: str, images: Iterator[Image], *, batch: int = 16, top: int = 5
) -> Iterator[dict[str, Any]]:
    """What the network predicts for each image, in order, in plain values.

    An image that does not decode gives a row with `error` in place of `top`.

    Args:
        batch: Images of a batch.
        top: Guesses to give.
    """
    device = default_device()
    network = trained.network(kind, device)
    transform = ValidationTransform(trained.hyperparameters.image_size, trained.crop_fraction)
    keys, names = trained.classes, trained.display_names
    top = min(top, len(names))

    def flush(rows: list[dict[str, Any]], pixels: list[torch.Tensor]) -> Iterator[dict[str, Any]]:
        if pixels:
            probabilities = network(normalize(torch.stack(pixels).to(device))).softmax(1)
            best = probabilities.topk(top, dim=1)
            answers = iter(zip(best.indices.tolist(), best.values.tolist()))
        for row in rows:
            if "error" not in row:
                row["top"] = [
                    {
                        "index": index,
                        "class": shown(keys[index]) if keys else None,
                        "name": names[index],
                        "probability": probability,
                    }
                    for index, probability in zip(*next(answers))
                ]
            yield row

    rows: list[dict[str, Any]] = []
    pixels: list[torch.Tensor] = []
    for image in images:
        row: dict[str, Any] = {"image": shown(image.name)}
        try:
            if image.data is None:
                raise ImageError(image.fault)
            pixels.append(transform(to_pixels(image.data)))
        except ImageError as error:
            row["error"] = str(error)
        rows.append(row)
        if len(rows) == batch:
            yield from flush(rows, pixels)
            rows, pixels = [], []
    yield from flush(rows, pixels)


def show(rows: Iterator[dict[str, Any]], as_json: bool) -> None:
    """Prints the rows as they come; what does not decode is also reported on stderr.

    Raises:
        RunError: At the end, where some images did not decode.
    """
    count = failed = 0
    for row in rows:
        count += 1
        if "error" in row:
            failed += 1
            print(shown(f"gaeanet: {row['image']}: {row['error']}"), file=sys.stderr)
        if as_json:
            print(dumps(row), flush=True)
        elif "error" not in row:
            print(row["image"])
            for guess in row["top"]:
                print(f"  {100 * guess['probability']:6.2f} %  {guess['name']}")
            sys.stdout.flush()
    if failed:
        raise RunError(f"{failed} of {count} images could not be read")
