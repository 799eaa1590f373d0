"""Kernels of our own for CPUs: optional, compiled when first needed, equal to PyTorch's operators and to Pillow's.

PyTorch's depthwise convolutions and batch norm take most of a training step on a CPU; these take a fraction of the
time (docs/performance.md). Everything works without them.
"""

from __future__ import annotations

from functools import cache

from torch import nn

from gaeanet.kernels.build import Unavailable, library

OWN = "own kernels"
"""What `availability` and `accelerate` say where the kernels can be had."""


@cache
def availability() -> str:
    """Whether the kernels can be had here, as a sentence; the first call on a machine compiles them."""
    try:
        library()
    except Unavailable as error:
        return f"PyTorch's kernels ({error})"
    return OWN


def accelerate(network: nn.Module) -> str:
    """Lets a network's modules train with the kernels; returns a sentence on what was done.

    Weights, their names and the modules' behaviour outside of float32 training on the CPU stay as they are; where the
    kernels cannot be had, so does everything else. `gaeanet.kernels.modules.make_plain` undoes it.
    """
    from gaeanet.kernels.modules import make_fast

    sentence = availability()
    if sentence == OWN:
        make_fast(network)
    return sentence
