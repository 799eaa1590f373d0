"""What processes that tests start do; a module of its own, so that they need not import torch."""

from __future__ import annotations

import os

from gaeanet.data.sources.source import Source


def read_all(source: Source) -> list[bytes]:
    """Every image, validation first."""
    return [
        data
        for split in ("val", "train")
        for data in source.fetch(split, range(len(source.catalog.split(split))))
        if isinstance(data, bytes)
    ]


def reads(source: Source) -> None:
    read_all(source)


def reads_and_compares(source: Source, expected: list[bytes]) -> None:
    os._exit(0 if read_all(source) == expected else 1)
