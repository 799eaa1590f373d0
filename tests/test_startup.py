"""A quick start leaves garbage collection as it was."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gaeanet.startup import importing


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.enable()


@pytest.mark.parametrize("enabled", [True, False])
def test_collection_pauses_while_modules_are_imported(
    enabled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "never_seen_before.py").write_text("made = [[]]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    frozen = gc.get_freeze_count()
    if not enabled:
        gc.disable()
    with importing():
        assert not gc.isenabled()
        import never_seen_before

        assert never_seen_before
    assert gc.isenabled() == enabled
    assert gc.get_freeze_count() > frozen
    del sys.modules["never_seen_before"]


def test_nothing_is_set_apart_where_nothing_was_imported() -> None:
    frozen = gc.get_freeze_count()
    with pytest.raises(KeyError), importing():
        raise KeyError
    assert gc.isenabled()
    assert gc.get_freeze_count() <= frozen  # what was set apart may still die
