"""Kernels for a cell's states: sums of operations' outputs on the way forward, sums of gradients on the way back.

A state is the sum of one or two terms. A term is a raw map that batch norm is yet to be applied to, or a map as it is,
and drop-path may scale each of its images. Batch norm is applied where a term is read, so that its output is never
stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gaeanet.kernels.gpu import partials as parts
from gaeanet.kernels.gpu.batch_norm import Normalization
from gaeanet.kernels.gpu.maps import INDICES, Size, activated, channel_block, empty_rows, slope

CHANNELS = {24: 32, 96: 32}
"""Channels of a program's tile by those of the map; for others the next power of two, 64 at most."""
FORWARD_TILE, BACKWARD_TILE = 2048, 1024
"""Elements of a tile: two loads of 16 bytes a thread from each map, and one where many maps are read."""
WARPS = 4


class Term(NamedTuple):
    """A term of a state.

    Attributes:
        rows: Dense rows (P, C) where `normalization` is given, else rows that may be strided.
        normalization: The batch norm to be applied to them, or None.
        factors: Drop-path's factors (N,) float32, which scale the images, or None.
    """

    rows: Tensor
    normalization: Normalization | None = None
    factors: Tensor | None = None


def forward(terms: Sequence[Term], size: Size, out: Tensor | None = None, activation: int = 0) -> Tensor | None:
    """Writes the sum of one or two terms into `out`, and its activation to a new map.

    Args:
        terms: One or two.
        size: The map's size.
        out: Rows (P, C), which may be strided, for the state; None where the state itself is not needed.
        activation: The activation's number; 0 where the activated state is not needed.

    Returns:
        The activated state, dense rows (P, C), or None.

    Raises:
        ValueError: A map has 2^31 elements or more.
    """
    rows = terms[0].rows
    channels = rows.shape[1]
    _check_indices(size, *(term.rows for term in terms), *([] if out is None else [out]))
    active = empty_rows(size, channels, rows) if activation else None
    block, height = _tile(channels, FORWARD_TILE)
    grid = (triton.cdiv(channels, block), triton.cdiv(size.pixels, height))
    _forward_kernel[grid](
        *_arguments(terms[0]),
        *(_arguments(terms[1]) if len(terms) == 2 else [None] * 7),
        out,
        out.stride(0) if out is not None else 0,
        active,
        size.pixels,
        size.height * size.width,
        CHANNELS=channels,
        ACTIVATION=activation,
        HEIGHT=height,
        BLOCK=block,
        num_warps=WARPS,
    )
    return active


