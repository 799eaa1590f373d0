"""The kernels as functions: of float32 maps (N, C, H, W) on the CPU in channels-last memory, of 8-bit pixels, of JPEGs.

Each of the former is the equal of a few of PyTorch's operators up to float32 rounding, in fewer passes over memory.
Activated maps are not kept for the backward pass but made again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
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
        statistics, affine = _statistics(x, weight, bias, norm)
        ctx.save_for_backward(x, weight, statistics)
        return _scaled_and_shifted(x, affine)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*_normalize_backward(grad, *ctx.saved_tensors), None)


_BEFORE_WEIGHTS = 4
"""Arguments of `ConvolutionUnits` before its weights."""


class ConvolutionUnits(torch.autograd.Function):
    """Units of activation, depthwise convolution, 1x1 convolution, batch norm in training, one or more in turn.

    Weights are four a unit: of the depthwise convolution (None where the first unit has none), of the 1x1 convolution,
    of batch norm, and its bias. What is kept of a unit is what its 1x1 convolution and its batch norm were given; batch
    norm's own output is made again where the next unit needs it, as are activated maps.
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
        given, affine = _channels_last(x), None
        kept: list[Tensor | None] = [given]
        for unit, (window, norm) in enumerate(zip(windows, norms)):
            depthwise, pointwise, weight, bias = weights[4 * unit : 4 * unit + 4]
            assert pointwise is not None
            inner, remaining = given, activation
            if depthwise is not None and window is not None:
                inner, remaining = _depthwise(given, affine, depthwise, activation, window), 0
            given, statistics, affine = _pointwise(inner, pointwise, weight, bias, norm, remaining)
            kept += [None if depthwise is None else inner, given, statistics, affine]
        ctx.save_for_backward(*kept, *weights)
        ctx.activation, ctx.windows = activation, windows
        assert affine is not None
        return _scaled_and_shifted(given, affine)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        count, saved = len(ctx.windows), ctx.saved_tensors  # read once: checkpointed cells are made again by it
        kept, weights = saved[: 1 + 4 * count], saved[1 + 4 * count :]
        gradients: list[Tensor | None] = []
        for unit in reversed(range(count)):
            inner, mixed, statistics, _ = kept[1 + 4 * unit : 5 + 4 * unit]
            given, affine = (kept[4 * unit - 2], kept[4 * unit]) if unit else (kept[0], None)
            depthwise, pointwise, weight, _ = weights[4 * unit : 4 * unit + 4]
            learns = ctx.needs_input_grad[_BEFORE_WEIGHTS + 4 * unit + 1]
            behind, remaining = (given, ctx.activation) if depthwise is None else (inner, 0)
            grad, *of_weights = _pointwise_backward(
                grad, mixed, behind, pointwise, weight, statistics, remaining, learns
            )
            depthwise_grad = None
            if depthwise is not None:
                inner_grad, grad = grad, torch.empty_like(given)
                depthwise_grad = _laid_out_as(depthwise, torch.empty(depthwise.numel()))
                tensors = inner_grad, given, *_pair(affine), depthwise.contiguous(), grad, depthwise_grad
                _call("depthwise_backward", *tensors, _shape(given, ctx.windows[unit]), ctx.activation)
            gradients = [depthwise_grad, *of_weights, *gradients]
        return grad, None, None, None, *gradients


class Gated(torch.autograd.Function):
    """A map times a gate for each channel of each image, which `gate` makes of the channels' means (N, C, 1, 1).

    The parameters of `gate` come along for the sake of their gradients.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Callable[[Tensor], Tensor], *parameters: Tensor) -> Tensor:
        x = _channels_last(x)
        means = _sums_over_pixels(x) / (x.shape[2] * x.shape[3])
        factors = gate(means)
        ctx.save_for_backward(x, means, factors)
        ctx.gate, ctx.parameters = gate, parameters  # themselves: what is saved may come back as a copy
        return _scaled_images(x, factors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, means, factors), parameters = ctx.saved_tensors, ctx.parameters
        grad = _channels_last(grad)
        with torch.enable_grad():  # these are a handful of numbers: PyTorch works them out again
            means = means.detach().requires_grad_()
            wanted = [p for p in parameters if p.requires_grad]
            of_means, *found = torch.autograd.grad(ctx.gate(means), [means, *wanted], _sums_over_pixels(grad, x))
        gradients = iter(found)
        of_parameters = [next(gradients) if p.requires_grad else None for p in parameters]
        return _scaled_images(grad, factors, of_means / (x.shape[2] * x.shape[3])), None, *of_parameters


class Quarters(torch.autograd.Function):
    """What a `FactorizedReduce` reads: ReLU of every other pixel of every other row, from the first and the second on.

    The latter has zeros where an odd map has no pixel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        quarters = x[:, :, ::2, ::2].relu(), _channels_last(x[:, :, 1::2, 1::2].relu())
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


