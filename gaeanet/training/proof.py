"""A GPU's fast ways prove themselves where they run, before a run trusts them.

A process of its own (`trial.py`) trains the run's network with our kernels and with PyTorch's, and replays steps beside
launched ones. A crash, a wrong number or a compilation that does not end is then that process's, and the run takes the
next way. What the kernels were compiled to stays in Triton's cache; the verdict is kept beside the CPU kernels, under
all that it depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gaeanet import __version__
from gaeanet.config.experiment import Hyperparameters
from gaeanet.kernels.build import Unavailable, cache_directory
from gaeanet.kernels.gpu.availability import obstacle
from gaeanet.runtime.devices import DTYPES
from gaeanet.runtime.files import replace_text
from gaeanet.runtime.ranks import without_ranks

SECONDS = 300
"""The longest that a trial may take; compiling takes most of it."""


class Doubts(NamedTuple):
    """Why a way is not to be taken, briefly; None where it is proven.

    Attributes:
        kernels: Our kernels in place of PyTorch's.
        graph: Steps that are replayed in place of launched ones.
    """

    kernels: str | None
    graph: str | None


def doubts(
    hp: Hyperparameters, precision: str, device: torch.device, micro_batch: int, graph: str | None = None
) -> Doubts:
    """Why not to take our kernels, and why not replayed steps, for the network of `hp`.

    The first call for a network on a kind of GPU takes as long as compiling; the verdict is remembered, unless the
    trial failed, which may be of the day: a full GPU, a busy machine.

    Args:
        micro_batch: Images of a micro-batch in the run, for which the kernels are compiled.
        graph: Why not replayed steps, where that is known already.
    """
    why_not = obstacle(device, DTYPES[precision])
    if why_not is not None and graph is not None:
        return Doubts(why_not, graph)
    request = {
        "hyperparameters": hp.spelled_out(),
        "precision": precision,
        "device": str(device),
        "micro_batch": micro_batch,
        "kernels": why_not is None,
        "graph": graph is None,
    }
    try:
        file = cache_directory() / f"proof-{_fingerprint(request, device)}.json"
    except Unavailable as error:
        return Doubts(str(error), str(error))
    verdict = _remembered(file)
    if verdict is None:
        try:
            verdict = _tried(request)
        except TrialFailed as error:
            return Doubts(why_not or str(error), graph or str(error))
        replace_text(file, json.dumps(verdict._asdict()))
    return Doubts(why_not or verdict.kernels, graph or verdict.graph)


class TrialFailed(Exception):
    """A trial came to no verdict; the message briefly says why."""


def _remembered(file: Path) -> Doubts | None:
    """The verdict in a file; None where there is none."""
    try:
        return Doubts(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # damaged: the trial is repeated
        return None


def _tried(request: dict[str, Any]) -> Doubts:
    """The verdict of a process of its own; raises `TrialFailed`."""
    command = [sys.executable, "-m", "gaeanet.training.trial"]
    try:
        ended = subprocess.run(
            command,
            env=without_ranks(os.environ),
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise TrialFailed(f"the trial took more than {SECONDS} s") from None
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
        raise TrialFailed(f"the trial failed: {last[:200]}")
    return Doubts(**json.loads(ended.stdout.splitlines()[-1]))


def _fingerprint(request: dict[str, Any], device: torch.device) -> str:
    """Of all that a verdict depends on: versions, our code of kernels, networks and steps, card, network, batch."""
    package = Path(__file__).parents[1]
    sources = sorted(
        file for part in ("kernels/gpu", "models", "optim", "training") for file in package.glob(f"{part}/*.py")
    )
    card = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device), torch.version.cuda
    digest = hashlib.sha256(repr([__version__, torch.__version__, card]).encode())
    digest.update(json.dumps({**request, "device": None}, sort_keys=True, default=str).encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:24]
