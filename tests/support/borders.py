"""Counts the borders of modules that one optimizer step crosses.

A file is *entered* when control passes into it from another of gaeanet's files, PyTorch's in between or not; a return
is no entry. Counted is what runs during `step(...)`. Two kinds of files are one each as far as the step is concerned:

- the network: models, kernels and the supernet. It is entered by the forward pass, and by the backward pass, in which
  autograd calls its functions one by one; consecutive calls from one statement are one entry.
- the input: examples, mixing, normalisation and the transfer to the device. They run before the step, except that of a
  shard in several micro-batches each is prepared when the loop asks for it: an entry each, and one for "no more".

What works on a micro-batch (network, objective, meter, input) is entered once for each of them.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import gaeanet
from gaeanet.kernels.build import OWN, availability
from gaeanet.optim.rates import StepRates
from gaeanet.training.examples import Shard
from gaeanet.training.learner import Learner
from gaeanet.training.step import Objective, step

ROOT = Path(gaeanet.__file__).parent
GROUPS = {
    "network": ("models/", "kernels/", "search/supernet.py"),
    "input": ("training/examples.py", "training/mixing.py", "data/images/transforms.py", "runtime/transfer.py"),
}

PASSES = 2 if availability() == OWN else 1
"""Of the network that run code of ours: forward, and backward unless PyTorch's kernels compute it."""


def file_of(code: CodeType) -> str | None:
    """The file of ours that some code is in, or the group that it belongs to."""
    path = Path(code.co_filename)
    if not path.is_relative_to(ROOT):
        return None
    name = path.relative_to(ROOT).as_posix()
    return next((group for group, names in GROUPS.items() if name.startswith(names)), name)


def entries(learner: Learner, shard: Shard, objective: Objective, rates: StepRates) -> dict[str, int]:
    """Makes a step; how often it enters each file."""
    found: Counter[str] = Counter()
    last: tuple[object, ...] = ()

    def entered(frame: FrameType, event: str, _: Any) -> None:
        nonlocal last
        inner = file_of(frame.f_code) if event == "call" else None
        caller = frame.f_back
        while caller is not None and file_of(caller.f_code) is None:
            caller = caller.f_back
        if inner is None or caller is None or file_of(caller.f_code) == inner:
            return
        statement = inner, id(caller), caller.f_lineno
        found[inner] += not (inner == "network" and statement == last)
        last = statement

    before = sys.getprofile()
    sys.setprofile(entered)
    try:
        step(learner, shard, objective, rates)
    finally:
        sys.setprofile(before)
    return dict(found)
