"""Tar shards that others wrote in webdataset's layout: `<key>.jpg` with `<key>.cls` or `<key>.json`.

Their headers are read once; after that every image is one read at its offset, as in our own shards.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from gaeanet.data.formats import IMAGE_SUFFIXES
from gaeanet.data.sources.archives import Member
from gaeanet.data.sources.entries import is_hidden_path, skipped_note
from gaeanet.data.sources.range_index import indexed
from gaeanet.data.sources.ranges import RangeSource
from gaeanet.data.sources.samples import Label, Samples
from gaeanet.data.sources.split_files import by_split, split_of
from gaeanet.errors import RequestError, reason
from gaeanet.runtime.names import shortened, shown

_KEY = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)", re.DOTALL)
_NAMES = ("filename", "file_name", "fname")
_ALONG = 4096
"""Bytes read with a header: a label that follows it, and often the next headers."""
_MOST_TEXT = 1 << 20
_BLOCK = 512


def open_webdataset(root: Path, files: list[str]) -> RangeSource:
    """The tar files `files` below `root`.

    Raises:
        RequestError: One is missing, cut short or damaged, or its samples have no labels or contradict each other.
    """
    units = by_split(files, root, "tar files")
    folders = sorted({(root / file).parent for file in files} | {root})
    tables = [path for folder in folders for path in sorted(folder.glob("*.json"))]
    expected = _expected_samples(tables, {os.path.basename(file) for file in files})
    return indexed(root, units, tables, lambda: _read(root, units, expected))


def _read(root: Path, units: dict[str, list[Path]], expected: dict[str, int]) -> RangeSource:
    samples = Samples(units)
    others: list[str] = []
    for split, paths in units.items():
        for number, path in enumerate(paths):
            count = 0
            for name, label, image in _samples(path, others):
                samples.add(split, name, label, number, image.offset, image.size)
                count += 1
            if count != expected.get(path.name, count):
                raise RequestError(
                    f"{path}: holds {count:,} samples, its index says {expected[path.name]:,}: download it again"
                )
    notes = [skipped_note(str(root), others, "member without an image", "members without an image")] if others else []
    return RangeSource(str(root), units, samples, notes)


def _samples(path: Path, others: list[str]) -> Iterator[tuple[str, Label | None, Member]]:
    """Name, label and image of each sample of a shard; names of members that belong to no image go to `others`."""
    key, parts, seen = "", dict[str, tuple[Member, bytes]](), set[str]()
    for member, content in chain(_members(path), [(None, b"")]):
        match = _KEY.fullmatch(member.name) if member else None
        begin = match[1] if match else ""
        if parts and begin != key:
            yield from _sample(path, key, parts, others)
            parts = {}
        if member is None or is_hidden_path(member.name):
            continue
        if match is None:
            others.append(member.name)
            continue
        if not parts:
            if begin in seen:
                raise RequestError(f"{path}: {shown(begin)}: two samples have this key: write the shard again")
            seen.add(begin)
        key, extension = begin, match[2].lower()
        if extension in parts:
            raise RequestError(f"{path}: holds two members called {shown(member.name)}: write the shard again")
        parts[extension] = member, content


def _sample(
    path: Path, key: str, parts: dict[str, tuple[Member, bytes]], others: list[str]
) -> Iterator[tuple[str, Label | None, Member]]:
    images = [extension for extension in parts if f".{extension.rsplit('.', 1)[-1]}" in IMAGE_SUFFIXES]

    def where() -> str:  # made only where it is needed: there are millions of samples
        return f"{path}: {shown(shortened(key, 100))}"

    if len(images) > 1:
        raise RequestError(f"{where()}: has {len(images)} images ({', '.join(map(shown, images[:3]))}), must have one")
    if not images:
        others.append(key)
        return
    label: Label | None = None
    name = f"{key}.{images[0].rsplit('.', 1)[-1]}"
    if "json" in parts:
        facts = _json(where, *parts["json"])
        label = _label(where, facts.get("label"))
        original = next((facts[field] for field in _NAMES if isinstance(facts.get(field), str)), None)
        name = original or name
    if "cls" in parts:
        member, content = parts["cls"]
        text = content.decode("utf-8", "replace").strip()
        if len(content) < member.size or not text or not text.isprintable() or len(text) > 200:
            raise RequestError(f"{where()}.cls: must hold a class's number or name, holds {shown(shortened(text))!r}")
        if label is not None and str(label) != text:
            raise RequestError(f"{where()}: its .cls says {shown(text)}, its .json {shown(str(label))}: one is wrong")
        label = text
    yield name, label, parts[images[0]][0]


def _json(where: Callable[[], str], member: Member, content: bytes) -> dict[str, Any]:
    try:
        if len(content) < member.size:
            raise ValueError(f"{member.size:,} bytes, at most {_MOST_TEXT:,} are read")
        facts = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where()}.json: not JSON ({reason(error)}): write the shard again") from None
    if not isinstance(facts, dict):
        raise RequestError(f"{where()}.json: must be an object with a label, is {shown(shortened(str(facts)))}")
    return facts


def _label(where: Callable[[], str], value: Any) -> Label | None:
    if value is None or (isinstance(value, (int, str)) and not isinstance(value, bool)):
        return value
    raise RequestError(f"{where()}.json: label must be a class's number or name, is {shown(shortened(str(value)))}")


def _members(path: Path) -> Iterator[tuple[Member, bytes]]:
    """The files in a tar, with the content of small ones that are no images.

    A data set has millions of members, and `tarfile` takes ten times as long for each.

    Raises:
        RequestError: It is no tar, damaged, or cut short.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            yield from _walk(path, file.fileno(), size)
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {reason(error)}") from None


