"""The kernels as differentiable functions of float32 maps (N, C, H, W) on the CPU, in channels-last memory.

Each is the equal of a few of PyTorch's operators up to float32 rounding, in fewer passes over memory. Activated maps
are not kept for the backward pass but made again.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gaeanet.kernels.build import library

ACTIVATIONS: dict[type[nn.Module], int] = {nn.Identity: 0, nn.ReLU: 1, nn.SiLU: 2, nn.Hardswish: 3}
"""The activations' numbers in the kernels."""


class Window(NamedTuple):
    """How a depthwise convolution slides, in both directions."""

    kernel: int
    stride: int
    padding: int
    dilation: int

    def outputs(self, size: int) -> int:
        """How many outputs a side of `size` pixels has."""
        return (size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1


class BatchNorm(torch.autograd.Function):
    """Batch norm in training; the module's running statistics move on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        x = _channels_last(x)
        out = torch.empty_like(x)
        statistics = _normalize(_rows(x), out, weight, bias, norm)
        ctx.save_for_backward(x, weight, statistics)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, statistics = ctx.saved_tensors
        x_grad = torch.empty_like(x)
        weight_grad, bias_grad = _normalize_backward(_channels_last(grad), _rows(x), x_grad, weight, statistics)
        return x_grad, weight_grad, bias_grad, None


class ConvolutionUnit(torch.autograd.Function):
    """Activation, depthwise convolution (or none), 1x1 convolution, batch norm in training.

    Keeps the input, which other operations keep as well, and what the 1x1 convolution and batch norm were given; of the
    two, an activated map is cheap enough to be made again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        depthwise: Tensor | None,
        pointwise: Tensor,
        weight: Tensor,
        bias: Tensor,
        activation: int,
        window: Window | None,
        norm: nn.BatchNorm2d,
    ) -> Tensor:
        x = _channels_last(x)
        inner = _inner(x, depthwise, activation, window)
        mixed = _rows(inner) @ _dense(pointwise, inner.shape[1]).t()
        out = _empty(inner.shape[0], pointwise.shape[0], inner.shape[2], inner.shape[3])
        statistics = _normalize(mixed, out, weight, bias, norm)
        kept = None if depthwise is None else inner
        ctx.save_for_backward(x, depthwise, pointwise, weight, kept, mixed, statistics)
        ctx.activation, ctx.window = activation, window
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, depthwise, pointwise, weight, inner, mixed, statistics = ctx.saved_tensors
        mixed_grad = torch.empty_like(mixed)
        weight_grad, bias_grad = _normalize_backward(_channels_last(grad), mixed, mixed_grad, weight, statistics)
        if inner is None:
            inner = _inner(x, None, ctx.activation, None)
        pointwise_grad = None
        if ctx.needs_input_grad[2]:
            pointwise_grad = _laid_out_as(pointwise, _blocks(mixed_grad.t() @ _rows(inner), pointwise.shape[1]))
        inner_grad = mixed_grad @ _dense(pointwise, inner.shape[1])
        x_grad, depthwise_grad = torch.empty_like(x), None
        if depthwise is None:
            _call("activation_backward", inner_grad, x, x_grad, x.numel(), ctx.activation)
        else:
            depthwise_grad = _laid_out_as(depthwise, torch.empty(depthwise.numel()))
            tensors = inner_grad, x, depthwise.contiguous(), x_grad, depthwise_grad
            _call("depthwise_backward", *tensors, _shape(x, ctx.window), ctx.activation)
        return x_grad, depthwise_grad, pointwise_grad, weight_grad, bias_grad, None, None, None