def backward(
    terms: Sequence[Term],
    size: Size,
    whole: Tensor | None = None,
    direct: Sequence[Tensor] = (),
    active: Sequence[Tensor] = (),
    value: Tensor | None = None,
    activation: int = 0,
) -> tuple[list[Tensor], Tensor | None]:
    """The gradients of a state's terms: the sum of the gradients from all readers of the state.

    Args:
        terms: The state's terms, one or two, as in `forward`.
        size: The map's size.
        whole: The gradient of the state within the concatenated map, rows (P, C) that may be strided, or None.
        direct: Further gradients of the state, dense rows.
        active: Gradients of the activated state, dense rows.
        value: The state's rows, which may be strided. None where the state is the first term's batch norm alone.
        activation: The activation's number.

    Returns:
        For each term the gradient of its batch norm's output, or of itself, as dense rows; one tensor for both
        where drop-path scales neither. And float32 partial sums (programs, norms, 2, C) for the terms with a batch norm
        in order: of the gradient and of its product with the normalized map.

    Raises:
        ValueError: A map has 2^31 elements or more.
    """
    rows = terms[0].rows
    channels = rows.shape[1]
    given = [*direct, *active, *(x for x in (whole, value) if x is not None)]
    _check_indices(size, *(term.rows for term in terms), *given)
    scaled = any(term.factors is not None for term in terms)
    grads = [empty_rows(size, channels, rows)]
    if len(terms) == 2:
        grads.append(empty_rows(size, channels, rows) if scaled else grads[0])
    block, height = _tile(channels, BACKWARD_TILE)
    columns = triton.cdiv(channels, block)
    programs = parts.programs(triton.cdiv(size.pixels, height), parts.PROGRAMS // columns)
    norms = sum(term.normalization is not None for term in terms)
    partials = torch.empty(programs, norms, 2, channels, dtype=torch.float32, device=rows.device) if norms else None
    first = _arguments(terms[0])
    second = _arguments(terms[1]) if len(terms) == 2 else [None] * 7
    _backward_kernel[(columns, programs)](
        whole,
        whole.stride(0) if whole is not None else 0,
        tuple(direct),
        tuple(active),
        value if active else None,
        value.stride(0) if active and value is not None else 0,
        *first,
        *second,
        grads[0],
        grads[1] if scaled and len(terms) == 2 else None,
        partials,
        size.pixels,
        size.height * size.width,
        CHANNELS=channels,
        ACTIVATION=activation,
        HEIGHT=height,
        BLOCK=block,
        num_warps=WARPS,
    )
    return grads, partials


def _arguments(term: Term) -> list[Tensor | int | None]:
    """A term as the kernels take it: rows and their stride, batch norm, factors."""
    norm = term.normalization
    affine = [None] * 4 if norm is None else [norm.mean, norm.rstd, norm.weight, norm.bias]
    return [term.rows, term.rows.stride(0), *affine, term.factors]


def _tile(channels: int, elements: int) -> tuple[int, int]:
    """Channels and rows of a program's tile."""
    block = CHANNELS.get(channels, channel_block(channels))
    return block, elements // block


def _check_indices(size: Size, *maps: Tensor) -> None:
    """The kernels' indices are 32 bits wide."""
    if any(size.pixels * max(x.stride(0), x.shape[1]) >= INDICES for x in maps):
        raise ValueError(f"a map of {size.images} x {size.height} x {size.width} pixels has 2^31 elements or more")


@triton.jit
def _normalized(x, mean, rstd, c, inside):  # type: ignore[no-untyped-def]
    """Values x with mean 0 and variance 1."""
    return (x - tl.load(mean + c, inside, 0.0)[None, :]) * tl.load(rstd + c, inside, 0.0)[None, :]


@triton.jit
def _affine(x, weight, bias, c, inside):  # type: ignore[no-untyped-def]
    return x * tl.load(weight + c, inside, 0.0)[None, :] + tl.load(bias + c, inside, 0.0)[None, :]


@triton.jit
def _load(x, stride, r, c, mask):  # type: ignore[no-untyped-def]
    return tl.load(x + r[:, None] * stride + c[None, :], mask, 0.0).to(tl.float32)


@triton.jit
def _scale(x, factors, r, pixels, rows):  # type: ignore[no-untyped-def]
    """Values x times their image's factor."""
    return x * tl.load(factors + r // pixels, r < rows, 0.0)[:, None]


@triton.jit
def _term(x, stride, mean, rstd, weight, bias, factors, r, c, mask, rows, pixels, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """A term's values."""
    v = _load(x, stride, r, c, mask)
    if mean is not None:
        v = _affine(_normalized(v, mean, rstd, c, c < C), weight, bias, c, c < C)
    if factors is not None:
        v = _scale(v, factors, r, pixels, rows)
    return v


@triton.jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    x0,
    stride0,
    mean0,
    rstd0,
    weight0,
    bias0,
    factors0,
    x1,
    stride1,
    mean1,
    rstd1,
    weight1,
    bias1,
    factors1,
    out,
    out_stride,
    active,
    rows,
    pixels,
    CHANNELS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HEIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    r = tl.program_id(1) * HEIGHT + tl.arange(0, HEIGHT)
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = (r < rows)[:, None] & (c < CHANNELS)[None, :]
    v = _term(x0, stride0, mean0, rstd0, weight0, bias0, factors0, r, c, mask, rows, pixels, CHANNELS)
    if x1 is not None:
        v += _term(x1, stride1, mean1, rstd1, weight1, bias1, factors1, r, c, mask, rows, pixels, CHANNELS)
    if out is not None:
        stored = v.to(out.dtype.element_ty)
        tl.store(out + r[:, None] * out_stride + c[None, :], stored, mask)
        v = stored.to(tl.float32)  # the state that the backward pass reads
    if active is not None:
        v = activated(v, ACTIVATION)
        tl.store(active + r[:, None] * CHANNELS + c[None, :], v.to(active.dtype.element_ty), mask)


@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    whole,
    whole_stride,
    direct,
    active,
    value,
    value_stride,
    x0,
    stride0,
    mean0,
    rstd0,
    weight0,
    bias0,
    factors0,
    x1,
    stride1,
    mean1,
    rstd1,
    weight1,
    bias1,
    factors1,
    grad0,
    grad1,
    partials,
    rows,
    pixels,
    CHANNELS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HEIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = c < CHANNELS
    # The sums stay in each thread's registers until the end, where rows are added up once. Where both terms have one
    # gradient, so have they one sum of it.
    sums0 = tl.zeros((HEIGHT, BLOCK), tl.float32)
    sums1 = tl.zeros((HEIGHT, BLOCK), tl.float32)
    products0 = tl.zeros((HEIGHT, BLOCK), tl.float32)
    products1 = tl.zeros((HEIGHT, BLOCK), tl.float32)
    for start in range(tl.program_id(1) * HEIGHT, rows, tl.num_programs(1) * HEIGHT):
        r = start + tl.arange(0, HEIGHT)
        mask = (r < rows)[:, None] & inside[None, :]
        v = tl.zeros((HEIGHT, BLOCK), tl.float32)
        for i in tl.static_range(len(active)):
            v += _load(active[i], CHANNELS, r, c, mask)
        if mean0 is not None:
            normalized0 = _normalized(_load(x0, stride0, r, c, mask), mean0, rstd0, c, inside)
        if len(active) > 0:
            if value is not None:
                v *= slope(_load(value, value_stride, r, c, mask), ACTIVATION)
            else:
                v *= slope(_affine(normalized0, weight0, bias0, c, inside), ACTIVATION)
        for i in tl.static_range(len(direct)):
            v += _load(direct[i], CHANNELS, r, c, mask)
        if whole is not None:
            v += _load(whole, whole_stride, r, c, mask)
        at = r[:, None] * CHANNELS + c[None, :]
        g0 = v
        if factors0 is not None:
            g0 = _scale(v, factors0, r, pixels, rows)
        stored0 = g0.to(grad0.dtype.element_ty)
        tl.store(grad0 + at, stored0, mask)
        g0 = stored0.to(tl.float32)  # zero outside of the map, as is what was loaded
        g1 = g0
        if grad1 is not None:
            g1 = v
            if factors1 is not None:
                g1 = _scale(v, factors1, r, pixels, rows)
            stored1 = g1.to(grad1.dtype.element_ty)
            tl.store(grad1 + at, stored1, mask)
            g1 = stored1.to(tl.float32)
        if partials is not None:
            sums0 += g0
            if grad1 is not None:
                sums1 += g1
            if mean0 is not None:
                products0 += g0 * normalized0
            if mean1 is not None:
                products1 += g1 * _normalized(_load(x1, stride1, r, c, mask), mean1, rstd1, c, inside)
    if partials is not None:
        total0 = tl.sum(sums0, 0)
        if mean0 is not None:
            if mean1 is not None:
                at = partials + tl.program_id(1) * (4 * CHANNELS) + c
            else:
                at = partials + tl.program_id(1) * (2 * CHANNELS) + c
            tl.store(at, total0, inside)
            tl.store(at + CHANNELS, tl.sum(products0, 0), inside)
        if mean1 is not None:
            if mean0 is not None:
                at = partials + tl.program_id(1) * (4 * CHANNELS) + 2 * CHANNELS + c
            else:
                at = partials + tl.program_id(1) * (2 * CHANNELS) + c
            if grad1 is not None:
                tl.store(at, tl.sum(sums1, 0), inside)
            else:
                tl.store(at, total0, inside)
            tl.store(at + CHANNELS, tl.sum(products1, 0), inside)
