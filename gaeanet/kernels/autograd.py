"""Autograd functions of the kernels.

Activated maps are not saved for the backward pass but recomputed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gaeanet.kernels import maps
from gaeanet.kernels.maps import Window


class BatchNorm(torch.autograd.Function):
    """Batch norm in training; updates the module's running statistics."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        x = maps.channels_last(x)
        statistics, affine = maps.statistics(x, weight, bias, norm)
        ctx.save_for_backward(x, weight, statistics)
        return maps.scaled_and_shifted(x, affine)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*maps.normalize_backward(grad, *ctx.saved_tensors), None)


_BEFORE_WEIGHTS = 4
"""Arguments of `ConvolutionUnits` before its weights."""


class ConvolutionUnits(torch.autograd.Function):
    """Units of activation, depthwise convolution, 1x1 convolution, batch norm in training, one or more in turn.

    Weights are four a unit: of the depthwise convolution (None where the first unit has none), of the 1x1 convolution,
    of batch norm, and its bias. Saved of a unit are the inputs of its 1x1 convolution and its batch norm; batch norm's
    output is recomputed where the next unit needs it, as are activated maps.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        activation: int,
        windows: list[Window | None],
        norms: list[nn.BatchNorm2d],
        *weights: Tensor | None,
    ) -> Tensor:
        given, affine = maps.channels_last(x), None
        saved: list[Tensor | None] = [given]
        for unit, (window, norm) in enumerate(zip(windows, norms)):
            depthwise, pointwise, weight, bias = weights[4 * unit : 4 * unit + 4]
            assert pointwise is not None
            inner, remaining = given, activation
            if depthwise is not None and window is not None:
                inner, remaining = maps.depthwise(given, affine, depthwise, activation, window), 0
            given, statistics, affine = maps.pointwise(inner, pointwise, weight, bias, norm, remaining)
            saved += [None if depthwise is None else inner, given, statistics, affine]
        ctx.save_for_backward(*saved, *weights)
        ctx.activation, ctx.windows = activation, windows
        assert affine is not None
        return maps.scaled_and_shifted(given, affine)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        count, saved = len(ctx.windows), ctx.saved_tensors  # read once: this recomputes checkpointed cells
        inputs, weights = saved[: 1 + 4 * count], saved[1 + 4 * count :]
        gradients: list[Tensor | None] = []
        for unit in reversed(range(count)):
            inner, mixed, statistics, _ = inputs[1 + 4 * unit : 5 + 4 * unit]
            given, affine = (inputs[4 * unit - 2], inputs[4 * unit]) if unit else (inputs[0], None)
            depthwise, pointwise, weight, _ = weights[4 * unit : 4 * unit + 4]
            learns = ctx.needs_input_grad[_BEFORE_WEIGHTS + 4 * unit + 1]
            behind, remaining = (given, ctx.activation) if depthwise is None else (inner, 0)
            grad, *of_weights = maps.pointwise_backward(
                grad, mixed, behind, pointwise, weight, statistics, remaining, learns
            )
            depthwise_grad = None
            if depthwise is not None:
                window = ctx.windows[unit]
                grad, depthwise_grad = maps.depthwise_backward(grad, given, affine, depthwise, ctx.activation, window)
            gradients = [depthwise_grad, *of_weights, *gradients]
        return grad, None, None, None, *gradients


class Gated(torch.autograd.Function):
    """A map times a gate for each channel of each image, which `gate` computes from the channels' means (N, C, 1, 1).

    The parameters of `gate` are arguments so that they receive gradients.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Callable[[Tensor], Tensor], *parameters: Tensor) -> Tensor:
        x = maps.channels_last(x)
        means = maps.sums_over_pixels(x) / (x.shape[2] * x.shape[3])
        factors = gate(means)
        ctx.save_for_backward(x, means, factors)
        ctx.gate, ctx.parameters = gate, parameters  # themselves: what is saved may come back as a copy
        return maps.scaled_images(x, factors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, means, factors), parameters = ctx.saved_tensors, ctx.parameters
        grad = maps.channels_last(grad)
        with torch.enable_grad():  # a handful of numbers: PyTorch recomputes them
            means = means.detach().requires_grad_()
            wanted = [p for p in parameters if p.requires_grad]
            of_means, *of_wanted = torch.autograd.grad(
                ctx.gate(means), [means, *wanted], maps.sums_over_pixels(grad, x)
            )
        gradients = iter(of_wanted)
        of_parameters = [next(gradients) if p.requires_grad else None for p in parameters]
        return maps.scaled_images(grad, factors, of_means / (x.shape[2] * x.shape[3])), None, *of_parameters


class Quarters(torch.autograd.Function):
    """The inputs of `FactorizedReduce`: ReLU of every other pixel of every other row, from the first and the second on.

    The latter has zeros where an odd map has no pixel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        quarters = x[:, :, ::2, ::2].relu(), maps.channels_last(x[:, :, 1::2, 1::2].relu())
        ctx.save_for_backward(*quarters)
        ctx.shape = x.shape
        return quarters[0], F.pad(quarters[1], [0, x.shape[3] % 2, 0, x.shape[2] % 2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x_grad = torch.zeros(ctx.shape).contiguous(memory_format=torch.channels_last)
        for first, (grad, quarter) in enumerate(zip(grads, ctx.saved_tensors)):
            grad = grad[:, :, : quarter.shape[2], : quarter.shape[3]]
            x_grad[:, :, first::2, first::2] = torch.ops.aten.threshold_backward(grad, quarter, 0)
        return x_grad
