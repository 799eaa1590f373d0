"""The small copy of a data set: the same names and classes, smaller images."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from tiny import make_folder

from gaeanet.data.sources.open import open_location
from gaeanet.errors import RequestError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_a_small_copy_has_the_same_names_and_smaller_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import pack_small

    data = make_folder(tmp_path / "data")
    size = pack_small.pack(str(data), tmp_path / "small", 32, 85)
    before, after = open_location(str(data)), open_location(str(tmp_path / "small"))
    assert before.fingerprint == after.fingerprint
    assert size == sum(file.stat().st_size for file in (tmp_path / "small").rglob("*.JPEG")) < before.total_bytes
    for index in range(len(before.catalog.train)):
        old, new = (Image.open(io.BytesIO(bytes(source.read("train", index)))) for source in (before, after))
        assert min(new.size) == 32
        assert new.size[0] / new.size[1] == pytest.approx(old.size[0] / old.size[1], abs=0.05)
    with pytest.raises(RequestError, match="exists: name another directory"):
        pack_small.pack(str(data), tmp_path / "small", 32, 85)
    next((data / "val").rglob("*.JPEG")).write_bytes(b"not an image")
    with pytest.raises(RequestError, match=r"^val/n.*: remove it from"):
        pack_small.pack(str(data), tmp_path / "other", 32, 85)
    assert not (tmp_path / "other").exists()