def _walk(path: Path, file: int, size: int) -> Iterator[tuple[Member, bytes]]:
    begin, window = 0, b""

    def take(start: int, count: int) -> bytes:
        nonlocal begin, window
        if not begin <= start <= start + count <= begin + len(window):
            begin, window = start, os.pread(file, max(count, _ALONG), start)
        return window[start - begin : start - begin + count]

    at, long_name = 0, ""
    while True:
        header = take(at, _BLOCK)
        if len(header) < _BLOCK:
            raise RequestError(f"{path}: cut short, its end mark is missing: download it again")
        if header == bytes(_BLOCK):
            return
        try:
            length = _number(header[124:136])
            right = sum(header) - sum(header[148:156]) + 256 == int(header[148:156].strip(b" \0") or b"x", 8)
        except ValueError:
            right = False
        if not right:
            raise RequestError(f"{path}: damaged at byte {at:,}: not the header of a tar member: download it again")
        data, kind = at + _BLOCK, header[156:157]
        at = data + -(-length // _BLOCK) * _BLOCK
        if at > size:
            raise RequestError(f"{path}: cut short: ends within a member at byte {data - _BLOCK:,}: download it again")
        if kind == b"g":
            continue
        if kind in (b"L", b"x"):
            if length > _MOST_TEXT:
                raise RequestError(f"{path}: damaged at byte {data - _BLOCK:,}: a name of {length:,} bytes")
            text = take(data, length)
            long_name = _pax_path(text) if kind == b"x" else text.rstrip(b"\0").decode("utf-8", "surrogateescape")
            continue
        name = long_name or _name(header)
        long_name = ""
        if kind in (b"0", b"\0"):
            is_text = name.endswith((".cls", ".json")) and length <= _MOST_TEXT
            yield Member(name, data, length), take(data, length) if is_text else b""


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU's form of numbers beyond eight gigabytes
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")


def _pax_path(text: bytes) -> str:
    """The name that a pax header gives to the next member, "" for none."""
    name = ""
    while text:
        length = text.partition(b" ")[0]
        if not length.isdigit() or not 0 < int(length) <= len(text):
            return name
        key, _, value = text[len(length) + 1 : int(length) - 1].partition(b"=")
        if key == b"path":
            name = value.decode("utf-8", "surrogateescape")
        text = text[int(length) :]
    return name


def _expected_samples(tables: list[Path], present: set[str]) -> dict[str, int]:
    """Samples of each shard by the index beside them: timm's `_info.json`, or webdataset's `wids`.

    Raises:
        RequestError: An index names a shard that is not there.
    """
    expected: dict[str, int] = {}
    for path in tables:
        try:
            facts = json.loads(path.read_bytes()) if path.stat().st_size < 1 << 28 else {}
            named = dict[str, int]()
            if isinstance(facts, dict) and isinstance(facts.get("splits"), dict):
                for split in facts["splits"].values():
                    named |= zip(map(os.path.basename, split["filenames"]), map(int, split["shard_lengths"]))
            elif isinstance(facts, dict) and isinstance(facts.get("shardlist"), list):
                named |= {os.path.basename(shard["url"]): int(shard["nsamples"]) for shard in facts["shardlist"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise RequestError(f"{path}: not an index of shards ({reason(error)}): remove it") from None
        if missing := [name for name in named if name not in present and split_of(name) != "test"]:
            raise RequestError(
                f"{path.parent}/{shown(missing[0])}: missing, one of the {len(named)} shards that {path.name} names "
                f"({len(missing)} are missing): download it again"
            )
        expected |= named
    return expected
