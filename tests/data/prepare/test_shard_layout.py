"""Where images lie in shards: as `tarfile` and a plain loop would have it."""

from __future__ import annotations

import io
import os
import tarfile

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gaeanet.data.prepare.shard_layout import Layout, header
from gaeanet.data.sources.archives import members
from gaeanet.data.sources.catalog import Split

NAMES = st.text(st.characters(blacklist_characters="\0/", blacklist_categories=["Cs"]), min_size=1, max_size=130)


@given(NAMES, st.integers(0, 1 << 33))
def test_a_header_is_tarfiles(name: str, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    assert header(name, size) == member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def test_a_header_of_the_longest_usual_name_and_of_a_large_file_is_tarfiles() -> None:
    for name, size in (("a" * 100, 0), ("a" * 101, 1), ("é", 5), ("\udcff", 5), ("a", 8**11 - 1), ("a", 8**11)):
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, 0o644
        assert header(name, size) == member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


STEMS = st.sampled_from(["a", "a_b", "a.b", "a__1", "a__2", "é", "b" * 99])


@given(
    st.lists(st.tuples(STEMS, st.sampled_from([".jpg", ".png", ".JPEG"])), min_size=1, unique=True),
    st.integers(1, 900),
    st.data(),
)
def test_images_lie_where_tarfile_finds_them_each_under_its_own_key(
    names: list[tuple[str, str]], shard_bytes: int, data: st.DataObject
) -> None:
    count = len(names)
    samples = Split.of((f"c/{stem}{suffix}", k % 3) for k, (stem, suffix) in enumerate(names))
    sizes = np.array(data.draw(st.lists(st.integers(0, 1100), min_size=count, max_size=count)), np.int64)
    layout = Layout(samples, sizes, shard_bytes, spread=True)
    used: set[str] = set()
    keys = []
    for index in range(count):
        key = os.path.splitext(samples.name(index))[0].replace(".", "_")
        keys.append(f"{key}__{index}" if key in used else key)
        used.add(keys[-1])
    shards = [bytearray(int(length)) for length in layout.lengths]
    for index in range(count):
        head, tail = layout.around(index)
        begin = int(layout.offset[index]) - len(head)
        slot = head + bytes([index % 256]) * int(sizes[index]) + tail
        assert not any(shards[layout.shard[index]][begin : begin + len(slot)])  # no two overlap
        shards[layout.shard[index]][begin : begin + len(slot)] = slot
    found = []
    for number, shard in enumerate(shards):
        held = list(members(io.BytesIO(shard), 0, len(shard), "shard"))
        found += [member.name for member in held]
        assert len(shard) % tarfile.RECORDSIZE == 0
        assert sum(member.size for member in held if member.name.endswith(".jpg")) < shard_bytes + 1100
        images = layout.sequence[layout.shard[layout.sequence] == number].tolist()
        assert [(m.offset, m.size) for m in held[::2]] == [(layout.offset[k], sizes[k]) for k in images]
        assert [shard[m.offset : m.offset + m.size] for m in held[1::2]] == [b"%d" % (k % 3) for k in images]
    assert found == [f"{keys[k]}.{suffix}" for k in layout.sequence.tolist() for suffix in ("jpg", "cls")]
