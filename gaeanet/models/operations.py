"""The candidate operations that a cell is made of.

Module and parameter names are those of the DARTS repositories, which published checkpoints use, so that a state dict
from there loads as it is. Every operation maps (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride)), whatever H
and W are. Batch norm is PyTorch's default (momentum 0.1, the weight of the new batch; eps 1e-5); a convolution that
batch norm follows has no bias.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gaeanet.cells.operations import OPERATIONS

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "swish": nn.SiLU, "hswish": nn.Hardswish}
"""Activations by the names that experiment files use."""

Factory = dict[str, Any]
"""`device` and `dtype` of the parameters to be made."""


class ConvNorm(nn.Module):
    """Activation, 1x1 convolution, batch norm: maps a cell's input to the cell's width (`ReLUConvBN` in DARTS)."""

    def __init__(self, in_channels: int, out_channels: int, activation: type[nn.Module], **factory: Any) -> None:
        super().__init__()
        self.op = nn.Sequential(
            activation(),
            nn.Conv2d(in_channels, out_channels, 1, bias=False, **factory),
            nn.BatchNorm2d(out_channels, **factory),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class FactorizedReduce(nn.Module):
    """Halves the map without losing a pixel: two 1x1 convolutions on every other pixel, the second one further on.

    Its activation is ReLU in every network, as in the original code. The shifted input gets a zero row and column
    where the map is odd, so that both halves have ceil(size / 2) pixels; on even maps nothing is added. The pixels are
    picked first, since half of the map is read by neither, and not by the convolutions' own stride, which oneDNN's AVX2
    code gets wrong for few channels (it writes beyond its memory).
    """

    def __init__(self, in_channels: int, out_channels: int, **factory: Any) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv_1 = nn.Conv2d(in_channels, out_channels // 2, 1, bias=False, **factory)
        self.conv_2 = nn.Conv2d(in_channels, out_channels - out_channels // 2, 1, bias=False, **factory)
        self.bn = nn.BatchNorm2d(out_channels, **factory)

    def forward(self, x: Tensor) -> Tensor:
        shifted = F.pad(x[:, :, 1::2, 1::2], [0, x.shape[3] % 2, 0, x.shape[2] % 2])
        halves = [self.conv_1(self.relu(x[:, :, ::2, ::2])), self.conv_2(self.relu(shifted))]
        return self.bn(torch.cat(halves, dim=1))


class SeparableConv(nn.Module):
    """Activation, depthwise k x k, pointwise, batch norm, twice; the stride is in the first half."""

    def __init__(self, channels: int, kernel: int, stride: int, activation: type[nn.Module], **factory: Any) -> None:
        super().__init__()
        self.op = nn.Sequential(
            *_depthwise_separable(channels, kernel, stride, 1, activation, factory),
            *_depthwise_separable(channels, kernel, 1, 1, activation, factory),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class DilatedConv(nn.Module):
    """Activation, depthwise k x k with dilation 2, pointwise, batch norm."""

    def __init__(self, channels: int, kernel: int, stride: int, activation: type[nn.Module], **factory: Any) -> None:
        super().__init__()
        self.op = nn.Sequential(*_depthwise_separable(channels, kernel, stride, 2, activation, factory))

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


def _depthwise_separable(
    channels: int, kernel: int, stride: int, dilation: int, activation: type[nn.Module], factory: Factory
) -> list[nn.Module]:
    padding = dilation * (kernel - 1) // 2
    depthwise = nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False, **factory)
    pointwise = nn.Conv2d(channels, channels, 1, bias=False, **factory)
    return [activation(), depthwise, pointwise, nn.BatchNorm2d(channels, **factory)]


def _factorized_conv(
    channels: int, kernel: int, stride: int, activation: type[nn.Module], factory: Factory
) -> nn.Module:
    half = kernel // 2
    return nn.Sequential(
        activation(),
        nn.Conv2d(channels, channels, (1, kernel), stride=(1, stride), padding=(0, half), bias=False, **factory),
        nn.Conv2d(channels, channels, (kernel, 1), stride=(stride, 1), padding=(half, 0), bias=False, **factory),
        nn.BatchNorm2d(channels, **factory),
    )


BUILDERS: dict[str, Callable[[int, int, int, type[nn.Module], Factory], nn.Module]] = {
    "skip": lambda c, k, s, act, kw: nn.Identity() if s == 1 else FactorizedReduce(c, c, **kw),
    "max_pool": lambda c, k, s, act, kw: nn.MaxPool2d(k, s, padding=k // 2),
    "avg_pool": lambda c, k, s, act, kw: nn.AvgPool2d(k, s, padding=k // 2, count_include_pad=False),
    "separable": lambda c, k, s, act, kw: SeparableConv(c, k, s, act, **kw),
    "dilated": lambda c, k, s, act, kw: DilatedConv(c, k, s, act, **kw),
    "factorized": _factorized_conv,
}
"""A builder for each of `cells.operations.KINDS`: of channels, kernel, stride, activation, and how to make tensors."""


def build_operation(name: str, channels: int, stride: int, activation: type[nn.Module], **factory: Any) -> nn.Module:
    """The operation `name` (one of `cells.operations.OPERATIONS`) on `channels` channels with `stride` 1 or 2."""
    operation = OPERATIONS[name]
    return BUILDERS[operation.kind](channels, operation.kernel, stride, activation, factory)


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018): a gate for each channel, from the means of all channels."""

    def __init__(self, channels: int, hidden_channels: int, activation: type[nn.Module], **factory: Any) -> None:
        super().__init__()
        self.se_reduce = nn.Conv2d(channels, hidden_channels, 1, **factory)
        self.activation = activation()
        self.se_expand = nn.Conv2d(hidden_channels, channels, 1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3), keepdim=True))

    def gate(self, means: Tensor) -> Tensor:
        """The factors (N, C, 1, 1) that the channels' means (N, C, 1, 1) call for."""
        return self.se_expand(self.activation(self.se_reduce(means))).sigmoid()


def drop_path(x: Tensor, rate: Tensor) -> Tensor:
    """Zeroes whole samples of `x` (N, C, H, W) with probability `rate` and scales the others by 1 / (1 - rate).

    `rate` is a 0-d tensor on the device of `x`, so that a compiled graph need not be made again when it changes.
    """
    keep = 1.0 - rate
    mask = torch.rand((x.shape[0], 1, 1, 1), device=x.device, dtype=torch.float32) < keep
    return x * (mask / keep).to(x.dtype)


class DropPath(nn.Module):
    """`drop_path` in training, nothing in evaluation; never on a plain identity (`active=False`)."""

    def __init__(self, active: bool) -> None:
        super().__init__()
        self.active = active

    def forward(self, x: Tensor, rate: Tensor) -> Tensor:
        if self.active and self.training:
            return drop_path(x, rate)
        return x
