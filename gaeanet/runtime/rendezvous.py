"""The rendezvous of processes that were started together, without those of an earlier start."""

from __future__ import annotations

import hashlib
import time
import uuid

from torch.distributed.distributed_c10d import PrefixStore, Store


def fresh_store(store: Store, rank: int, world_size: int) -> Store:
    """A namespace of `store` that only the processes started together share.

    torchrun (seen in PyTorch 2.14) gives processes that it starts again the store of those before them, and with it the
    addresses of dead processes, which the new ones would try to connect to. Here each process writes a random token and
    votes for the hash of all tokens that it reads. The votes agree when every process has read the tokens of all live
    ones: one that still reads a dead process's token votes otherwise, and a dead one's vote cannot cover a new token.
    """
    store.set(f"token/{rank}", uuid.uuid4().hex)
    while True:
        tokens = [store.get(f"token/{other}") for other in range(world_size)]
        vote = hashlib.sha256(b" ".join(tokens)).hexdigest()
        store.set(f"vote/{rank}", vote)
        if all(store.get(f"vote/{other}").decode() == vote for other in range(world_size)):
            return PrefixStore(vote, store)
        time.sleep(0.01)


def refusal_of_any(store: Store, rank: int, world_size: int, refusal: str | None) -> str | None:
    """Why one of the processes refuses to start, the first one's reason first; None where all start.

    Every process calls this, with its own reason or None. The store is the first process's and ends with it, so where
    somebody refuses, it waits until all have read that.
    """
    store.set(f"refusal/{rank}", refusal or "")
    refusals = [store.get(f"refusal/{other}").decode() for other in range(world_size)]
    reasons = [reason for reason in refusals if reason]
    store.set(f"read/{rank}", "")
    if reasons and rank == 0:
        for other in range(world_size):
            store.get(f"read/{other}")
    return reasons[0] if reasons else None
