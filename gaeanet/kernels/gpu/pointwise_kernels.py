"""The kernels of the 1x1 convolution: see `pointwise.py`, which launches them."""

from __future__ import annotations

import triton
import triton.language as tl

from gaeanet.kernels.gpu.batch_norm import merged, write_statistics
from gaeanet.kernels.gpu.maps import activated, activated_and_slope, product, slope


@triton.jit
def _pixels(r, pixels, height, width, out_height, out_width, GATHER: tl.constexpr):  # type: ignore[no-untyped-def]
    """The input's rows that the output's rows r read, and which of them there are."""
    valid = r < pixels
    if GATHER < 0:
        return r, valid
    else:
        image = r // (out_height * out_width)
        inside = r - image * (out_height * out_width)
        out_y = inside // out_width
        y = out_y * 2 + GATHER
        x = (inside - out_y * out_width) * 2 + GATHER
        return (image * height + y) * width + x, valid & (y < height) & (x < width)


@triton.jit
def _norm_terms(mean, rstd, weight, sums, sums_step, inverse_pixels, k, OUTPUTS):  # type: ignore[no-untyped-def]
    """Batch norm's backward pass as three terms for each of the channels k; zero beyond the map's."""
    exists = k < OUTPUTS
    deviation = tl.load(rstd + k, exists, 0.0)
    scale = tl.load(weight + k, exists, 0.0) * deviation
    along = tl.load(sums + sums_step + k, exists, 0.0) * inverse_pixels * deviation
    centre = tl.load(mean + k, exists, 0.0)
    # scale * (g - mean of g - (value - centre) * along)
    constant = scale * (centre * along - tl.load(sums + k, exists, 0.0) * inverse_pixels)
    return scale, -scale * along, constant


@triton.jit
def _behind_norm(  # type: ignore[no-untyped-def]
    grad, raw, scale, factor, constant, r, k, valid, GRAD_STEP, RAW_STEP, OUTPUTS
):
    """The gradient of the raw map at rows r, channels k, in the map's dtype."""
    mask = valid[:, None] & (k < OUTPUTS)[None, :]
    g = tl.load(grad + r[:, None] * GRAD_STEP + k[None, :], mask, 0.0).to(tl.float32)
    value = tl.load(raw + r[:, None] * RAW_STEP + k[None, :], mask, 0.0).to(tl.float32)
    d = g * scale[None, :] + (value * factor[None, :] + constant[None, :])
    return d.to(raw.dtype.element_ty)


@triton.jit
def forward_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    out,
    partials,
    pixels,
    tiles,
    height,
    width,
    out_height,
    out_width,
    X_STEP: tl.constexpr,
    OUT_STEP: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATHER: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Computes out's transpose: there a channel's pixels lie in a few threads of one warp, which add them soonest."""
    DTYPE: tl.constexpr = out.dtype.element_ty
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    program = tl.program_id(1)
    k = tl.arange(0, BK)
    weights = weight + n[:, None] * INPUTS + k[None, :]
    if INPUTS <= BK:
        matrix = tl.load(weights, (n < OUTPUTS)[:, None] & (k < INPUTS)[None, :], 0.0)
    count = 0.0
    mean = tl.zeros((BN,), tl.float32)
    deviations = tl.zeros((BN,), tl.float32)
    for tile in range(program, tiles, tl.num_programs(1)):
        r = tile * BP + tl.arange(0, BP)
        p, valid = _pixels(r, pixels, height, width, out_height, out_width, GATHER)
        sums = tl.zeros((BN, BP), tl.float32)
        if INPUTS <= BK:
            a = tl.load(x + p[:, None] * X_STEP + k[None, :], valid[:, None] & (k < INPUTS)[None, :], 0.0)
            if ACTIVATION > 0:
                a = activated(a.to(tl.float32), ACTIVATION).to(DTYPE)
            sums = product(matrix, tl.trans(a), sums)
        else:
            for start in range(0, INPUTS, BK):
                exists = start + k < INPUTS
                a = tl.load(x + p[:, None] * X_STEP + (start + k)[None, :], valid[:, None] & exists[None, :], 0.0)
                if ACTIVATION > 0:
                    a = activated(a.to(tl.float32), ACTIVATION).to(DTYPE)
                b = tl.load(weights + start, (n < OUTPUTS)[:, None] & exists[None, :], 0.0)
                sums = product(b, tl.trans(a), sums)
        rounded = sums.to(DTYPE)
        mask = (n < OUTPUTS)[:, None] & (r < pixels)[None, :]
        tl.store(out + r[None, :] * OUT_STEP + n[:, None], rounded, mask)
        rows = tl.minimum(pixels - tile * BP, BP).to(tl.float32)
        count, mean, deviations = merged(count, mean, deviations, rounded.to(tl.float32), mask, rows, 1)
    write_statistics(partials, program, n, count, mean, deviations, OUTPUTS)


@triton.jit
def backward_kernel(  # type: ignore[no-untyped-def]
    grad,
    raw,
    mean,
    rstd,
    norm_weight,
    sums,
    sums_step,
    x,
    weight,
    into,
    partials,
    tiles,
    pixels,
    inverse_pixels,
    height,
    width,
    out_height,
    out_width,
    GRAD_STEP: tl.constexpr,
    RAW_STEP: tl.constexpr,
    X_STEP: tl.constexpr,
    INTO_STEP: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATHER: tl.constexpr,
    BP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Both gradients, for all output channels and BN input channels."""
    DTYPE: tl.constexpr = into.dtype.element_ty
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    program = tl.program_id(1)
    k = tl.arange(0, BM)
    mask = (k < OUTPUTS)[:, None] & (n < INPUTS)[None, :]
    matrix = tl.load(weight + k[:, None] * INPUTS + n[None, :], mask, 0.0)
    scale, factor, constant = _norm_terms(mean, rstd, norm_weight, sums, sums_step, inverse_pixels, k, OUTPUTS)
    weight_grad = tl.zeros((BM, BN), tl.float32)
    for tile in range(program, tiles, tl.num_programs(1)):
        r = tile * BP + tl.arange(0, BP)
        d = _behind_norm(grad, raw, scale, factor, constant, r, k, r < pixels, GRAD_STEP, RAW_STEP, OUTPUTS)
        p, valid = _pixels(r, pixels, height, width, out_height, out_width, GATHER)
        there = valid[:, None] & (n < INPUTS)[None, :]
        a = tl.load(x + p[:, None] * X_STEP + n[None, :], there, 0.0)
        x_grad = product(d, matrix, tl.zeros((BP, BN), tl.float32))
        if ACTIVATION > 0:
            z = a.to(tl.float32)
            value, derivative = activated_and_slope(z, ACTIVATION)
            x_grad *= derivative
            a = value.to(DTYPE)
        tl.store(into + p[:, None] * INTO_STEP + n[None, :], x_grad.to(DTYPE), there)
        weight_grad = product(tl.trans(d), a, weight_grad)
    at = partials + program * (OUTPUTS * INPUTS) + k[:, None] * INPUTS + n[None, :]
    tl.store(at, weight_grad, mask)


