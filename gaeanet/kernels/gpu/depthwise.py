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
import triton.language as tl
from torch import Tensor

from gaeanet.kernels.gpu.maps import Size, empty_rows, slope
from gaeanet.kernels.maps import Window


class Tile(NamedTuple):
    """How a kernel is spread over threads."""

    warps: int
    vector: int
    """Channels of a thread."""
    runs: tuple[int, ...]
    """Lengths of a run of pixels, of which the one that fits a row best is taken; even ones where strides need it."""
    programs: int
    """At most so many programs, where each writes partial sums; a few for each of 132 multiprocessors."""


CONVOLUTION = {kernel: Tile(warps=4, vector=8, runs=(8, 7, 4), programs=792) for kernel in (3, 5, 7)}
WEIGHT_GRADIENT = {
    3: Tile(warps=4, vector=8, runs=(8, 7, 4), programs=396),
    5: Tile(warps=4, vector=4, runs=(8, 7, 4), programs=396),  # 25 sums for each channel
    7: Tile(warps=4, vector=2, runs=(8, 7, 4), programs=396),
}

_WIDEST = 64
"""Channels of a program: 128 bytes of a bf16 map, a line of the cache."""

_LARGEST = 2**31
"""Kernels count elements in int32."""


def forward(x: Tensor, size: Size, weight: Tensor, window: Window) -> Tensor:
    """The convolution of an activated map.

    Args:
        x: Dense rows (P, C) of a map of this `size`.
        weight: float32 (C, 1, K, K). One whose memory is (K * K, C) is read as it is; another is copied to that.

    Returns:
        Dense rows of the map of `size.strided(window.stride)`, in the dtype of `x`.

    Raises:
        ValueError: Rows are not dense or not those of `size`, the window is not one of those in the search space
            (kernel 3, 5 or 7; stride and dilation 1 or 2; padding that keeps the size), or the map has 2**31 elements.
    """
    _check(x, size, weight, window)
    out_size = size.strided(window.stride)
    out = empty_rows(out_size, x.shape[1], x)
    _launch(x, size, out, out_size, weight, window, transposed=False)
    return out


def data_gradient(grad: Tensor, size: Size, weight: Tensor, window: Window) -> Tensor:
    """The gradient of the activated map, as dense rows of this `size`; `grad` is that of the output, as dense rows.

    Raises:
        ValueError: As `forward`.
    """
    grad_size = size.strided(window.stride)
    _check(grad, grad_size, weight, window)
    out = empty_rows(size, grad.shape[1], grad)
    _launch(grad, grad_size, out, size, weight, window, transposed=True)
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
    grad_size = size.strided(window.stride)
    _check(grad, grad_size, weight, window)
    if raw.shape != (size.pixels, grad.shape[1]) or not raw.is_contiguous():
        raise ValueError(f"batch norm's map must be dense rows of {size}, got shape {tuple(raw.shape)}")
    out = empty_rows(size, grad.shape[1], grad)
    return out, _launch(grad, grad_size, out, size, weight, window, True, raw, normalization, activation)


