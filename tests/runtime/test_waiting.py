"""Field report 75: beside other jobs a run slows down about as its share of the machine does."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gaeanet.runtime import waiting
from gaeanet.runtime.load import Sample
from gaeanet.runtime.waiting import Sleepers, waiting_by_load

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libgomp is Linux's OpenMP")


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in waiting.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def cpu_seconds() -> float:
    """Of this process, for operations with pauses in which the second thread waits for the next one."""
    numbers = torch.ones(100_000)
    began = time.process_time()
    for _ in range(20):
        numbers.add_(1)
        time.sleep(0.002)
    assert torch.equal(numbers, torch.full_like(numbers, 21))
    return time.process_time() - began


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="with one core OpenMP does not wait actively")
def test_field_report_75_threads_sleep_soon_while_there_are_more_than_cores() -> None:
    cpu_seconds()
    active = cpu_seconds()
    for _ in range(2):
        sleepers = Sleepers()
        passive = cpu_seconds()
        sleepers.wake()
        again = cpu_seconds()
        assert passive < 0.5 * active
        assert again > 2 * passive


class Recorded:
    """Stands in for the sleepers."""

    there = 0

    def __init__(self) -> None:
        Recorded.there += 1

    def wake(self) -> None:
        Recorded.there -= 1


def test_sleepers_come_with_the_load_and_go_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fractions of the time that this process has waited for a core, and of the cores that others used."""
    there = list[int]()

    def loads(ended: threading.Event) -> Iterator[tuple[float, float]]:
        for load in [
            (0.1, 0.5),
            (0.5, 0.1),
            (0.5, 0.5),
            (0.15, 0.15),
            (0.5, 0.05),
            (0.3, 0.3),
            (0.05, 0.5),
            (0.3, 0.3),
        ]:
            yield load
            there.append(Recorded.there)

    monkeypatch.setattr(waiting, "Sleepers", Recorded)
    monkeypatch.setattr(waiting, "_loads", loads)
    with waiting_by_load():
        end = time.monotonic() + 20
        while len(there) < 8 and time.monotonic() < end:
            time.sleep(0.01)
    assert there == [0, 0, 1, 1, 0, 1, 0, 1]
    assert Recorded.there == 0


def test_the_load_is_what_others_do_and_how_long_this_process_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([(Sample(10.0, 100.0, 5.0), 3.0), (Sample(12.0, 104.0, 6.0), 3.5), (Sample(13.0, 104.5, 6.5), 3.5)])
    monkeypatch.setattr(waiting, "_LOOK", 0.0)
    monkeypatch.setattr(waiting, "_now", lambda: next(moments))
    monkeypatch.setattr(waiting, "usable_cores", lambda: 2)
    loads = waiting._loads(threading.Event())
    assert next(loads) == (0.25, 0.75)
    assert next(loads) == (0.0, 0.0)


@pytest.mark.parametrize("setting", [*waiting.SETTINGS, None])
def test_nobody_looks_where_it_is_decided(monkeypatch: pytest.MonkeyPatch, setting: str | None) -> None:
    if setting:
        monkeypatch.setenv(setting, "1")
    else:
        torch.set_num_threads(1)
    before = threading.active_count()
    with waiting_by_load():
        assert threading.active_count() == before


@pytest.mark.parametrize("missing", ["_SCHEDULER", "_LOADED"])
def test_another_system_waits_as_it_does(monkeypatch: pytest.MonkeyPatch, missing: str, tmp_path: Path) -> None:
    monkeypatch.setattr(waiting, "_LOOK", 0.01)
    monkeypatch.setattr(waiting, "BUSY", -1.0)  # so that sleepers would be wanted
    (tmp_path / "_LOADED").write_text("7f0000000000-7f0000001000 r-xp 00000000 fe:00 1 /lib/libc.so.6\n")
    monkeypatch.setattr(waiting, missing, tmp_path / missing)
    before = threading.active_count()
    with waiting_by_load():
        time.sleep(0.2)
        assert threading.active_count() == before