@triton.jit
def input_gradient_kernel(  # type: ignore[no-untyped-def]
    grad,
    raw,
    mean,
    rstd,
    norm_weight,
    sums,
    sums_step,
    x,
    weight,
    into,
    pixels,
    inverse_pixels,
    height,
    width,
    out_height,
    out_width,
    GRAD_STEP: tl.constexpr,
    RAW_STEP: tl.constexpr,
    X_STEP: tl.constexpr,
    INTO_STEP: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATHER: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """The gradient of the rows, for BN input channels."""
    DTYPE: tl.constexpr = into.dtype.element_ty
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    r = tl.program_id(1) * BP + tl.arange(0, BP)
    x_grad = tl.zeros((BP, BN), tl.float32)
    for start in range(0, OUTPUTS, BK):
        k = start + tl.arange(0, BK)
        scale, factor, constant = _norm_terms(mean, rstd, norm_weight, sums, sums_step, inverse_pixels, k, OUTPUTS)
        d = _behind_norm(grad, raw, scale, factor, constant, r, k, r < pixels, GRAD_STEP, RAW_STEP, OUTPUTS)
        mask = (k < OUTPUTS)[:, None] & (n < INPUTS)[None, :]
        x_grad = product(d, tl.load(weight + k[:, None] * INPUTS + n[None, :], mask, 0.0), x_grad)
    p, valid = _pixels(r, pixels, height, width, out_height, out_width, GATHER)
    there = valid[:, None] & (n < INPUTS)[None, :]
    if ACTIVATION > 0:
        z = tl.load(x + p[:, None] * X_STEP + n[None, :], there, 0.0).to(tl.float32)
        x_grad *= slope(z, ACTIVATION)
    tl.store(into + p[:, None] * INTO_STEP + n[None, :], x_grad.to(DTYPE), there)


@triton.jit
def weight_gradient_kernel(  # type: ignore[no-untyped-def]
    grad,
    raw,
    mean,
    rstd,
    norm_weight,
    sums,
    sums_step,
    x,
    partials,
    tiles,
    pixels,
    inverse_pixels,
    height,
    width,
    out_height,
    out_width,
    GRAD_STEP: tl.constexpr,
    RAW_STEP: tl.constexpr,
    X_STEP: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATHER: tl.constexpr,
    BP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """A program's part of the matrix's gradient."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.program_id(1) * BM + tl.arange(0, BM)
    program = tl.program_id(2)
    scale, factor, constant = _norm_terms(mean, rstd, norm_weight, sums, sums_step, inverse_pixels, k, OUTPUTS)
    weight_grad = tl.zeros((BM, BN), tl.float32)
    for tile in range(program, tiles, tl.num_programs(2)):
        r = tile * BP + tl.arange(0, BP)
        d = _behind_norm(grad, raw, scale, factor, constant, r, k, r < pixels, GRAD_STEP, RAW_STEP, OUTPUTS)
        p, valid = _pixels(r, pixels, height, width, out_height, out_width, GATHER)
        a = tl.load(x + p[:, None] * X_STEP + n[None, :], valid[:, None] & (n < INPUTS)[None, :], 0.0)
        if ACTIVATION > 0:
            a = activated(a.to(tl.float32), ACTIVATION).to(x.dtype.element_ty)
        weight_grad = product(tl.trans(d), a, weight_grad)
    at = partials + program * (OUTPUTS * INPUTS) + k[:, None] * INPUTS + n[None, :]
    tl.store(at, weight_grad, (k < OUTPUTS)[:, None] & (n < INPUTS)[None, :])
