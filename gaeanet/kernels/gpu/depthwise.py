"""Depthwise convolution of an activated map, and its gradients.

A thread's work is a run of neighbouring output pixels of a row, for a few channels: what it reads serves several taps,
and only a row of the filter is in registers at a time. Maps are read through the cache as often as the filter has rows,
from memory once. Sizes are constants of the kernels, so that a run which spans its row is compiled without the columns
beyond the map.
"""

# mypy: disable-error-code="assignment,var-annotated"
# Kernels keep registers in tuples, which grow in loops that the compiler unrolls.

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

_LARGEST = 2**31
"""Kernels count elements in int32."""


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
    programs = _programs(triton.cdiv(items, rows), tile.programs // split)
    partials = torch.empty(programs, taps, channels, dtype=torch.float32, device=x.device)
    _weight_gradient[(programs * split,)](
        grad, x, partials, items,
        CHANNELS=channels, HEIGHT=size.height, WIDTH=size.width,
        GRAD_HEIGHT=grad_size.height, GRAD_WIDTH=grad_size.width,
        KERNEL=window.kernel, STRIDE=window.stride, DILATION=window.dilation,
        RUN=run, ROWS=rows, BLOCK=block, num_warps=tile.warps,
    )  # fmt: skip
    out = torch.empty(channels, 1, window.kernel, window.kernel, dtype=torch.float32, device=x.device)
    _add_partials[(triton.cdiv(taps * channels, 32),)](
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
        programs = _programs(programs, tile.programs // split)
        partials = torch.empty(programs, 2, channels, dtype=torch.float32, device=x.device)
    filters = weight.detach().flatten(1).t().contiguous()
    _convolve[(programs * split,)](
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
    if size.pixels * len(weight) >= _LARGEST:
        raise ValueError(f"a map must have fewer than {_LARGEST} elements, got {size.pixels * len(weight)}")


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
        block = min(max(triton.next_power_of_2(channels), 16), _WIDEST)
    return block, triton.cdiv(channels, block)


def _programs(tiles: int, limit: int) -> int:
    """How many programs, at most `limit`, share the tiles most evenly."""
    programs: int = triton.cdiv(tiles, triton.cdiv(tiles, max(1, limit)))
    return programs


@triton.jit
def _runs(item, OUT_HEIGHT: tl.constexpr, RUNS: tl.constexpr, RUN: tl.constexpr):  # type: ignore[no-untyped-def]
    """Image, row in the image and first pixel in the row of runs, which are `RUNS` a row."""
    line = item // RUNS
    image = line // OUT_HEIGHT
    if RUNS > 1:
        return image, line - image * OUT_HEIGHT, (item - line * RUNS) * RUN
    else:
        return image, line - image * OUT_HEIGHT, tl.zeros_like(item)


@triton.jit
def _pointers(rows, row, channels, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Pointers (ROWS, BLOCK) to channels of rows of a dense map."""
    return rows + row[:, None] * CHANNELS + channels[None, :]


@triton.jit
def _pixels(  # type: ignore[no-untyped-def]
    pointers, first, inside, channels,
    OFFSET: tl.constexpr, LAST: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pixels first + OFFSET of rows of a map, zero outside of it, as float32.

    `pointers` (ROWS, BLOCK) are those of pixels `first`, which are in 0 .. LAST: what is added to them is a constant,
    for which a load instruction has room.
    """
    if OFFSET < 0:
        inside = inside & (first + OFFSET >= 0)
    if OFFSET + LAST >= WIDTH:
        inside = inside & (first + OFFSET < WIDTH)
    mask = inside[:, None]
    if CHANNELS % BLOCK != 0:
        mask = mask & (channels < CHANNELS)[None, :]
    return tl.load(pointers + OFFSET * CHANNELS, mask, 0.0).to(tl.float32)


@triton.jit
def _values(pointers, channels, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Values (1, BLOCK) of channels, float32."""
    if CHANNELS % BLOCK != 0:
        return tl.load(pointers + channels, channels < CHANNELS, 0.0)[None, :]
    else:
        return tl.load(pointers + channels)[None, :]


@triton.jit
def _convolve(  # type: ignore[no-untyped-def]
    x, filters, out, raw, mean, rstd, weight, bias, partials, items,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, TRANSPOSED: tl.constexpr,
    BEHIND: tl.constexpr, ACTIVATION: tl.constexpr,
    RUN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Depthwise convolution of x with filters (K * K, C) into out; TRANSPOSED: its transpose. An item is a run of out.

    BEHIND: out is multiplied with the slope of the activation behind a batch norm of `raw`, and the sums of that batch
    norm's gradients are made.
    """
    SPLIT: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
    RUNS: tl.constexpr = (OUT_WIDTH + RUN - 1) // RUN
    PADDING: tl.constexpr = DILATION * (KERNEL - 1) // 2
    # A run reads COLUMNS pixels of each of K rows: BEFORE of them to the left of the one that its first pixel lies on.
    BEFORE: tl.constexpr = PADDING // STRIDE if TRANSPOSED else PADDING
    COLUMNS: tl.constexpr = BEFORE + 1 + ((RUN - 1 + PADDING) // STRIDE if TRANSPOSED else (RUN - 1) * STRIDE + PADDING)
    LAST: tl.constexpr = (RUNS - 1) * RUN // STRIDE if TRANSPOSED else (RUNS - 1) * RUN * STRIDE
    # Column i of a run is read by the tap at distance SCALE * j + STEP * i + SHIFT of its pixel j, where there is one.
    SCALE: tl.constexpr = 1 if TRANSPOSED else -STRIDE
    STEP: tl.constexpr = -STRIDE if TRANSPOSED else 1
    SHIFT: tl.constexpr = PADDING + STRIDE * BEFORE if TRANSPOSED else 0
    REACH: tl.constexpr = KERNEL * DILATION
    # Programs that differ in their channels alone run side by side: together they use all that memory sends.
    channels = tl.program_id(0) % SPLIT * BLOCK + tl.arange(0, BLOCK)
    program = tl.program_id(0) // SPLIT
    programs = tl.num_programs(0) // SPLIT
    sums = tl.zeros((ROWS, BLOCK), tl.float32)
    products = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in range(program, tl.cdiv(items, ROWS), programs):
        item = tile * ROWS + tl.arange(0, ROWS)
        image, y, start = _runs(item, OUT_HEIGHT, RUNS, RUN)
        first = start // STRIDE if TRANSPOSED else start * STRIDE
        outputs = ()
        for _ in tl.static_range(RUN):
            outputs = outputs + (tl.zeros((ROWS, BLOCK), tl.float32),)
        for ky in range(KERNEL):  # a loop: all taps at once do not fit into registers
            if TRANSPOSED:
                scaled = y + PADDING - ky * DILATION
                row = scaled // STRIDE
                inside = (item < items) & (scaled >= 0) & (row < HEIGHT)
                if STRIDE > 1:
                    inside = inside & (scaled % STRIDE == 0)
            else:
                row = y * STRIDE - PADDING + ky * DILATION
                inside = (item < items) & (row >= 0) & (row < HEIGHT)
            taps = ()
            for kx in tl.static_range(KERNEL):
                taps = taps + (_values(filters + (ky * KERNEL + kx) * CHANNELS, channels, CHANNELS, BLOCK),)
            pointers = _pointers(x, (image * HEIGHT + row) * WIDTH + first, channels, CHANNELS)
            for i in tl.static_range(COLUMNS):
                if i - BEFORE + LAST >= 0 and i - BEFORE < WIDTH:
                    column = _pixels(pointers, first, inside, channels, i - BEFORE, LAST, WIDTH, CHANNELS, BLOCK)
                    updated = ()
                    for j in tl.static_range(RUN):
                        output = outputs[j]
                        if SCALE * j + STEP * i + SHIFT >= 0 and SCALE * j + STEP * i + SHIFT < REACH:
                            if (SCALE * j + STEP * i + SHIFT) % DILATION == 0:
                                output += column * taps[(SCALE * j + STEP * i + SHIFT) // DILATION]
                        updated = updated + (output,)
                    outputs = updated
        pixel = (image * OUT_HEIGHT + y) * OUT_WIDTH + start
        to = _pointers(out, pixel, channels, CHANNELS)
        if BEHIND:
            of = _pointers(raw, pixel, channels, CHANNELS)
            m = _values(mean, channels, CHANNELS, BLOCK)
            r = _values(rstd, channels, CHANNELS, BLOCK)
            w = _values(weight, channels, CHANNELS, BLOCK)
            b = _values(bias, channels, CHANNELS, BLOCK)
        for j in tl.static_range(RUN):
            inside = item < items
            if OUT_WIDTH % RUN != 0:
                inside = inside & (start + j < OUT_WIDTH)
            mask = inside[:, None]
            if CHANNELS % BLOCK != 0:
                mask = mask & (channels < CHANNELS)[None, :]
            if BEHIND:
                normal = (tl.load(of + j * CHANNELS, mask, 0.0).to(tl.float32) - m) * r
                g = (outputs[j] * slope(normal * w + b, ACTIVATION)).to(out.dtype.element_ty)
                tl.store(to + j * CHANNELS, g, mask)
                rounded = g.to(tl.float32)
                if OUT_WIDTH % RUN != 0:  # beyond a row; beyond the map and its channels g is zero
                    rounded = tl.where(mask, rounded, 0.0)
                sums += rounded
                products += rounded * normal
            else:
                tl.store(to + j * CHANNELS, outputs[j].to(out.dtype.element_ty), mask)
    if BEHIND:
        totals = partials + program * 2 * CHANNELS + channels
        tl.store(totals, tl.sum(sums, 0), channels < CHANNELS)
        tl.store(totals + CHANNELS, tl.sum(products, 0), channels < CHANNELS)


@triton.jit
def _weight_gradient(  # type: ignore[no-untyped-def]
    grad, x, partials, items,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    GRAD_HEIGHT: tl.constexpr, GRAD_WIDTH: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr,
    RUN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Partial sums (programs, K * K, C) of the filters' gradient. An item is a run of grad, read once for all taps."""
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
        image, y, start = _runs(item, GRAD_HEIGHT, RUNS, RUN)
        first = start * STRIDE
        pointers = _pointers(grad, (image * GRAD_HEIGHT + y) * GRAD_WIDTH + start, channels, CHANNELS)
        grads = ()
        for j in tl.static_range(RUN):
            grads = grads + (_pixels(pointers, start, item < items, channels, j, LAST, GRAD_WIDTH, CHANNELS, BLOCK),)
        updated = ()
        for ky in tl.static_range(KERNEL):
            row = y * STRIDE - PADDING + ky * DILATION
            inside = (item < items) & (row >= 0) & (row < HEIGHT)
            pointers = _pointers(x, (image * HEIGHT + row) * WIDTH + first, channels, CHANNELS)
            taps = ()
            for kx in tl.static_range(KERNEL):
                taps = taps + (sums[ky * KERNEL + kx],)
            for i in tl.static_range(COLUMNS):
                if i - PADDING + LAST * STRIDE >= 0 and i - PADDING < WIDTH:
                    column = _pixels(
                        pointers, first, inside, channels, i - PADDING, LAST * STRIDE, WIDTH, CHANNELS, BLOCK
                    )
                    added = ()
                    for kx in tl.static_range(KERNEL):
                        # Tap kx reads column i for pixel (i - kx * DILATION) / STRIDE, where there is such a pixel.
                        tap = taps[kx]
                        if i >= kx * DILATION and i - kx * DILATION < RUN * STRIDE:
                            if (i - kx * DILATION) % STRIDE == 0:
                                tap += column * grads[(i - kx * DILATION) // STRIDE]
                        added = added + (tap,)
                    taps = added
            updated = updated + taps
        sums = updated
    # The sums of all taps side by side, so that warps wait for one another once, not once a tap.
    TAPS: tl.constexpr = KERNEL * KERNEL
    PADDED: tl.constexpr = 16 if TAPS < 16 else 32 if TAPS < 32 else 64
    for _ in tl.static_range(PADDED - TAPS):
        sums = sums + (tl.zeros((ROWS, BLOCK), tl.float32),)
    joined = _join(_join(_join(_join(sums, PADDED // 2), PADDED // 4), PADDED // 8), PADDED // 16)
    if PADDED > 16:
        joined = _join(joined, PADDED // 32)
    if PADDED > 32:
        joined = _join(joined, PADDED // 64)
    totals = tl.reshape(tl.sum(joined[0], 0), (BLOCK, PADDED))
    tap = tl.arange(0, PADDED)
    to = partials + program * TAPS * CHANNELS + tap[None, :] * CHANNELS + channels[:, None]
    tl.store(to, totals, (tap < TAPS)[None, :] & (channels < CHANNELS)[:, None])


@triton.jit
def _join(values, HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    """The first half of the values, each joined with the one that is as far into the second half."""
    joined = ()
    for i in tl.static_range(HALF):
        joined = joined + (tl.join(values[i], values[i + HALF]),)
    return joined


@triton.jit
def _add_partials(  # type: ignore[no-untyped-def]
    partials, out, programs,
    CHANNELS: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The sums of partials (programs, K * K, C), in a fixed order, into out (C, K * K)."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, programs, ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < programs)[:, None] & (column < TAPS * CHANNELS)[None, :]
        sums += tl.load(partials + row[:, None] * (TAPS * CHANNELS) + column[None, :], mask, 0.0)
    tap = column // CHANNELS
    tl.store(out + (column - tap * CHANNELS) * TAPS + tap, tl.sum(sums, 0), column < TAPS * CHANNELS)
