"""A stand-in for a GPU's recorder of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch

from gaeanet.training import recorded
from gaeanet.training.recorded import Recorder


class Tape:
    """Notes what was recorded, and runs it again when it is replayed."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def record(self, work: Callable[[], None], pool: object) -> Callable[[], None]:
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            work()

        return replay


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Tape:
    """Lets a CPU record steps."""
    tape = Tape()

    @contextmanager
    def fork(devices: list[torch.device]) -> Iterator[None]:
        state = torch.get_rng_state()
        yield
        torch.set_rng_state(state)

    monkeypatch.setattr(recorded, "record", tape.record)
    monkeypatch.setattr(recorded, "beside", nullcontext)
    monkeypatch.setattr(torch.random, "fork_rng", fork)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(Recorder, "_wait", lambda self: None)
    return tape