def colour_jitter(pixels: Tensor, order: Tensor, factors: list[float]) -> None:
    """Brightness, contrast, saturation and hue of uint8 (H, W, 3) in place.

    Args:
        order: int64 (4,), numbers of the operations in turn, from 0; -1 for none.
        factors: Of brightness, contrast and saturation, and the hue's turn in -0.5..0.5.
    """
    brightness, contrast, saturation, turn = factors
    # As torchvision turns it: towards zero, and round the circle.
    turn = int(turn * 255) % 256
    _call("colour_jitter", _one_block(pixels), pixels.numel() // 3, order, brightness, contrast, saturation, turn)


def count_levels(pixels: Tensor) -> Tensor:
    """How many pixels of uint8 (H, W, 3) have each level: int64 (3, 256)."""
    levels = torch.empty((3, 256), dtype=torch.int64)
    _call("count_levels", _one_block(pixels), pixels.numel() // 3, levels)
    return levels


def map_levels(pixels: Tensor, results: Tensor) -> None:
    """Replaces each level of uint8 (H, W, 3), in place, by what `results`, uint8 (3, 256), has for it."""
    _call("map_levels", _one_block(pixels), pixels.numel() // 3, results.contiguous())


def jpeg_region(data: bytes, top: int, left: int, height: int, width: int) -> Tensor | None:
    """A part of a JPEG's pixels as torchvision and Pillow have them: uint8 (3, height, width) in channels-last memory.

    None where those have to be asked: this is no file of the common kinds, or it is damaged, be it in another part.
    """
    pixels = torch.empty((height, width, 3), dtype=torch.uint8)
    if _call("jpeg_region", data, len(data), top, left, height, width, pixels):
        return None
    return pixels.permute(2, 0, 1)


def _one_block(pixels: Tensor) -> Tensor:
    if not (pixels.is_contiguous() and pixels.dtype is torch.uint8 and pixels.shape[-1] == 3):
        raise ValueError(f"pixels must be uint8 (H, W, 3) in one block, not {pixels.dtype} {tuple(pixels.shape)}")
    return pixels


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


def _depthwise(x: Tensor, affine: Tensor | None, depthwise: Tensor, activation: int, window: Window) -> Tensor:
    """Activation and depthwise convolution; `affine` (2, C) is a batch norm before them."""
    out = _empty(x.shape[0], x.shape[1], window.outputs(x.shape[2]), window.outputs(x.shape[3]))
    tensors = x, *_pair(affine), depthwise.contiguous(), out
    _call("depthwise_forward", *tensors, _shape(x, window), activation)
    return out


def _pointwise(
    x: Tensor, pointwise: Tensor, weight: Any, bias: Any, norm: nn.BatchNorm2d, activation: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Activation and 1x1 convolution; then the batch's statistics and batch norm by them, as of `_statistics`."""
    matrix, rows = _dense(pointwise, x.shape[1]), _rows(x)
    out = _empty(x.shape[0], len(matrix), *x.shape[2:])
    statistics, affine = torch.empty((2, len(matrix))), torch.empty((2, len(matrix)))
    tensors = x, matrix, out, weight, bias, norm.running_mean, norm.running_var, *statistics, *affine
    _call("pointwise_forward", *tensors, *rows.shape, len(matrix), norm.momentum, norm.eps, activation)
    return out, statistics, affine


def _pointwise_backward(
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
    _call("pointwise_backward", *tensors, step, *rows.shape, len(matrix), activation)
    pointwise_grad = None
    if matrix_grad is not None:
        pointwise_grad = _laid_out_as(pointwise, _blocks(matrix_grad, pointwise.shape[1]))
    return x_grad, pointwise_grad, weight_grad, bias_grad


def _statistics(x: Tensor, weight: Any, bias: Any, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The batch's mean and inverse deviation (2, C), and batch norm by them: factors and summands (2, C)."""
    statistics, affine = torch.empty((2, x.shape[1])), torch.empty((2, x.shape[1]))
    tensors = x, weight, bias, norm.running_mean, norm.running_var, *statistics, *affine
    _call("batch_norm_statistics", *tensors, *_rows(x).shape, norm.momentum, norm.eps)
    return statistics, affine


def _scaled_and_shifted(x: Tensor, affine: Tensor) -> Tensor:
    out = torch.empty_like(x)
    _call("scale_and_shift", x, *affine, out, *_rows(x).shape)
    return out


def _normalize_backward(grad: Tensor, x: Tensor, weight: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of batch norm's input (a map), weight and bias (C)."""
    grad, step = _with_step(grad)
    x_grad, weight_grad, bias_grad = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    tensors = grad, x, weight, *statistics, x_grad, weight_grad, bias_grad
    _call("batch_norm_backward", *tensors, step, *_rows(x).shape)
    return x_grad, weight_grad, bias_grad


def _sums_over_pixels(a: Tensor, b: Tensor | None = None) -> Tensor:
    """The sums of a map, or of the products of two, for each channel of each image: (N, C, 1, 1)."""
    sums = torch.empty((*a.shape[:2], 1, 1))
    _call("sums_over_pixels", a, b, sums, len(a), a.shape[2] * a.shape[3], a.shape[1])
    return sums


def _scaled_images(x: Tensor, factors: Tensor, summands: Tensor | None = None) -> Tensor:
    """A map times factors, plus summands, for each channel of each image: (N, C, 1, 1)."""
    out = torch.empty_like(x)
    tensors = x, factors.contiguous(), summands if summands is None else summands.contiguous(), out
    _call("scale_and_shift_images", *tensors, len(x), x.shape[2] * x.shape[3], x.shape[1])
    return out


def _pair(affine: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if affine is None else (affine[0], affine[1])


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, memory_format=torch.channels_last)


def _laid_out_as(weight: Tensor, grad: Tensor) -> Tensor:
    """A gradient with its weight's strides, as DistributedDataParallel wants it; the order in memory is the same."""
    return grad.as_strided(weight.shape, weight.stride())


def _channels_last(x: Tensor) -> Tensor:
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
    return _channels_last(grad), channels


def _rows(x: Tensor) -> Tensor:
    """A channels-last map (N, C, H, W) seen as (N * H * W, C)."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])


def _shape(x: Tensor, window: Window) -> Any:
    n, channels, height, width = x.shape
    sizes = (n, height, width, channels, window.outputs(height), window.outputs(width), *window)
    return (ctypes.c_int64 * len(sizes))(*sizes)


_POINTER, _LONG, _DOUBLE, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_int
_SIGNATURES: dict[str, list[Any]] = {
    "depthwise_forward": [_POINTER] * 6 + [_INT] * 2,
    "depthwise_backward": [_POINTER] * 8 + [_INT] * 2,
    "batch_norm_statistics": [_POINTER] * 9 + [_LONG] * 2 + [_DOUBLE] * 2 + [_INT],
    "scale_and_shift": [_POINTER] * 4 + [_LONG] * 2 + [_INT],
    "batch_norm_backward": [_POINTER] * 8 + [_LONG] * 3 + [_INT],
    "pointwise_forward": [_POINTER] * 11 + [_LONG] * 3 + [_DOUBLE] * 2 + [_INT] * 2,
    "pointwise_backward": [_POINTER] * 11 + [_LONG] * 4 + [_INT] * 2,
    "sums_over_pixels": [_POINTER] * 3 + [_LONG] * 3 + [_INT],
    "scale_and_shift_images": [_POINTER] * 4 + [_LONG] * 3 + [_INT],
    "colour_jitter": [_POINTER, _LONG, _POINTER] + [_DOUBLE] * 3 + [_INT] * 2,
    "count_levels": [_POINTER, _LONG, _POINTER, _INT],
    "map_levels": [_POINTER, _LONG, _POINTER, _INT],
    "jpeg_region": [_POINTER] + [_LONG] * 5 + [_POINTER, _INT],
}


@cache
def _kernel(name: str) -> Any:
    kernel = getattr(library(), name)
    kernel.argtypes = _SIGNATURES[name]
    return kernel


_NO_MEMORY = 1


def _call(name: str, *arguments: Any) -> int:
    """Calls a kernel on tensors (by their address), bytes and numbers, with as many threads as PyTorch uses.

    Returns its answer, which is 0 but from those that say what else it may be.
    """
    passed = [argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments]
    answer: int = _kernel(name)(*passed, torch.get_num_threads())
    if answer == _NO_MEMORY:
        raise MemoryError(f"no memory for {name}")
    return answer
