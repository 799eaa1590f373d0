"""How processes that were started together find each other and nobody else."""

from __future__ import annotations

import hashlib
import time
import uuid

from torch.distributed.distributed_c10d import PrefixStore, Store


def fresh_store(store: Store, rank: int, world_size: int) -> Store:
    """A part of `store` in which the processes that were started together are alone.

    torchrun (seen in PyTorch 2.14) gives processes that it starts again the store of those before them, and with it the
    addresses of the dead, which the new ones would try to connect to. Here each process leaves a word of its own and
    votes for the hash of all words that it sees. The votes agree when every process has seen the words of all the
    living: one that still sees a dead one's word votes otherwise, and a dead one's vote cannot hold a new word.
    """
    store.set(f"word/{rank}", uuid.uuid4().hex)
    while True:
        words = [store.get(f"word/{other}") for other in range(world_size)]
        vote = hashlib.sha256(b" ".join(words)).hexdigest()
        store.set(f"vote/{rank}", vote)
        if all(store.get(f"vote/{other}").decode() == vote for other in range(world_size)):
            return PrefixStore(vote, store)
        time.sleep(0.01)
