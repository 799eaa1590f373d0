"""The kernels for float32 maps (N, C, H, W) on the CPU in channels-last memory, as functions of tensors.

Each equals a few of PyTorch's operators up to float32 rounding, in fewer passes over memory. An activation is
given by its number, 0 for none.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gaeanet.kernels.calls import call

ACTIVATIONS: dict[type[nn.Module], int] = {nn.Identity: 0, nn.ReLU: 1, nn.SiLU: 2, nn.Hardswish: 3}
"""The number of each activation in the kernels."""


class Window(NamedTuple):
    """The window of a depthwise convolution: kernel size, stride, padding and dilation, in both directions."""

    kernel: int
    stride: int
    padding: int
    dilation: int

    def outputs(self, size: int) -> int:
        """The output size for an input of `size` pixels."""
        return (size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1


def depthwise(x: Tensor, affine: Tensor | None, filters: Tensor, activation: int, window: Window) -> Tensor:
    """Activation and depthwise convolution; `affine` (2, C) is a batch norm before them."""
    out = _empty(x.shape[0], x.shape[1], window.outputs(x.shape[2]), window.outputs(x.shape[3]))
    tensors = x, *_pair(affine), filters.contiguous(), out
    call("depthwise_forward", *tensors, _shape(x, window), activation)
    return out


def depthwise_backward(
    grad: Tensor, x: Tensor, affine: Tensor | None, filters: Tensor, activation: int, window: Window
) -> tuple[Tensor, Tensor]:
    """The gradients of `depthwise`: of its input before the activation, and of its weight."""
    x_grad, weight_grad = torch.empty_like(x), _laid_out_as(filters, torch.empty(filters.numel()))
    tensors = grad, x, *_pair(affine), filters.contiguous(), x_grad, weight_grad
    call("depthwise_backward", *tensors, _shape(x, window), activation)
    return x_grad, weight_grad


def pointwise(
    x: Tensor, pointwise: Tensor, weight: Any, bias: Any, norm: nn.BatchNorm2d, activation: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Activation and 1x1 convolution; also the batch statistics and batch norm of the output, as `statistics`."""
    matrix, rows = _dense(pointwise, x.shape[1]), _rows(x)
    out = _empty(x.shape[0], len(matrix), *x.shape[2:])
    statistics, affine = torch.empty((2, len(matrix))), torch.empty((2, len(matrix)))
    tensors = x, matrix, out, weight, bias, norm.running_mean, norm.running_var, *statistics, *affine
    call("pointwise_forward", *tensors, *rows.shape, len(matrix), norm.momentum, norm.eps, activation)
    return out, statistics, affine


