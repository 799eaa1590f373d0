"""The kernels of the depthwise convolution: see `depthwise.py`, which launches them."""

# mypy: disable-error-code="assignment,var-annotated"
# Kernels keep registers in tuples, which grow in loops that the compiler unrolls.

from __future__ import annotations

import triton
import triton.language as tl

from gaeanet.kernels.gpu.maps import slope


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
    that fit into a load instruction.
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
def convolve(  # type: ignore[no-untyped-def]
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
def weight_gradient_kernel(  # type: ignore[no-untyped-def]
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
def add_partials(  # type: ignore[no-untyped-def]
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
