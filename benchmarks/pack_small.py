"""Images small enough to travel: the same class folders and names, the shorter side reduced, JPEG.

    python benchmarks/pack_small.py /path/to/imagenette runs/imagenette-160

Names stay, and so do the held-out images (`data.minival`). 160 pixels are the size of the leaderboard's own files. The
pixels are not those of the original: with a result, say which images it was made with.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from pathlib import Path

from PIL import Image

from gaeanet.config.data import Data
from gaeanet.data.images.decode import to_pixels
from gaeanet.data.sources.open import open_location
from gaeanet.data.sources.source import Contents
from gaeanet.errors import GaeanetError, RequestError
from gaeanet.runtime.files import exists
from gaeanet.runtime.names import inside
from gaeanet.runtime.progress import WorkProgress


def reduced(data: Contents, side: int, quality: int) -> bytes:
    """An image as a JPEG whose shorter side is `side` pixels, or as long as it was where that is less.

    It is decoded as for training, odd kinds of images included.
    """
    picture = Image.fromarray(to_pixels(data).permute(1, 2, 0).contiguous().numpy())
    scale = side / min(picture.size)
    if scale < 1:
        width, height = (max(side, round(scale * length)) for length in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def pack(source: str, destination: Path, side: int, quality: int) -> int:
    """Writes the copy and returns its size in bytes; under its final name, it is complete.

    Raises:
        RequestError: The destination exists, or an image cannot be read.
    """
    if exists(destination):
        raise RequestError(f"{destination}: exists: name another directory, or remove it")
    images = open_location(source, Data())
    partial = destination.with_name(f"{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    size = 0
    splits = {"train": images.catalog.train, "val": images.catalog.val}
    with WorkProgress(sum(map(len, splits.values())), "images", 1) as progress:
        for split, samples in splits.items():
            for number in range(len(samples)):
                name = samples.name(number)
                try:
                    data = reduced(images.read(split, number), side, quality)
                except GaeanetError as error:
                    raise RequestError(f"{split}/{name}: {error}: remove it from {source} and start again") from None
                file = inside(partial / split, name)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
                size += len(data)
                progress.add(1)
    partial.rename(destination)
    return size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="images in any form that gaeanet reads")
    parser.add_argument("destination", type=Path)
    parser.add_argument("--side", type=int, default=160, help="of the shorter side, in pixels (default: 160)")
    parser.add_argument("--quality", type=int, default=85, help="of the JPEG files (default: 85)")
    arguments = parser.parse_args()
    try:
        size = pack(arguments.source, arguments.destination, arguments.side, arguments.quality)
    except GaeanetError as error:
        print(f"pack_small: {error}", file=sys.stderr)
        return error.exit_code
    print(f"wrote {arguments.destination}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