def pointwise_backward(
    grad: Tensor,
    mixed: Tensor,
    x: Tensor,
    pointwise: Tensor,
    weight: Tensor,
    statistics: Tensor,
    activation: int,
    learns: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The gradients of `x`, of the 1x1 convolution's weight if it learns, and of batch norm's weight and bias.

    `grad` is that of batch norm's output, `mixed` what the convolution made of `x`.
    """
    (grad, step), matrix, rows = _with_step(grad), _dense(pointwise, x.shape[1]), _rows(x)
    x_grad, weight_grad, bias_grad = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    matrix_grad = torch.empty(matrix.shape) if learns else None
    tensors = grad, mixed, x, matrix, weight, *statistics, x_grad, matrix_grad, weight_grad, bias_grad
    call("pointwise_backward", *tensors, step, *rows.shape, len(matrix), activation)
    pointwise_grad = None
    if matrix_grad is not None:
        pointwise_grad = _laid_out_as(pointwise, _blocks(matrix_grad, pointwise.shape[1]))
    return x_grad, pointwise_grad, weight_grad, bias_grad


def statistics(x: Tensor, weight: Any, bias: Any, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The batch's mean and inverse standard deviation (2, C), and batch norm as factors and summands (2, C)."""
    statistics, affine = torch.empty((2, x.shape[1])), torch.empty((2, x.shape[1]))
    tensors = x, weight, bias, norm.running_mean, norm.running_var, *statistics, *affine
    call("batch_norm_statistics", *tensors, *_rows(x).shape, norm.momentum, norm.eps)
    return statistics, affine


def scaled_and_shifted(x: Tensor, affine: Tensor) -> Tensor:
    """A map times factors, plus summands, for each channel; `affine` (2, C) has both."""
    out = torch.empty_like(x)
    call("scale_and_shift", x, *affine, out, *_rows(x).shape)
    return out


def normalize_backward(grad: Tensor, x: Tensor, weight: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of batch norm's input (a map), weight and bias (C)."""
    grad, step = _with_step(grad)
    x_grad, weight_grad, bias_grad = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    tensors = grad, x, weight, *statistics, x_grad, weight_grad, bias_grad
    call("batch_norm_backward", *tensors, step, *_rows(x).shape)
    return x_grad, weight_grad, bias_grad


def sums_over_pixels(a: Tensor, b: Tensor | None = None) -> Tensor:
    """The sums of a map, or of the products of two, for each channel of each image: (N, C, 1, 1)."""
    sums = torch.empty((*a.shape[:2], 1, 1))
    call("sums_over_pixels", a, b, sums, len(a), a.shape[2] * a.shape[3], a.shape[1])
    return sums


def scaled_images(x: Tensor, factors: Tensor, summands: Tensor | None = None) -> Tensor:
    """A map times factors, plus summands, for each channel of each image: (N, C, 1, 1)."""
    out = torch.empty_like(x)
    tensors = x, factors.contiguous(), summands if summands is None else summands.contiguous(), out
    call("scale_and_shift_images", *tensors, len(x), x.shape[2] * x.shape[3], x.shape[1])
    return out


def _dense(pointwise: Tensor, channels: int) -> Tensor:
    """A 1x1 convolution's weight as a matrix (outputs, channels); that of a grouped one has zeros between its groups.

    Groups are few and narrow, where one product with zeros takes less time than many small ones.
    """
    matrix = pointwise.flatten(1)
    if matrix.shape[1] == channels:
        return matrix.contiguous()
    dense: Tensor = torch.block_diag(*matrix.chunk(channels // matrix.shape[1]))
    return dense


def _blocks(matrix: Tensor, width: int) -> Tensor:
    """The blocks on the diagonal of `matrix` (outputs, channels), one below the other: (outputs, width)."""
    groups = matrix.shape[1] // width
    if groups == 1:
        return matrix
    each = matrix.shape[0] // groups
    return torch.cat([matrix[g * each : (g + 1) * each, g * width : (g + 1) * width] for g in range(groups)])


def _pair(affine: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if affine is None else (affine[0], affine[1])


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, memory_format=torch.channels_last)


def _laid_out_as(weight: Tensor, grad: Tensor) -> Tensor:
    """A gradient with its weight's strides, as DistributedDataParallel wants it; the order in memory is the same."""
    return grad.as_strided(weight.shape, weight.stride())


def channels_last(x: Tensor) -> Tensor:
    """A map in channels-last memory: itself, or a copy."""
    return x.contiguous(memory_format=torch.channels_last)


def _with_step(grad: Tensor) -> tuple[Tensor, int]:
    """A map's gradient and how many floats further on its next pixel begins.

    More than its channels where it is a part of a channels-last map with more of them, as behind a concatenation: such
    a one need not be copied. One in other memory is.
    """
    _, channels, height, width = grad.shape
    step = grad.stride(3)
    if step >= channels and grad.stride() == (height * width * step, 1, width * step, step):
        return grad, step
    return channels_last(grad), channels


def _rows(x: Tensor) -> Tensor:
    """A channels-last map (N, C, H, W) seen as (N * H * W, C)."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])


def _shape(x: Tensor, window: Window) -> Any:
    n, channels, height, width = x.shape
    sizes = (n, height, width, channels, window.outputs(height), window.outputs(width), *window)
    return (ctypes.c_int64 * len(sizes))(*sizes)
