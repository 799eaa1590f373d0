"""The kernels' machine code for GPUs that need not be there: registers must not spill into memory."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from compiled import CUOBJDUMP, compiled

from gaeanet.kernels.gpu import depthwise, gate
from gaeanet.kernels.gpu.maps import SWISH, Size
from gaeanet.kernels.maps import Window

pytestmark = [
    pytest.mark.skipif(not CUOBJDUMP.exists(), reason="this Triton has no tools for NVIDIA's GPUs"),
    pytest.mark.skipif(
        version("triton").startswith("3.2."),
        reason="Triton 3.2 does not compile the kernels: a run's trial refuses them",
    ),
]

SEPARABLE, DILATED, STRIDED = Window(5, 1, 2, 1), Window(3, 1, 2, 2), Window(5, 2, 2, 1)
"""Windows of the published networks."""


def rows_of(size: Size, channels: int) -> Tensor:
    return torch.empty(size.pixels, channels, dtype=torch.bfloat16)


def depthwise_kernels(size: Size, channels: int, window: Window) -> None:
    x, grad = rows_of(size, channels), rows_of(size.strided(window.stride), channels)
    weight, values = torch.empty(channels, 1, window.kernel, window.kernel), torch.empty(channels)
    norm = SimpleNamespace(mean=values, rstd=values, weight=values, bias=values)
    depthwise.forward(x, size, weight, window)
    depthwise.data_gradient_behind(grad, size, weight, window, x, norm, SWISH.value)
    depthwise.weight_gradient(grad, x, size, weight, window)


def gate_kernels(size: Size, channels: int) -> None:
    x, factors = rows_of(size, channels), torch.empty(size.images, channels)
    gate.channel_means(x, size)
    gate.channel_dots(x, x, size)
    gate.scaled(x, size, factors, factors)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "launch", "arguments"),
    [
        (90, depthwise_kernels, (Size(128, 28, 28), 48, SEPARABLE)),
        (90, depthwise_kernels, (Size(128, 7, 7), 192, SEPARABLE)),
        (80, depthwise_kernels, (Size(128, 14, 14), 96, DILATED)),
        (80, depthwise_kernels, (Size(128, 28, 28), 96, STRIDED)),
        (90, gate_kernels, (Size(128, 28, 28), 192)),
    ],
)
def test_no_register_spills(
    capability: int, launch: Callable[..., Any], arguments: tuple[Any, ...], tmp_path: Path
) -> None:
    kernels = compiled(lambda: launch(*arguments), capability, tmp_path)
    assert len(kernels) >= 3
    for kernel in kernels:
        assert kernel.stack == 0, kernel
