"""The borders of modules that one optimizer step crosses.

A file is *entered* when control passes into it from another of gaeanet's files, PyTorch's in between or not; a return
is no entry. Counted is what runs during `step(...)`. Two kinds of files are one each as far as the step is concerned:

- the network: models, kernels and the supernet. It is entered by the forward pass, and by the backward pass, in which
  autograd calls its functions one by one; consecutive calls from one statement are one entry.
- the input: examples, mixing, normalisation and the transfer to the device. They run before the step, except that of a
  shard in several micro-batches each is prepared when the loop asks for it: an entry each, and one for "no more".

What works on micro-batches (network, objective, meter, input) is entered once for each of them.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import tiny
import torch
from steps import Trainee
from torch import Tensor

import gaeanet
from gaeanet.config.experiment import Experiment, Hyperparameters
from gaeanet.optim.groups import Group
from gaeanet.optim.rates import Rates, Row
from gaeanet.runtime.processes import Processes
from gaeanet.search.architecture import Architecture
from gaeanet.search.job import build_supernet
from gaeanet.search.objective import SearchObjective
from gaeanet.training.learner import Learner, assemble
from gaeanet.training.step import Objective, step

ROOT = Path(gaeanet.__file__).parent
GROUPS = {
    "network": ("models/", "kernels/", "search/supernet.py"),
    "input": ("training/examples.py", "training/mixing.py", "data/images/transforms.py", "runtime/transfer.py"),
}
BATCH = 6


def file_of(code: CodeType) -> str | None:
    """The file of ours that some code is in, or the group that it belongs to."""
    path = Path(code.co_filename)
    if not path.is_relative_to(ROOT):
        return None
    name = path.relative_to(ROOT).as_posix()
    return next((group for group, names in GROUPS.items() if name.startswith(names)), name)


def entries(work: Callable[[], None]) -> Counter[str]:
    """How often `work` enters each file."""
    found: Counter[str] = Counter()
    last: tuple[object, ...] = ()

    def entered(frame: FrameType, event: str, _: Any) -> None:
        nonlocal last
        inner = file_of(frame.f_code) if event == "call" else None
        if inner is None:
            return
        caller = frame.f_back
        while caller is not None and file_of(caller.f_code) is None:
            caller = caller.f_back
        if caller is None or file_of(caller.f_code) == inner:
            return
        statement = inner, id(caller), caller.f_lineno
        found[inner] += not (inner == "network" and statement == last)
        last = statement

    sys.setprofile(entered)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found


def entries_of_a_step(learner: Learner, objective: Objective) -> dict[str, int]:
    """Of the second step, when nothing is made or compiled any more."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 3, (BATCH,), generator=generator)
    if isinstance(objective, SearchObjective) and objective.others is not None:
        objective.others = images.flip(0), labels.flip(0)
    rates = Rates.constant(Row(0.01, 0.1, 0.1), learner.device)
    found: Counter[str] = Counter()
    for _ in range(2):
        shard, now = objective.prepare(learner, images, labels), rates.at(learner.updates)
        found = entries(lambda: step(learner, shard, objective, now))
    assert found.pop("training/step.py", 0) == 0  # nothing calls back into it
    return dict(found)


def trainee(flat: bool, **values: Any) -> Trainee:
    hp = Hyperparameters(**{**tiny.NET, "global_batch_size": BATCH, "compile": False, "ema_decay": 0.0, **values})
    return Trainee(Experiment(hyperparameters=hp), flat=flat)


ONE = {"network": 2, "training/objective.py": 1, "evaluation/meter.py": 1}
AVERAGE, MUON = {"optim/ema.py": 1}, {"optim/muon.py": 1}


@pytest.mark.parametrize("flat", [False, True], ids=["own tensors", "flat buffers"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ONE),
        ({"mixup_alpha": 0.4, "cutmix_alpha": 1.0, "drop_path_prob": 0.3, "ema_decay": 0.9}, {**ONE, **AVERAGE}),
        ({"auxiliary": True, "freeze": "stem", "optimizer": "muon", "ema_decay": 0.9}, {**ONE, **AVERAGE, **MUON}),
    ],
    ids=["plain", "mixed, drop-path, average", "tower, frozen stem, Muon, average"],
)
def test_a_step_enters_at_most_six_files_each_once(
    values: dict[str, Any], expected: dict[str, int], flat: bool
) -> None:
    one = trainee(flat, **values)
    assert entries_of_a_step(one.learner, one.objective) == expected
    assert len(expected) <= 6


@pytest.mark.parametrize("flat", [False, True], ids=["own tensors", "flat buffers"])
def test_a_step_in_micro_batches_enters_them_once_each(flat: bool) -> None:
    values = {"mixup_alpha": 0.4, "optimizer": "muon", "ema_decay": 0.9, "max_batch_per_slot": 2}
    one = trainee(flat, **values)
    micro = {name: 3 * count for name, count in ONE.items()}
    expected = {**micro, **AVERAGE, **MUON, "input": 3 + 1}
    assert entries_of_a_step(one.learner, one.objective) == expected
    assert len(expected) == 6
