"""A search's steps, replayed: as the launched ones, for each method and level."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from steps import searching
from tape import Tape
from torch import Tensor

from gaeanet.optim.rates import Rates, Row
from gaeanet.training.recorded import Recorder
from gaeanet.training.step import step

BATCH, SIZE = 4, 32


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 3, (BATCH,), generator=generator)


@pytest.mark.parametrize(
    "search",
    [
        {"method": "gaea", "level": "bilevel", "architecture_learning_rate": 1.0},
        {"method": "pc-darts", "level": "single"},
        {"method": "darts", "channel_divisor": 1, "architecture_learning_rate": 0.1},
    ],
    ids=["gaea, bilevel", "pc-darts, single", "darts"],
)
def test_replayed_steps_are_those_that_are_launched(tape: Tape, search: dict[str, Any]) -> None:
    """The architecture rests in the first step, as in a warm-up, and is slower in the last, as after a rewind."""
    launched, replayed = searching(search), searching(search)
    rates = Rates.constant(Row(0.01), torch.device("cpu"))
    recorder = Recorder(*replayed, rates)
    for number, (moves, scale) in enumerate([(False, 1.0), (True, 1.0), (True, 1.0), (True, 0.5)]):
        for learner, objective in (launched, replayed):
            objective.moves, objective.rate_scale = moves, scale
            if moves and search.get("level") != "single":
                objective.others = batch(100 + number)
            torch.manual_seed(number)
            if learner is launched[0]:
                step(learner, objective.prepare(learner, *batch(number)), objective, rates.at(learner.updates))
            else:
                recorder.step(*batch(number))
    assert (tape.recorded, tape.replayed) == (3, 4)
    for one, other in zip(launched[1].architecture.saved().values(), replayed[1].architecture.saved().values()):
        assert torch.equal(one, other)
    for name, value in launched[0].network.state_dict().items():
        assert torch.equal(replayed[0].network.state_dict()[name], value), name