def _dense(pointwise: Tensor, channels: int) -> Tensor:
    """A 1x1 convolution's weight as a matrix (outputs, channels); that of a grouped one has zeros between its groups.

    Groups are few and narrow, where one product with zeros takes less time than many small ones.
    """
    matrix = pointwise.flatten(1)
    if matrix.shape[1] == channels:
        return matrix
    dense: Tensor = torch.block_diag(*matrix.chunk(channels // matrix.shape[1]))
    return dense


def _blocks(matrix: Tensor, width: int) -> Tensor:
    """The blocks on the diagonal of `matrix` (outputs, channels), one below the other: (outputs, width)."""
    groups = matrix.shape[1] // width
    if groups == 1:
        return matrix
    each = matrix.shape[0] // groups
    return torch.cat([matrix[g * each : (g + 1) * each, g * width : (g + 1) * width] for g in range(groups)])


def _inner(x: Tensor, depthwise: Tensor | None, activation: int, window: Window | None) -> Tensor:
    """What the 1x1 convolution is given."""
    if depthwise is not None and window is not None:
        out = _empty(x.shape[0], x.shape[1], window.outputs(x.shape[2]), window.outputs(x.shape[3]))
        _call("depthwise_forward", x, depthwise.contiguous(), out, _shape(x, window), activation)
        return out
    if not activation:
        return x
    out = torch.empty_like(x)
    _call("activation_forward", x, out, x.numel(), activation)
    return out


def _normalize(x: Tensor, out: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Normalises x (rows, C) into `out`; returns the batch's mean and inverse deviation (2, C)."""
    statistics = torch.empty((2, x.shape[1]))
    tensors = x, out, weight, bias, norm.running_mean, norm.running_var, statistics[0], statistics[1]
    _call("batch_norm_forward", *tensors, *x.shape, norm.momentum, norm.eps)
    return statistics


def _normalize_backward(
    grad: Tensor, x: Tensor, x_grad: Tensor, weight: Tensor, statistics: Tensor
) -> tuple[Tensor, Tensor]:
    """Writes the gradient of x (rows, C) into `x_grad`; returns those of weight and bias (C)."""
    weight_grad, bias_grad = torch.empty_like(weight), torch.empty_like(weight)
    tensors = grad, x, weight, statistics[0], statistics[1], x_grad, weight_grad, bias_grad
    _call("batch_norm_backward", *tensors, *x.shape)
    return weight_grad, bias_grad


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, memory_format=torch.channels_last)


def _laid_out_as(weight: Tensor, grad: Tensor) -> Tensor:
    """A gradient with its weight's strides, as DistributedDataParallel wants it; the order in memory is the same."""
    return grad.as_strided(weight.shape, weight.stride())


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _rows(x: Tensor) -> Tensor:
    """A channels-last map (N, C, H, W) seen as (N * H * W, C)."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])


def _shape(x: Tensor, window: Window) -> Any:
    n, channels, height, width = x.shape
    sizes = (n, height, width, channels, window.outputs(height), window.outputs(width), *window)
    return (ctypes.c_int64 * len(sizes))(*sizes)


_POINTER, _LONG, _DOUBLE, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_int
_SIGNATURES: dict[str, list[Any]] = {
    "depthwise_forward": [_POINTER] * 4 + [_INT] * 2,
    "depthwise_backward": [_POINTER] * 6 + [_INT] * 2,
    "batch_norm_forward": [_POINTER] * 8 + [_LONG] * 2 + [_DOUBLE] * 2 + [_INT],
    "batch_norm_backward": [_POINTER] * 8 + [_LONG] * 2 + [_INT],
    "activation_forward": [_POINTER] * 2 + [_LONG] + [_INT] * 2,
    "activation_backward": [_POINTER] * 3 + [_LONG] + [_INT] * 2,
}


@cache
def _kernel(name: str) -> Any:
    kernel = getattr(library(), name)
    kernel.argtypes = _SIGNATURES[name]
    return kernel


def _call(name: str, *arguments: Any) -> None:
    """Calls a kernel on tensors (by their address) and numbers, with as many threads as PyTorch uses."""
    passed = [argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments]
    if _kernel(name)(*passed, torch.get_num_threads()):
        raise MemoryError(f"no memory for {name}")