def weight_gradient(grad: Tensor, x: Tensor, size: Size, weight: Tensor, window: Window) -> Tensor:
    """The gradient of the weight, float32 (C, 1, K, K) and contiguous; the same bits whenever it is computed again.

    Args:
        grad: The output's gradient, as dense rows of `size.strided(window.stride)`.
        x: The activated map, as dense rows of this `size`.
        weight: For its shape alone.

    Raises:
        ValueError: As `forward`.
    """
    grad_size = size.strided(window.stride)
    _check(x, size, weight, window)
    _check(grad, grad_size, weight, window)
    channels, taps = x.shape[1], window.kernel**2
    tile = WEIGHT_GRADIENT[window.kernel]
    run = _run(grad_size.width, tile.runs)
    block, split = _channel_block(channels)
    items = size.images * grad_size.height * triton.cdiv(grad_size.width, run)
    rows = max(1, tile.warps * 32 * tile.vector // block)
    programs = _programs(triton.cdiv(items, rows), tile.programs // split)
    partials = torch.empty(programs, taps, channels, dtype=torch.float32, device=x.device)
    _weight_gradient[(programs * split,)](
        grad, x, partials, items,
        CHANNELS=channels, HEIGHT=size.height, WIDTH=size.width, GRAD_HEIGHT=grad_size.height, GRAD_WIDTH=grad_size.width,
        KERNEL=window.kernel, STRIDE=window.stride, DILATION=window.dilation, RUN=run, ROWS=rows, BLOCK=block,
        num_warps=tile.warps,
    )  # fmt: skip
    out = torch.empty(channels, 1, window.kernel, window.kernel, dtype=torch.float32, device=x.device)
    _add_partials[(triton.cdiv(taps * channels, 32),)](
        partials, out, programs, CHANNELS=channels, TAPS=taps, ROWS=64, COLUMNS=32, num_warps=4
    )
    return out


def _launch(
    x: Tensor, size: Size, out: Tensor, out_size: Size, weight: Tensor, window: Window, transposed: bool,
    raw: Tensor | None = None, normalization: Any = None, activation: int = 0,
) -> Tensor:  # fmt: skip
    """Writes the convolution of `x`, or its transpose, into `out`; partial sums (programs, 2, C) where there is `raw`."""
    channels = x.shape[1]
    tile = CONVOLUTION[window.kernel]
    run = _run(out_size.width, tile.runs, even=transposed and window.stride > 1)
    block, split = _channel_block(channels)
    items = out_size.images * out_size.height * triton.cdiv(out_size.width, run)
    rows = max(1, tile.warps * 32 * tile.vector // block)
    programs = triton.cdiv(items, rows)
    partials = out
    if raw is not None:
        programs = _programs(programs, tile.programs // split)
        partials = torch.empty(programs, 2, channels, dtype=torch.float32, device=x.device)
    behind = (raw, normalization.mean, normalization.rstd, normalization.weight, normalization.bias) if raw is not None else (x,) * 5
    _convolve[(programs * split,)](
        x, weight.flatten(1).t().contiguous(), out, *behind, partials, items,
        CHANNELS=channels, HEIGHT=size.height, WIDTH=size.width, OUT_HEIGHT=out_size.height, OUT_WIDTH=out_size.width,
        KERNEL=window.kernel, STRIDE=window.stride, DILATION=window.dilation, TRANSPOSED=transposed,
        BEHIND=raw is not None, ACTIVATION=activation, RUN=run, ROWS=rows, BLOCK=block, num_warps=tile.warps,
    )  # fmt: skip
    return partials


def _check(x: Tensor, size: Size, weight: Tensor, window: Window) -> None:
    kernel, stride, padding, dilation = window
    if kernel not in CONVOLUTION or stride not in (1, 2) or dilation not in (1, 2):
        raise ValueError(f"no depthwise kernel for {window}")
    if padding != dilation * (kernel - 1) // 2:
        raise ValueError(f"the padding must keep the map's size, got {window}")
    if x.ndim != 2 or len(x) != size.pixels or not x.is_contiguous():
        raise ValueError(f"a map must be dense rows of {size}, got shape {tuple(x.shape)} and strides {x.stride()}")
    if weight.shape != (x.shape[1], 1, kernel, kernel) or weight.dtype != torch.float32:
        raise ValueError(f"the weight must be float32 {(x.shape[1], 1, kernel, kernel)}, got {tuple(weight.shape)}")
    if x.numel() * stride**2 >= _LARGEST:
        raise ValueError(f"a map must have less than {_LARGEST} elements, got {x.numel()}")


def _run(width: int, runs: tuple[int, ...], even: bool = False) -> int:
    """The run of pixels that wastes the fewest in a row of this width; the longest of those."""
    return min((run for run in runs if not (even and run % 2)), key=lambda run: (triton.cdiv(width, run) * run, -run))


def _channel_block(channels: int) -> tuple[int, int]:
    """Channels of a program, a power of two, and how many programs share a pixel.

    A block that divides the channels leaves no thread idle; one of fewer than 16 channels would read parts of sectors.
    """
    block = min(channels & -channels, _WIDEST)
    if block < 16:
        block = min(triton.next_power_of_2(channels), _WIDEST)
    return block, triton.cdiv(channels, block)


def _programs(tiles: int, limit: int) -> int:
    """How many programs at most `limit` share the tiles evenly."""
    return triton.cdiv(tiles, triton.cdiv(tiles, max(1, limit)))


@triton.jit
def _pixel(rows, line, first, inside, channels, OFFSET: tl.constexpr, LAST: tl.constexpr, WIDTH: tl.constexpr,
           CHANNELS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    """Pixels first + OFFSET of lines of a map, zero outside of it; `first` is in 0 .. LAST."""
    x = first + OFFSET
    if OFFSET < 0:
        inside = inside & (x >= 0)
    if OFFSET + LAST >= WIDTH:
        inside = inside & (x < WIDTH)
    mask = inside[:, None]
    if CHANNELS % BLOCK != 0:
        mask = mask & (channels < CHANNELS)[None, :]
    return tl.load(rows + (line * WIDTH + x)[:, None] * CHANNELS + channels[None, :], mask, 0.0)


@triton.jit
def _added(sum, factor, factors, DISTANCE: tl.constexpr, STEP: tl.constexpr, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    """sum + factor * factors[DISTANCE / STEP], where that is one of the COUNT factors; else the sum as it is."""
    if DISTANCE >= 0 and DISTANCE % STEP == 0 and DISTANCE < COUNT * STEP:
        return sum + factor * factors[DISTANCE // STEP]
    else:
        return sum


@triton.jit
def _channel_values(values, channels, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """float32 values of channels, as a row (1, BLOCK)."""
    if CHANNELS % BLOCK != 0:
        return tl.load(values + channels, channels < CHANNELS, 0.0)[None, :]
    else:
        return tl.load(values + channels)[None, :]


@triton.jit
def _convolve(
    x, filters, out, raw, mean, rstd, weight, bias, partials, items,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, TRANSPOSED: tl.constexpr,
    BEHIND: tl.constexpr, ACTIVATION: tl.constexpr, RUN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """Depthwise convolution of a map x with filters (K * K, C) into out; TRANSPOSED: its transpose.

    BEHIND: out is multiplied with the slope of the activation behind a batch norm of `raw`, and the sums of batch
    norm's gradients are made. An item is a run of pixels of out.
    """
    SPLIT: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
    RUNS: tl.constexpr = (OUT_WIDTH + RUN - 1) // RUN
    PADDING: tl.constexpr = DILATION * (KERNEL - 1) // 2
    # The columns that a run reads begin at SCALE * its first pixel - BEFORE.
    BEFORE: tl.constexpr = PADDING // STRIDE if TRANSPOSED else PADDING
    COLUMNS: tl.constexpr = BEFORE + 1 + ((RUN - 1 + PADDING) // STRIDE if TRANSPOSED else (RUN - 1) * STRIDE + PADDING)
    LAST: tl.constexpr = (RUNS - 1) * RUN // STRIDE if TRANSPOSED else (RUNS - 1) * RUN * STRIDE
    # Programs that differ in their channels run side by side, so that they share what memory sends.
    channels = tl.program_id(0) % SPLIT * BLOCK + tl.arange(0, BLOCK)
    program = tl.program_id(0) // SPLIT
    programs = tl.num_programs(0) // SPLIT
    sums = tl.zeros((ROWS, BLOCK), tl.float32)
    products = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in range(program, tl.cdiv(items, ROWS), programs):
        item = tile * ROWS + tl.arange(0, ROWS)
        line = item // RUNS
        image = line // OUT_HEIGHT
        y = line - image * OUT_HEIGHT
        start = (item - line * RUNS) * RUN if RUNS > 1 else item * 0
        first = start // STRIDE if TRANSPOSED else start * STRIDE
        outputs = ()
        for _ in tl.static_range(RUN):
            outputs = outputs + (tl.zeros((ROWS, BLOCK), tl.float32),)
        for ky in range(KERNEL):
            if TRANSPOSED:
                scaled = y + PADDING - ky * DILATION
                in_y = scaled // STRIDE
                inside = (item < items) & (scaled >= 0) & (in_y < HEIGHT)
                if STRIDE > 1:
                    inside = inside & (scaled % STRIDE == 0)
            else:
                in_y = y * STRIDE - PADDING + ky * DILATION
                inside = (item < items) & (in_y >= 0) & (in_y < HEIGHT)
            taps = ()
            for kx in tl.static_range(KERNEL):
                row = filters + (ky * KERNEL + kx) * CHANNELS
                taps = taps + (_channel_values(row, channels, CHANNELS, BLOCK),)
            for i in tl.static_range(COLUMNS):
                if i - BEFORE + LAST >= 0 and i - BEFORE < WIDTH:
                    column = _pixel(x, image * HEIGHT + in_y, first, inside, channels, i - BEFORE, LAST, WIDTH,
                                    CHANNELS, BLOCK).to(tl.float32)  # fmt: skip
                    updated = ()
                    for j in tl.static_range(RUN):
                        if TRANSPOSED:
                            updated = updated + (
                                _added(outputs[j], column, taps, j + PADDING - STRIDE * (i - BEFORE), DILATION, KERNEL),
                            )
                        else:
                            updated = updated + (_added(outputs[j], column, taps, i - j * STRIDE, DILATION, KERNEL),)
                    outputs = updated
        if BEHIND:
            m = _channel_values(mean, channels, CHANNELS, BLOCK)
            r = _channel_values(rstd, channels, CHANNELS, BLOCK)
            w = _channel_values(weight, channels, CHANNELS, BLOCK)
            b = _channel_values(bias, channels, CHANNELS, BLOCK)
        for j in tl.static_range(RUN):
            inside = item < items
            if OUT_WIDTH % RUN != 0:
                inside = inside & (start + j < OUT_WIDTH)
            mask = inside[:, None]
            if CHANNELS % BLOCK != 0:
                mask = mask & (channels < CHANNELS)[None, :]
            at = (line * OUT_WIDTH + start + j)[:, None] * CHANNELS + channels[None, :]
            if BEHIND:
                normal = (tl.load(raw + at, mask, 0.0).to(tl.float32) - m) * r
                g = (outputs[j] * slope(normal * w + b, ACTIVATION)).to(out.dtype.element_ty)
                tl.store(out + at, g, mask)
                rounded = tl.where(mask, g.to(tl.float32), 0.0)
                sums += rounded
                products += rounded * normal
            else:
                tl.store(out + at, outputs[j].to(out.dtype.element_ty), mask)
    if BEHIND:
        to = partials + program * 2 * CHANNELS + channels
        tl.store(to, tl.sum(sums, 0), channels < CHANNELS)
        tl.store(to + CHANNELS, tl.sum(products, 0), channels < CHANNELS)


@triton.jit
def _weight_gradient(
    grad, x, partials, items,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, GRAD_HEIGHT: tl.constexpr,
    GRAD_WIDTH: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr,
    RUN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """Partial sums (programs, K * K, C) of the filters' gradient; an item is a run of pixels of grad."""
    SPLIT: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
    RUNS: tl.constexpr = (GRAD_WIDTH + RUN - 1) // RUN
    PADDING: tl.constexpr = DILATION * (KERNEL - 1) // 2
    COLUMNS: tl.constexpr = (RUN - 1) * STRIDE + 2 * PADDING + 1
    LAST: tl.constexpr = (RUNS - 1) * RUN
    channels = tl.program_id(0) % SPLIT * BLOCK + tl.arange(0, BLOCK)
    program = tl.program_id(0) // SPLIT
    programs = tl.num_programs(0) // SPLIT
    sums = ()
    for _ in tl.static_range(KERNEL * KERNEL):
        sums = sums + (tl.zeros((ROWS, BLOCK), tl.float32),)
    for tile in range(program, tl.cdiv(items, ROWS), programs):
        item = tile * ROWS + tl.arange(0, ROWS)
        line = item // RUNS
        image = line // GRAD_HEIGHT
        y = line - image * GRAD_HEIGHT
        start = (item - line * RUNS) * RUN if RUNS > 1 else item * 0
        grads = ()
        for j in tl.static_range(RUN):
            pixel = _pixel(grad, line, start, item < items, channels, j, LAST, GRAD_WIDTH, CHANNELS, BLOCK)
            grads = grads + (pixel.to(tl.float32),)
        updated = ()
        for ky in tl.static_range(KERNEL):
            in_y = y * STRIDE - PADDING + ky * DILATION
            inside = (item < items) & (in_y >= 0) & (in_y < HEIGHT)
            taps = ()
            for kx in tl.static_range(KERNEL):
                taps = taps + (sums[ky * KERNEL + kx],)
            for i in tl.static_range(COLUMNS):
                if i - PADDING + LAST * STRIDE >= 0 and i - PADDING < WIDTH:
                    column = _pixel(x, image * HEIGHT + in_y, start * STRIDE, inside, channels, i - PADDING,
                                    LAST * STRIDE, WIDTH, CHANNELS, BLOCK).to(tl.float32)  # fmt: skip
                    added = ()
                    for kx in tl.static_range(KERNEL):
                        added = added + (_added(taps[kx], column, grads, i - kx * DILATION, STRIDE, RUN),)
                    taps = added
            updated = updated + taps
        sums = updated
    to = partials + program * KERNEL * KERNEL * CHANNELS + channels
    for tap in tl.static_range(KERNEL * KERNEL):
        tl.store(to + tap * CHANNELS, tl.sum(sums[tap], 0), channels < CHANNELS)


@triton.jit
def _add_partials(partials, out, programs, CHANNELS: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr,
                  COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    """The sums of partials (programs, K * K, C), in a fixed order, into out (C, K * K)."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, programs, ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < programs)[:, None] & (column < TAPS * CHANNELS)[None, :]
        sums += tl.load(partials + row[:, None] * (TAPS * CHANNELS) + column[None, :], mask, 0.0)
    tap = column // CHANNELS
    tl.store(out + (column - tap * CHANNELS) * TAPS + tap, tl.sum(sums, 0), column < TAPS * CHANNELS)
