"""Where each image lies in the shards: known from names and sizes alone, before anything is written.

Training samples are spread over the shards by one permutation of all of them, so that any few neighbouring shards hold
all classes. What is written depends on the images alone: written twice, it is bit-exact.
"""

from __future__ import annotations

import os
import tarfile

import numpy as np
from numpy.typing import NDArray

from gaeanet.data.sources import order
from gaeanet.data.sources.catalog import Split

_BLOCK = tarfile.BLOCKSIZE
_SIZE, _CHECKSUM = slice(124, 135), slice(148, 156)
"""Fields of a tar header, behind its name."""


class Layout:
    """The shards of a split: tar files in which each image is followed by its label.

    Args:
        samples: The split.
        sizes: Bytes of each image, int64 (samples,).
        shard_bytes: A shard is closed when its images have this many bytes.
        spread: Whether the samples are permuted.

    Attributes:
        sequence: The samples in the order of the shards, int64 (samples,).
        sizes: Bytes of each image, int64 (samples,).
        shard: Shard of each image, int32 (samples,).
        offset: Where its bytes begin there, int64 (samples,).
        lengths: Bytes of each shard, int64 (shards,).
    """

    def __init__(self, samples: Split, sizes: NDArray[np.int64], shard_bytes: int, spread: bool) -> None:
        count = len(samples)
        self._samples = samples
        self.sizes = sizes
        self.sequence = order.epoch_order(count, 0, -1) if spread else np.arange(count)
        self._renamed, heads = _keys(samples)
        slots = (2 * heads + _padded(sizes) + _BLOCK)[self.sequence]
        filled = np.cumsum(sizes[self.sequence]) - sizes[self.sequence]
        number = np.unique(filled // shard_bytes, return_inverse=True)[1].astype(np.int32)
        ends = np.cumsum(slots)
        first = np.searchsorted(number, np.arange(int(number[-1]) + 1))
        begins = (ends - slots)[first]
        self.shard, self.offset = np.empty(count, np.int32), np.empty(count, np.int64)
        self.shard[self.sequence] = number
        self.offset[self.sequence] = ends - slots - begins[number] + heads[self.sequence]
        used = np.append(begins[1:], ends[-1]) - begins + 2 * _BLOCK  # two empty blocks end a tar
        self.lengths = -(-used // tarfile.RECORDSIZE) * tarfile.RECORDSIZE

    def parts(self) -> list[NDArray[np.int64]]:
        """The samples of each shard, in its order."""
        return np.split(self.sequence, np.flatnonzero(np.diff(self.shard[self.sequence])) + 1)

    def around(self, index: int) -> tuple[bytes, bytes]:
        """What is written before an image's bytes, and what after them."""
        key, size, label = self._key(index), int(self.sizes[index]), str(int(self._samples.labels[index])).encode()
        tail = bytes(-size % _BLOCK) + header(f"{key}.cls", len(label)) + label.ljust(_BLOCK, b"\0")
        return header(f"{key}.jpg", size), tail

    def _key(self, index: int) -> str:
        return self._renamed.get(index) or _key_of(self._samples.name(index))


def _padded(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return -(-sizes // _BLOCK) * _BLOCK


def _key_of(name: str) -> str:
    """A sample's name without suffix; dots would end a key, so they become underscores."""
    return os.path.splitext(name)[0].replace(".", "_")


def _keys(samples: Split) -> tuple[dict[int, str], NDArray[np.int64]]:
    """The keys of samples that would have another's, and the bytes of each sample's header, (samples,).

    A million keys would cost a hundred megabytes; their hashes tell which few might be equal.
    """
    count = len(samples)
    hashes, heads = np.empty(count, np.int64), np.empty(count, np.int64)
    for index in range(count):
        key = _key_of(samples.name(index))
        hashes[index], heads[index] = hash(key), _header_length(key)
    by_hash = np.argsort(hashes, kind="stable")
    equal = hashes[by_hash][1:] == hashes[by_hash][:-1]
    suspects = {*by_hash[1:][equal].tolist(), *by_hash[:-1][equal].tolist()}
    while True:
        renamed, used = dict[int, str](), set[str]()
        for index in sorted(suspects):
            key = _key_of(samples.name(index))
            if key in used:
                key = renamed[index] = f"{key}__{index}"
            used.add(key)
        new = set(np.flatnonzero(np.isin(hashes, [hash(key) for key in renamed.values()])).tolist()) - suspects
        if not new:
            break
        suspects |= new
    for index, key in renamed.items():
        heads[index] = _header_length(key)
    return renamed, heads


def _header_length(key: str) -> int:
    name = f"{key}.jpg"
    return _BLOCK if _is_plain(name, 0) else len(header(name, 0))


def _is_plain(name: str, size: int) -> bool:
    return name.isascii() and len(name) <= 100 and size < 8**11


def header(name: str, size: int) -> bytes:
    """The header of a tar member, as `tarfile` makes it, which takes ten times as long for a usual name."""
    if not _is_plain(name, size):
        return _info(name, size).tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    text, digits = name.encode(), b"%011o" % size
    block = bytearray(_PLAIN)
    block[: len(text)] = text
    block[_SIZE] = digits
    block[_CHECKSUM] = b"%06o\0 " % (_SUM + sum(text) + sum(digits))
    return bytes(block)


def _info(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member


_PLAIN = bytearray(_info("", 0).tobuf(tarfile.PAX_FORMAT))
_PLAIN[_SIZE], _PLAIN[_CHECKSUM] = bytes(11), b" " * 8
_SUM = sum(_PLAIN)
