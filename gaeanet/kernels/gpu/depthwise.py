"""Depthwise convolution of an activated map, and its gradients.

A thread's work is a run of neighbouring output pixels of a row, for a few channels: what it reads serves several taps,
and only a row of the filter is in registers at a time. Maps are read through the cache as often as the filter has rows,
from memory once. Sizes are constants of the kernels, so that a run which spans its row is compiled without the columns
beyond the map.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from gaeanet.kernels.gpu import partials as parts
from gaeanet.kernels.gpu.depthwise_kernels import add_partials, convolve, weight_gradient_kernel
from gaeanet.kernels.gpu.maps import INDICES, Size, channel_block, empty_rows
from gaeanet.kernels.maps import Window


class Tile(NamedTuple):
    """How a kernel is spread over threads."""

    warps: int
    vector: int
    """Channels of a thread."""
    runs: tuple[int, ...]
    """Lengths of a run of pixels, of which the one that fits a row best is taken; even ones where strides need it."""
    programs: int
    """At most so many programs, where each writes partial sums: as many as 132 multiprocessors hold at a time."""


CONVOLUTION = Tile(warps=4, vector=4, runs=(16, 14, 8, 7, 4), programs=528)
BEHIND_NORM = Tile(warps=4, vector=4, runs=(8, 7, 4), programs=528)  # registers also hold what batch norm needs
WEIGHT_GRADIENT = {
    3: Tile(warps=4, vector=2, runs=(16, 14, 8, 7, 4), programs=528),
    5: Tile(warps=4, vector=2, runs=(8, 7, 4), programs=528),  # 25 sums for each channel
    7: Tile(warps=4, vector=2, runs=(4,), programs=396),
}

_WIDEST = 64
"""Channels of a program: 128 bytes of a bf16 map, a line of the cache."""


def forward(x: Tensor, size: Size, weight: Tensor, window: Window) -> Tensor:
    """The convolution of an activated map.

    Args:
        x: Dense rows (P, C) of a map of this `size`.
        weight: float32 (C, 1, K, K). One whose memory is (K * K, C) is read as it is; another is first copied to that.

    Returns:
        Dense rows of the map of `size.strided(window.stride)`, in the dtype of `x`.

    Raises:
        ValueError: Rows are not dense or not those of `size`, the window is not one of the search space's (kernel 3, 5
            or 7; stride and dilation 1 or 2; padding that keeps the size), or the map has 2**31 elements or more.
    """
    _check(size, weight, window)
    _check_rows(x, size, weight)
    out_size = size.strided(window.stride)
    out = empty_rows(out_size, len(weight), x)
    _convolution(x, size, out, out_size, weight, window)
    return out


def data_gradient(grad: Tensor, size: Size, weight: Tensor, window: Window) -> Tensor:
    """The gradient of the activated map, as dense rows of this `size`; `grad` is that of the output, as dense rows.

    Raises:
        ValueError: As `forward`.
    """
    _check(size, weight, window)
    grad_size = size.strided(window.stride)
    _check_rows(grad, grad_size, weight)
    out = empty_rows(size, len(weight), grad)
    _convolution(grad, grad_size, out, size, weight, window, transposed=True)
    return out


def data_gradient_behind(
    grad: Tensor, size: Size, weight: Tensor, window: Window, raw: Tensor, normalization: Any, activation: int
) -> tuple[Tensor, Tensor]:
    """`data_gradient` where the input was a batch norm's activated output: the gradient of what batch norm returned.

    Args:
        raw: What batch norm read: dense rows of a map of this `size`.
        normalization: Its `mean`, `rstd`, `weight` and `bias`, float32 (C,) each.
        activation: The number of the activation that followed.

    Returns:
        The gradient g as dense rows, and partial sums float32 (programs, 2, C) of g and of g * (raw - mean) * rstd, of
        g as rounded to the map's dtype.

    Raises:
        ValueError: As `forward`.
    """
    _check(size, weight, window)
    grad_size = size.strided(window.stride)
    _check_rows(grad, grad_size, weight)
    _check_rows(raw, size, weight)
    out = empty_rows(size, len(weight), grad)
    norm = normalization.mean, normalization.rstd, normalization.weight, normalization.bias
    partials = _convolution(grad, grad_size, out, size, weight, window, True, (raw, *norm), activation)
    return out, partials


def weight_gradient(grad: Tensor, x: Tensor, size: Size, weight: Tensor, window: Window) -> Tensor:
    """The gradient of the weight, float32 (C, 1, K, K) and contiguous; bit-exact when computed again.

    Args:
        grad: The output's gradient, as dense rows of `size.strided(window.stride)`.
        x: The activated map, as dense rows of this `size`.
        weight: For its shape alone.

    Raises:
        ValueError: As `forward`.
    """
    _check(size, weight, window)
    grad_size = size.strided(window.stride)
    _check_rows(grad, grad_size, weight)
    _check_rows(x, size, weight)
    channels, taps = len(weight), window.kernel**2
    tile = WEIGHT_GRADIENT[window.kernel]
    run = _run(grad_size.width, tile.runs)
    block, split = _channel_block(channels)
    items = grad_size.images * grad_size.height * triton.cdiv(grad_size.width, run)
    rows = tile.warps * 32 * tile.vector // block
    programs = parts.programs(triton.cdiv(items, rows), tile.programs // split)
    partials = torch.empty(programs, taps, channels, dtype=torch.float32, device=x.device)
    weight_gradient_kernel[(programs * split,)](
        grad, x, partials, items,
        CHANNELS=channels, HEIGHT=size.height, WIDTH=size.width,
        GRAD_HEIGHT=grad_size.height, GRAD_WIDTH=grad_size.width,
        KERNEL=window.kernel, STRIDE=window.stride, DILATION=window.dilation,
        RUN=run, ROWS=rows, BLOCK=block, num_warps=tile.warps,
    )  # fmt: skip
    out = torch.empty(channels, 1, window.kernel, window.kernel, dtype=torch.float32, device=x.device)
    add_partials[(triton.cdiv(taps * channels, 32),)](
        partials, out, programs, CHANNELS=channels, TAPS=taps, ROWS=64, COLUMNS=32, num_warps=4
    )
    return out


def _convolution(
    x: Tensor, size: Size, out: Tensor, out_size: Size, weight: Tensor, window: Window, transposed: bool = False,
    behind: tuple[Tensor, ...] = (), activation: int = 0,
) -> Tensor:  # fmt: skip
    """Writes the convolution of `x`, or its transpose, into `out`.

    `behind` is batch norm's map, mean, rstd, weight and bias, for whose gradients partial sums (programs, 2, C) are
    returned; without them nothing of use is.
    """
    channels = len(weight)
    tile = BEHIND_NORM if behind else CONVOLUTION
    run = _run(out_size.width, tile.runs, even=transposed and window.stride > 1)
    block, split = _channel_block(channels)
    items = out_size.images * out_size.height * triton.cdiv(out_size.width, run)
    rows = tile.warps * 32 * tile.vector // block
    programs = triton.cdiv(items, rows)
    partials = out
    if behind:
        programs = parts.programs(programs, tile.programs // split)
        partials = torch.empty(programs, 2, channels, dtype=torch.float32, device=x.device)
    filters = weight.detach().flatten(1).t().contiguous()
    convolve[(programs * split,)](
        x, filters, out, *(behind or (x,) * 5), partials, items,
        CHANNELS=channels, HEIGHT=size.height, WIDTH=size.width,
        OUT_HEIGHT=out_size.height, OUT_WIDTH=out_size.width,
        KERNEL=window.kernel, STRIDE=window.stride, DILATION=window.dilation, TRANSPOSED=transposed,
        BEHIND=bool(behind), ACTIVATION=activation,
        RUN=run, ROWS=rows, BLOCK=block, num_warps=tile.warps,
    )  # fmt: skip
    return partials


def _check(size: Size, weight: Tensor, window: Window) -> None:
    kernel, stride, padding, dilation = window
    if kernel not in WEIGHT_GRADIENT or stride not in (1, 2) or dilation not in (1, 2):
        raise ValueError(f"no depthwise kernel for {window}")
    if padding != dilation * (kernel - 1) // 2:
        raise ValueError(f"padding must keep the map's size, got {window}")
    if weight.shape[1:] != (1, kernel, kernel) or weight.dtype != torch.float32:
        raise ValueError(f"weight must be float32 (C, 1, {kernel}, {kernel}), got {weight.dtype} {tuple(weight.shape)}")
    if size.pixels * len(weight) >= INDICES:
        raise ValueError(f"a map must have fewer than {INDICES} elements, got {size.pixels * len(weight)}")


def _check_rows(rows: Tensor, size: Size, weight: Tensor) -> None:
    if rows.shape != (size.pixels, len(weight)) or not rows.is_contiguous():
        expected = size.pixels, len(weight)
        raise ValueError(f"rows must be dense {expected}, got {tuple(rows.shape)} with strides {rows.stride()}")


def _run(width: int, runs: tuple[int, ...], even: bool = False) -> int:
    """The length of run that wastes the fewest pixels in a row of this width; the longest of those."""
    return min((run for run in runs if not (even and run % 2)), key=lambda run: (triton.cdiv(width, run) * run, -run))


def _channel_block(channels: int) -> tuple[int, int]:
    """Channels of a program, a power of two, and how many programs share a pixel.

    A block that divides the channels leaves no thread idle; one of fewer than 16 channels would read parts of sectors.
    """
    block = min(channels & -channels, _WIDEST)
    if block < 16:
        block = channel_block(channels, _WIDEST)
    return block, triton.cdiv(channels, block)
