"""Pooling and its gradients.

PyTorch's gradient of max pooling adds with atomics, whose order differs from run to run. Here each pixel of the input
gathers the gradients of the windows that it is in.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gaeanet.kernels.gpu.maps import INDICES, Size, channel_block, empty_rows

_TILE = 2048
"""Elements of a program's tile."""


def maximum(x: Tensor, size: Size, kernel: int, stride: int) -> tuple[Tensor, Tensor]:
    """Max pooling with padding kernel // 2.

    Args:
        x: Rows (P, C) of a map of this `size`, which may be strided.
        size: Of x.
        kernel: The window's side, odd.
        stride: 1 or 2.

    Returns:
        Dense rows of `size.strided(stride)`, and where in its window each value stood, uint8 rows of the same shape.

    Raises:
        ValueError: The map has 2^31 elements or more.
    """
    taps = torch.empty(size.strided(stride).pixels, x.shape[1], dtype=torch.uint8, device=x.device)
    return _forward(x, size, kernel, stride, taps), taps


def maximum_backward(grad: Tensor, taps: Tensor, size: Size, kernel: int, stride: int) -> Tensor:
    """The gradient of x, dense rows of its `size`, from that of the output, dense rows, and what `maximum` returned."""
    return _backward(grad, taps, size, kernel, stride)


def average(x: Tensor, size: Size, kernel: int, stride: int) -> Tensor:
    """Average pooling with padding kernel // 2, which is not counted; arguments and errors as `maximum`'s."""
    return _forward(x, size, kernel, stride, None)


def average_backward(grad: Tensor, size: Size, kernel: int, stride: int) -> Tensor:
    """The gradient of x, dense rows of its `size`, from that of the output, dense rows."""
    return _backward(grad, None, size, kernel, stride)


def _forward(x: Tensor, size: Size, kernel: int, stride: int, taps: Tensor | None) -> Tensor:
    if size.pixels * x.stride(0) >= INDICES:
        raise ValueError(f"a map of {size.images} x {size.height} x {size.width} pixels has 2^31 elements or more")
    to, channels = size.strided(stride), x.shape[1]
    out = empty_rows(to, channels, x)
    height, block = _tile(channels)
    _forward_kernel[(triton.cdiv(channels, block), triton.cdiv(to.pixels, height))](
        x, x.stride(0), out, taps, to.pixels, size.height, size.width, to.height, to.width,
        C=channels, KERNEL=kernel, STRIDE=stride, ROWS=height, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out


def _backward(grad: Tensor, taps: Tensor | None, size: Size, kernel: int, stride: int) -> Tensor:
    to, channels = size.strided(stride), grad.shape[1]
    out = empty_rows(size, channels, grad)
    height, block = _tile(channels)
    _backward_kernel[(triton.cdiv(channels, block), triton.cdiv(size.pixels, height))](
        grad, taps, out, size.pixels, size.height, size.width, to.height, to.width,
        C=channels, KERNEL=kernel, STRIDE=stride, ROWS=height, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out


def _tile(channels: int) -> tuple[int, int]:
    """Rows and channels of a tile."""
    block = channel_block(channels)
    return _TILE // block, block


@triton.jit
def _covered(start, side, KERNEL: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many of the pixels that a window from `start` on spans are in the map, along one side."""
    return tl.minimum(start + KERNEL, side) - tl.maximum(start, 0)


@triton.jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    x,
    stride,
    out,
    taps,
    rows,
    height,
    width,
    out_height,
    out_width,
    C: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    r = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    mask = (r < rows)[:, None] & (c < C)[None, :]
    image = r // (out_height * out_width)
    inside = r - image * (out_height * out_width)
    top = (inside // out_width) * STRIDE - KERNEL // 2
    left = (inside % out_width) * STRIDE - KERNEL // 2
    if taps is not None:
        value = tl.full((ROWS, BLOCK), float("-inf"), tl.float32)
        largest = tl.zeros((ROWS, BLOCK), tl.int32)
    else:
        value = tl.zeros((ROWS, BLOCK), tl.float32)
    for tap in tl.static_range(KERNEL * KERNEL):
        y = top + tap // KERNEL
        z = left + tap % KERNEL
        exists = (y >= 0) & (y < height) & (z >= 0) & (z < width)
        at = x + ((image * height + y) * width + z)[:, None] * stride + c[None, :]
        if taps is not None:
            v = tl.load(at, mask & exists[:, None], float("-inf")).to(tl.float32)
            larger = (v > value) | (v != v)  # the first of equal ones, and NaN, as PyTorch has it
            largest = tl.where(larger, tap, largest)
            value = tl.where(larger, v, value)
        else:
            value += tl.load(at, mask & exists[:, None], 0.0).to(tl.float32)
    at = r[:, None] * C + c[None, :]
    if taps is not None:
        tl.store(taps + at, largest.to(tl.uint8), mask)
    else:
        pixels = _covered(top, height, KERNEL) * _covered(left, width, KERNEL)
        value = value / pixels.to(tl.float32)[:, None]
    tl.store(out + at, value.to(out.dtype.element_ty), mask)


@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    grad,
    taps,
    out,
    rows,
    height,
    width,
    out_height,
    out_width,
    C: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    r = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    mask = (r < rows)[:, None] & (c < C)[None, :]
    image = r // (height * width)
    inside = r - image * (height * width)
    bottom = inside // width + KERNEL // 2
    right = inside % width + KERNEL // 2
    value = tl.zeros((ROWS, BLOCK), tl.float32)
    for tap in tl.static_range(KERNEL * KERNEL):
        # The window in which this pixel stands at `tap`, if there is one.
        top = bottom - tap // KERNEL
        left = right - tap % KERNEL
        y = top // STRIDE
        z = left // STRIDE
        exists = (top >= 0) & (y < out_height) & (left >= 0) & (z < out_width)
        if STRIDE > 1:
            exists = exists & (top % STRIDE == 0) & (left % STRIDE == 0)
        at = ((image * out_height + y) * out_width + z)[:, None] * C + c[None, :]
        g = tl.load(grad + at, mask & exists[:, None], 0.0).to(tl.float32)
        if taps is not None:
            chosen = tl.load(taps + at, mask & exists[:, None], 255)
            value += tl.where(chosen == tap, g, 0.0)
        else:
            first = top - KERNEL // 2
            across = left - KERNEL // 2
            pixels = _covered(first, height, KERNEL) * _covered(across, width, KERNEL)
            value += g / tl.maximum(pixels, 1).to(tl.float32)[:, None]
    tl.store(out + r[:, None] * C + c[None, :], value.to(out.dtype.element_ty), mask)
