"""`gaeanet predict`: what a trained network sees in images, in words or JSON lines."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gaeanet.artifacts.find import Trained
from gaeanet.data.formats import IMAGE_SUFFIXES
from gaeanet.data.images.decode import ImageError, to_pixels
from gaeanet.data.images.transforms import ValidationTransform, normalize
from gaeanet.errors import RequestError, RunError, reason
from gaeanet.runtime.names import shown
from gaeanet.runtime.processes import default_device
from gaeanet.runtime.strict_json import dumps


class Image(NamedTuple):
    """An image to look at: what it is called, and its bytes, or why there are none."""

    name: str
    data: bytes | None
    fault: str = ""


def images_of(places: Sequence[str]) -> Iterator[Image]:
    """The images that the words of a command line name.

    Args:
        places: Files, directories (all images in and below them), or `-`: standard input, which holds either an image
            or the names of files, one a line.

    Raises:
        RequestError: A place does not exist, or a directory holds no images.
    """
    for place in places:
        if place == "-":
            yield from _from_standard_input()
        elif (folder := Path(place)).is_dir():
            inside = sorted(
                p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")
            )
            if not inside:
                raise RequestError(f"{place}: no images in this directory")
            yield from map(_read, inside)
        else:
            yield _read(folder)


def _read(path: Path) -> Image:
    try:
        return Image(str(path), path.read_bytes())
    except OSError as error:
        return Image(str(path), None, f"cannot be read: {reason(error)}")


def _from_standard_input() -> Iterator[Image]:
    stream = sys.stdin.buffer if hasattr(sys.stdin, "buffer") else io.BytesIO(sys.stdin.read().encode())
    first = stream.readline()
    try:
        line = first.decode("utf-8").strip()
        names = "\0" not in line
    except UnicodeDecodeError:
        names = False
    if not names:
        yield Image("standard input", first + stream.read())
        return
    # Line by line, so that names can come from a process that goes on finding them.
    while first:
        if line := first.decode("utf-8", "surrogateescape").strip():
            yield _read(Path(line))
        first = stream.readline()


@torch.inference_mode()
def predict(
    trained: Trained, kind: str, images: Iterator[Image], *, batch: int = 16, top: int = 5
) -> Iterator[dict[str, Any]]:
    """What the network says of each image, in order, in plain values.

    An image that does not decode gives a row with `error` in place of `top`.

    Args:
        batch: Images at once.
        top: Guesses to give.
    """
    device = default_device()
    network = trained.network(kind, device)
    transform = ValidationTransform(trained.hyperparameters.image_size, trained.crop_share)
    keys, names = trained.classes, trained.display_names
    top = min(top, len(names))

    def flush(rows: list[dict[str, Any]], pixels: list[torch.Tensor]) -> Iterator[dict[str, Any]]:
        if pixels:
            shares = network(normalize(torch.stack(pixels).to(device))).softmax(1)
            best = shares.topk(top, dim=1)
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
    """Prints the rows as they come; what does not decode is also said on standard error.

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
