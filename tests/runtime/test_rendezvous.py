"""Processes that torchrun starts again do not meet the dead (field report 39)."""

from __future__ import annotations

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist
from launch import free_port

from gaeanet.runtime.rendezvous import fresh_store, refusal_of_any


def meet(store: dist.Store, world_size: int, late: int | None = None) -> list[bytes]:
    """What each of so many processes reads that the first one wrote, after they have met; one may be late."""
    read: dict[int, bytes] = {}

    def live(rank: int) -> None:
        if rank == late:
            time.sleep(0.3)
        # A client of its own, as each process has: a store serves one request at a time.
        mine = dist.TCPStore("127.0.0.1", store.port, is_master=False)  # type: ignore[attr-defined]
        met = fresh_store(dist.PrefixStore("x", mine), rank, world_size)
        if rank == 0:
            met.set("address", uuid.uuid4().hex)
        read[rank] = met.get("address")

    threads = [threading.Thread(target=live, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return [read[rank] for rank in range(world_size)]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_field_report_39_processes_started_again_read_nothing_of_the_dead(world_size: int) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)
    before: set[bytes] = set()
    for late in (None, 0, world_size - 1, None):
        read = meet(store, world_size, late)
        assert len(set(read)) == 1
        assert not before & set(read)
        before |= set(read)


@pytest.mark.parametrize("refusing", [set(), {0}, {2}, {1, 2}, {0, 1, 2}])
def test_all_refuse_what_one_refuses(refusing: set[int]) -> None:
    port, stores = free_port(), list[dist.TCPStore]()

    def process(rank: int) -> str | None:
        store = dist.TCPStore("127.0.0.1", port, 3, rank == 0, timedelta(seconds=20), wait_for_workers=False)
        if not refusing:  # then it lasts as long as the run; else the first process may end at once
            stores.append(store)
        return refusal_of_any(store, rank, 3, f"reason of {rank}" if rank in refusing else None)

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(process, range(3)))
    assert answers == [f"reason of {min(refusing)}" if refusing else None] * 3


def test_a_process_that_died_while_meeting_does_not_confuse_the_next() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)
    words = dist.PrefixStore("x", store)
    words.set("token/1", "of a dead process")
    words.set("vote/1", "for something")
    assert len(set(meet(store, 2, late=1))) == 1
