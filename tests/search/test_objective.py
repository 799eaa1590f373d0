"""The objective of a search: the borders of modules that its steps cross, as `support/borders.py` counts them.

A search's step is two: the architecture's and the weights', of which the second may undo the first. So its objective
is entered for either and for the undoing (`begin`, `loss` of a micro-batch, `end`), the architecture for the mixture of
each pass, its step and its undoing. No other file is entered twice for one micro-batch.
"""

from __future__ import annotations

import pytest
import torch
from borders import PASSES, entries
from steps import searching

from gaeanet.optim.rates import Rates, Row

WEIGHTS = {"network": PASSES, "evaluation/meter.py": 1, "search/objective.py": 3}


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (
            "bilevel",
            {**WEIGHTS, "network": 2 * PASSES, "evaluation/meter.py": 2, "input": 1, "search/architecture.py": 4},
        ),
        ("single", {**WEIGHTS, "search/architecture.py": 3}),
    ],
)
@pytest.mark.parametrize("method", ["gaea", "pc-darts"])
def test_a_step_of_a_search_enters_at_most_five_files(method: str, level: str, expected: dict[str, int]) -> None:
    learner, objective = searching({"method": method, "level": level})
    images, labels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4) % 3
    objective.others = (images, labels) if level == "bilevel" else None
    shard = objective.prepare(learner, images, labels)
    rates = Rates.constant(Row(0.01), learner.device).at(learner.updates)
    assert entries(learner, shard, objective, rates) == expected
