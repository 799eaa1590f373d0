"""`gaeanet prepare --verify`: decodes every image, on all cores, and reports what does not decode and what is odd."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from gaeanet.data.prepare.prepare import open_material
from gaeanet.data.sources.catalog import check_imagenet_is_whole
from gaeanet.data.sources.source import Source
from gaeanet.errors import RunError, counted
from gaeanet.runtime.host import usable_cores
from gaeanet.runtime.names import shown
from gaeanet.runtime.progress import WorkProgress

_CHUNK = 256
"""Images that a process looks at before it reports."""
_NAMED = 20
"""Images that a report names; the rest are counted."""


def verify(location: str, columns: Sequence[str] | None = None) -> None:
    """Decodes every image at `location` and prints what is odd about them.

    Args:
        columns: Names of a table's columns of images, labels and splits; None to find them.

    Raises:
        RequestError: The images cannot be read.
        RunError: Some do not decode; they have been named.
    """
    source = open_material(location, columns)
    check_imagenet_is_whole(source.catalog, location)
    total = sum(len(source.catalog.split(split)) for split in ("train", "val"))
    odd: Counter[str] = Counter()
    bad = []
    with WorkProgress(total, "images", 1) as progress:
        for looked, findings in _looked_at(source):
            for image in findings:
                odd.update(image.oddities)
                if image.fault:
                    bad.append(f"{image.path}: {image.fault}")
            progress.add(looked)
    print(f"{shown(location)}: {total - len(bad):,} of {total:,} images decode")
    for kind, count in sorted(odd.items()):
        print(f"  {count:,} {kind}")
    for line in bad[:_NAMED]:
        print(f"  {shown(line)}")
    if bad:
        more = f" ({len(bad) - _NAMED} more are not named)" if len(bad) > _NAMED else ""
        raise RunError(
            f"{location}: {counted(len(bad), 'image')} cannot be decoded, the first is {bad[0]}{more}: "
            "replace or remove them"
        )


class _Finding(NamedTuple):
    path: str
    oddities: list[str]
    fault: str | None
    """Why it does not decode."""


_source: Source | None = None
"""What a checking process reads from."""


def _take_source(source: Source) -> None:
    global _source
    _source = source


def _look(part: tuple[str, list[int]]) -> list[_Finding]:
    """The findings in these images of a split."""
    from gaeanet.data.images.decode import ImageError, oddities, to_pixels

    assert _source is not None
    split, indices = part
    findings = []
    for index, data in zip(indices, _source.fetch(split, indices)):
        try:
            to_pixels(data)
        except ImageError as error:
            findings.append(_Finding(_source.path(split, index), [], str(error)))
        else:
            assert isinstance(data, bytes)
            if odd := oddities(data):
                findings.append(_Finding(_source.path(split, index), odd, None))
    return findings


def _looked_at(source: Source) -> Iterator[tuple[int, list[_Finding]]]:
    """For each part of the images: how many there are in it, and those that are odd."""
    parts = [
        (split, order[start : start + _CHUNK].tolist())
        for split, order in ((split, source.reading_order(split)) for split in ("train", "val"))
        for start in range(0, len(order), _CHUNK)
    ]
    context = multiprocessing.get_context("forkserver")  # a bucket's client does not survive a fork
    context.set_forkserver_preload(["gaeanet.data.loading.preload"])  # torch is imported once, not once a core
    with ProcessPoolExecutor(usable_cores(), context, initializer=_take_source, initargs=(source,)) as pool:
        for (_, indices), findings in zip(parts, pool.map(_look, parts)):
            yield len(indices), findings
