"""Modules that compute with our CPU kernels, and their exchange for PyTorch's in a network.

A module becomes a fast one by a change of its class: parameters, names, hooks and copies stay. A fast module uses the
kernels for float32 on the CPU in training, neither compiled nor traced, and falls back to its parent class otherwise.
Hooks on the modules inside a fast one are not called.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]
from torch.nn.modules.batchnorm import _BatchNorm

from gaeanet.kernels.autograd import BatchNorm, ConvolutionUnits, Gated, Quarters
from gaeanet.kernels.build import OWN, availability
from gaeanet.kernels.maps import ACTIVATIONS, Window
from gaeanet.models.operations import ConvNorm, DilatedConv, FactorizedReduce, SeparableConv, SqueezeExcite


class FastBatchNorm2d(nn.BatchNorm2d):
    """Batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        if not (_suits(x) and _is_ordinary(self) and x.numel() > x.shape[1]):
            return super().forward(x)
        _count(self)
        out: Tensor = BatchNorm.apply(x, *_affine(self), self)
        return out


class FastConvNorm(ConvNorm):
    """Activation, 1x1 convolution, batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        return units(x, self.op) if fits(x, self.op) else super().forward(x)


class FastDilatedConv(DilatedConv):
    """Activation, dilated depthwise, 1x1 convolution, batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        return units(x, self.op) if fits(x, self.op) else super().forward(x)


class FastSeparableConv(SeparableConv):
    """Activation, depthwise, 1x1 convolution, batch norm, twice."""

    def forward(self, x: Tensor) -> Tensor:
        if not fits(x, self.op):
            return super().forward(x)
        parts = tuple(self.op)  # a slice of the sequence would be a new module each time
        return units(x, parts[:4], parts[4:])


class FastFactorizedReduce(FactorizedReduce):
    """ReLU, two 1x1 convolutions on every other pixel, batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        if not (_suits(x) and self.training):
            return super().forward(x)
        first, second = Quarters.apply(x)
        out: Tensor = self.bn(torch.cat([self.conv_1(first), self.conv_2(second)], dim=1))
        return out


class FastSqueezeExcite(SqueezeExcite):
    """A gate for each channel."""

    def forward(self, x: Tensor) -> Tensor:
        if not (_suits(x) and self.training):
            return super().forward(x)
        out: Tensor = Gated.apply(x, self.gate, *self.parameters())
        return out


FAST: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: FastBatchNorm2d,
    ConvNorm: FastConvNorm,
    DilatedConv: FastDilatedConv,
    SeparableConv: FastSeparableConv,
    FactorizedReduce: FastFactorizedReduce,
    SqueezeExcite: FastSqueezeExcite,
}


def make_fast(network: nn.Module) -> None:
    """Replaces the network's modules by fast ones, in place."""
    for module in network.modules():
        module.__class__ = FAST.get(type(module), type(module))


def make_plain(network: nn.Module) -> None:
    """Undoes `make_fast`."""
    plain = {fast: module for module, fast in FAST.items()}
    for module in network.modules():
        module.__class__ = plain.get(type(module), type(module))


def _suits(x: Tensor) -> bool:
    """Whether the kernels support `x`; while a graph is captured it is a proxy, not a tensor."""
    return (
        type(x) is Tensor
        and x.dtype is torch.float32
        and x.device.type == "cpu"
        and not (torch.compiler.is_compiling() or is_tracing() or torch.is_autocast_enabled("cpu"))
    )


def _is_ordinary(norm: nn.Module) -> bool:
    """Whether the kernels support this batch norm: in training, with running statistics and momentum."""
    return (
        isinstance(norm, FastBatchNorm2d)
        and norm.training
        and norm.running_mean is not None
        and norm.running_mean.dtype is torch.float32
        and norm.momentum is not None
    )


def fits(x: Tensor, op: Iterable[nn.Module]) -> bool:
    """Whether the kernels support all of a module; a batch of one value a channel is left to PyTorch to refuse."""
    op = list(op)
    stride = max(part.stride[0] for part in op if isinstance(part, nn.Conv2d))
    values = x.shape[0] * -(-x.shape[2] // stride) * -(-x.shape[3] // stride)
    return _suits(x) and values > 1 and all(_is_ordinary(part) for part in op if isinstance(part, _BatchNorm))


def units(x: Tensor, *parts: Any, scale: Tensor | None = None) -> Tensor:
    """Runs units in sequence: activation, optional depthwise convolution, 1x1 convolution, batch norm.

    `scale` (C,) replaces the weight of a last batch norm without affine.
    """
    windows: list[Window | None] = []
    norms: list[nn.Module] = []
    weights: list[Tensor | None] = []
    for _, *depthwise, pointwise, norm in parts:
        windows.append(_window(*depthwise) if depthwise else None)
        norms.append(norm)
        weights += [depthwise[0].weight if depthwise else None, pointwise.weight, *_affine(norm)]
        _count(norm)
    if scale is not None:
        weights[-2] = scale.contiguous()  # it may be a column, and the kernels read one block
    activation = ACTIVATIONS[type(parts[0][0])]
    out: Tensor = ConvolutionUnits.apply(x, activation, windows, norms, *weights)
    return out


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Batch norm's weight and bias; ones and zeros where it has none."""
    if norm.affine:
        return norm.weight, norm.bias
    return torch.ones(norm.num_features), torch.zeros(norm.num_features)


def _window(depthwise: nn.Conv2d) -> Window:
    return Window(depthwise.kernel_size[0], depthwise.stride[0], int(depthwise.padding[0]), depthwise.dilation[0])


def _count(norm: nn.Module) -> None:
    norm.num_batches_tracked.add_(1)  # type: ignore[operator]


def accelerate(network: nn.Module) -> str:
    """Makes a network train with the kernels, where they are available; returns a message on what was done.

    Weights, their names and the modules' behaviour outside of float32 training on the CPU do not change. `make_plain`
    undoes it.
    """
    message = availability()
    if message == OWN:
        make_fast(network)
    return message
