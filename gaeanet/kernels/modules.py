"""The network's modules with the kernels inside, and the way there and back.

A module becomes a fast one by a change of its class: parameters, names, hooks and copies stay what they are. A fast
module computes with the kernels what they are made for (float32 on the CPU, in training, neither compiled nor traced)
and does otherwise as its parent class does. Hooks on the parts inside a fast module are not called.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]
from torch.nn.modules.batchnorm import _BatchNorm

from gaeanet.kernels.functions import ACTIVATIONS, BatchNorm, ConvolutionUnit, Window
from gaeanet.operations import ConvNorm, DilatedConv, ParallelConv, SeparableConv


class FastBatchNorm2d(nn.BatchNorm2d):
    """Batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        if not (_suits(x) and _is_ordinary(self) and x.numel() > x.shape[1]):
            return super().forward(x)
        return _applied(BatchNorm, self, x, *_affine(self))


class FastConvNorm(ConvNorm):
    """Activation, 1x1 convolution, batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        return _unit(x, *self.op) if _fits(x, self.op) else super().forward(x)


class FastDilatedConv(DilatedConv):
    """Activation, dilated depthwise, 1x1 convolution, batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        return _unit(x, *self.op) if _fits(x, self.op) else super().forward(x)


class FastSeparableConv(SeparableConv):
    """Activation, depthwise, 1x1 convolution, batch norm, twice."""

    def forward(self, x: Tensor) -> Tensor:
        if not _fits(x, self.op):
            return super().forward(x)
        parts = tuple(self.op)
        return _unit(_unit(x, *parts[:4]), *parts[4:])


class FastParallelConv(ParallelConv):
    """Activation, depthwise, 1x1 convolution, batch norm, for several edges side by side."""

    def forward(self, x: Tensor, scale: Tensor | None) -> Tensor:
        parts = self.activation, self.depthwise, self.pointwise, self.norm
        if not _fits(x, parts):
            return super().forward(x, scale)
        return _unit(x, *parts, scale=scale)


_FAST: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: FastBatchNorm2d,
    ConvNorm: FastConvNorm,
    DilatedConv: FastDilatedConv,
    SeparableConv: FastSeparableConv,
    ParallelConv: FastParallelConv,
}
_PLAIN = {fast: plain for plain, fast in _FAST.items()}


def make_fast(network: nn.Module) -> None:
    """Lets the network's modules compute with the kernels."""
    for module in network.modules():
        module.__class__ = _FAST.get(type(module), type(module))


def make_plain(network: nn.Module) -> None:
    """Undoes `make_fast`."""
    for module in network.modules():
        module.__class__ = _PLAIN.get(type(module), type(module))


def _suits(x: Tensor) -> bool:
    """Whether the kernels compute with `x`; a stand-in for a tensor is met where a graph is being made."""
    return (
        type(x) is Tensor
        and x.dtype is torch.float32
        and x.device.type == "cpu"
        and not (torch.compiler.is_compiling() or is_tracing() or torch.is_autocast_enabled("cpu"))
    )


def _is_ordinary(norm: nn.Module) -> bool:
    """Whether this is batch norm as the kernels do it: in training, and nothing left out."""
    return (
        isinstance(norm, FastBatchNorm2d)
        and norm.training
        and norm.running_mean is not None
        and norm.running_mean.dtype is torch.float32
        and norm.momentum is not None
    )


def _fits(x: Tensor, op: Iterable[nn.Module]) -> bool:
    """Whether the kernels can do all of a module; a batch of one value a channel is for PyTorch to refuse."""
    op = list(op)
    stride = max(part.stride[0] for part in op if isinstance(part, nn.Conv2d))
    values = x.shape[0] * -(-x.shape[2] // stride) * -(-x.shape[3] // stride)
    return _suits(x) and values > 1 and all(_is_ordinary(part) for part in op if isinstance(part, _BatchNorm))


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Batch norm's weight and bias; ones and zeros where it has none."""
    assert isinstance(norm, nn.BatchNorm2d)
    if norm.affine:
        return norm.weight, norm.bias
    return torch.ones(norm.num_features), torch.zeros(norm.num_features)


def _unit(x: Tensor, activation: nn.Module, *convolutions_and_norm: nn.Module, scale: Tensor | None = None) -> Tensor:
    """Runs the kernel of one unit; `scale` (C,) stands in for the weight of batch norm without affine."""
    *depthwise, pointwise, norm = convolutions_and_norm
    weight, window = None, None
    for part in depthwise:
        assert isinstance(part, nn.Conv2d)
        weight = part.weight
        window = Window(part.kernel_size[0], part.stride[0], int(part.padding[0]), part.dilation[0])
    factor, shift = _affine(norm)
    return _applied(
        ConvolutionUnit,
        norm,
        x,
        weight,
        pointwise.weight,
        factor if scale is None else scale.contiguous(),  # it may be a column
        shift,
        ACTIVATIONS[type(activation)],
        window,
    )


def _applied(function: Any, norm: nn.Module, *arguments: Any) -> Tensor:
    """Calls a function that ends with batch norm, and counts the batch."""
    norm.num_batches_tracked.add_(1)  # type: ignore[operator]
    out: Tensor = function.apply(*arguments, norm)
    return out
