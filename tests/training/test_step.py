"""One optimizer step: the borders of modules that it crosses, as `support/borders.py` counts them."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from borders import PASSES, entries
from steps import Trainee

from gaeanet.config.experiment import Experiment, Hyperparameters
from gaeanet.optim.rates import Rates, Row
from gaeanet.runtime.processes import Processes

BATCH = 6
ONE = {"network": PASSES, "training/objective.py": 1, "evaluation/meter.py": 1}
"""A micro-batch: forward and backward, loss, the sums of the log."""

AVERAGE, MUON = {"optim/ema.py": 1}, {"optim/muon.py": 1}


def entries_of_a_step(flat: bool, **values: Any) -> dict[str, int]:
    hp = Hyperparameters(**{**tiny.NET, "global_batch_size": BATCH, "compile": False, "ema_decay": 0.0, **values})
    processes = Processes()
    processes.device = torch.device("cpu")  # where the backward pass runs in this thread, which is the one watched
    one = Trainee(Experiment(hyperparameters=hp), processes=processes, flat=flat)
    images, labels = torch.zeros(BATCH, 3, 32, 32, dtype=torch.uint8), torch.arange(BATCH) % 3
    one.step(images, labels, 0.01)  # makes and compiles what the first step needs
    shard = one.objective.prepare(one.learner, images, labels)
    rates = Rates.constant(Row(0.01, 0.1, 0.1), one.learner.device).at(one.learner.updates)
    return entries(one.learner, shard, one.objective, rates)


@pytest.mark.parametrize("flat", [False, True], ids=["own tensors", "flat buffers"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ONE),
        ({"mixup_alpha": 0.4, "cutmix_alpha": 1.0, "drop_path_prob": 0.3, "ema_decay": 0.9}, {**ONE, **AVERAGE}),
        ({"auxiliary": True, "freeze": "stem", "optimizer": "muon", "ema_decay": 0.9}, {**ONE, **AVERAGE, **MUON}),
    ],
    ids=["plain", "mixed images, drop-path, average", "tower, frozen stem, Muon, average"],
)
def test_a_step_enters_at_most_five_files_each_once(
    values: dict[str, Any], expected: dict[str, int], flat: bool
) -> None:
    assert entries_of_a_step(flat, **values) == expected


@pytest.mark.parametrize("flat", [False, True], ids=["own tensors", "flat buffers"])
def test_a_step_in_micro_batches_enters_at_most_six(flat: bool) -> None:
    values = {"mixup_alpha": 0.4, "optimizer": "muon", "ema_decay": 0.9, "max_batch_per_slot": 2}
    micro_batches = {name: 3 * count for name, count in ONE.items()}
    assert entries_of_a_step(flat, **values) == {**micro_batches, "input": 3 + 1, **AVERAGE, **MUON}
