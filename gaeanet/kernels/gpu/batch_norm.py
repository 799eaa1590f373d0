"""Batch norm in training: statistics of a map, their use, and the sums that its gradients need.

Whoever writes a map also writes partial statistics of it (programs, 3, C): how many pixels, their mean, and the sum of
squared deviations from that mean. They combine without cancellation (Chan et al. 1979, "Updating formulae and a
pairwise algorithm for computing sample variances"), so that a channel whose mean is large keeps its variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from gaeanet.kernels.gpu import partials as parts
from gaeanet.kernels.gpu.maps import activated

_TILE = 4096
"""Values of a map that a program of 4 warps has in registers: 32 a thread, four loads of 16 bytes in bf16."""


@dataclass(frozen=True)
class Normalization:
    """Batch norm of a map, (x - mean) * rstd * weight + bias: four contiguous float32 tensors (C,)."""

    mean: Tensor
    rstd: Tensor
    weight: Tensor
    bias: Tensor

    def channels(self, start: int, stop: int) -> Normalization:
        """The batch norm of channels start to stop; views."""
        return Normalization(*(t[start:stop] for t in (self.mean, self.rstd, self.weight, self.bias)))


def statistics(rows: Tensor) -> Tensor:
    """The partial statistics (programs, 3, C) of rows (P, C), for a map whose kernel wrote none."""
    pixels, channels = rows.shape
    block, height = _tile(channels)
    tiles = triton.cdiv(pixels, height)
    partials = torch.empty((parts.programs(tiles), 3, channels), dtype=torch.float32, device=rows.device)
    _statistics_kernel[(len(partials), triton.cdiv(channels, block))](
        rows, partials, pixels, tiles, STEP=rows.stride(0), C=channels, BP=height, BC=block
    )
    return partials


def finish(partials: Tensor, norm: nn.BatchNorm2d) -> Normalization:
    """The normalization of a map by its batch statistics, from the partial ones (programs, 3, C), float32, contiguous.

    Updates the running statistics of `norm` in place, not its count of batches.

    Raises:
        ValueError: `norm` has no weight, no running statistics, or averages them without a momentum.
    """
    if norm.weight is None or norm.running_mean is None or norm.running_var is None or norm.momentum is None:
        raise ValueError("batch norm must have a weight, running statistics and a momentum")
    channels = partials.shape[2]
    mean, rstd = torch.empty((2, channels), dtype=torch.float32, device=partials.device).unbind()
    block = 8
    _finish_kernel[(triton.cdiv(channels, block),)](
        partials,
        len(partials),
        mean,
        rstd,
        norm.running_mean,
        norm.running_var,
        norm.momentum,
        norm.eps,
        C=channels,
        BP=256,
        BC=block,
        num_warps=8,
    )
    return Normalization(mean, rstd, norm.weight.detach(), norm.bias.detach())


def finish_backward(partials: Tensor) -> Tensor:
    """The gradients of batch norm's bias and weight, in this order (2, C), from partial sums (programs, 2, C).

    They are the sums over pixels of g and of g * xhat: g is the gradient of batch norm's output, xhat the normalized
    map (raw - mean) * rstd.
    """
    return parts.added(partials)


def apply(raw: Tensor, normalization: Normalization, activation: int) -> Tensor:
    """The activation of a map's batch norm: dense rows (P, C) from rows (P, C)."""
    pixels, channels = raw.shape
    out = torch.empty((pixels, channels), dtype=raw.dtype, device=raw.device)
    block, height = _tile(channels)
    _apply_kernel[(triton.cdiv(pixels, height), triton.cdiv(channels, block))](
        raw,
        out,
        normalization.mean,
        normalization.rstd,
        normalization.weight,
        normalization.bias,
        pixels,
        STEP=raw.stride(0),
        C=channels,
        ACTIVATION=activation,
        BP=height,
        BC=block,
    )
    return out


def _tile(channels: int) -> tuple[int, int]:
    """Channels and pixels of a tile."""
    block = min(triton.next_power_of_2(channels), 256)
    return block, _TILE // block


@triton.jit
def merged(count, mean, deviations, values, valid, pixels, AXIS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Statistics (C,) of pixels and those of a tile of float32 values, of which `pixels` are valid along AXIS."""
    tile_mean = tl.sum(tl.where(valid, values, 0.0), AXIS) / pixels
    apart = tl.where(valid, values - tl.expand_dims(tile_mean, AXIS), 0.0)
    total = count + pixels
    delta = tile_mean - mean
    mean += delta * (pixels / total)
    deviations += tl.sum(apart * apart, AXIS) + delta * delta * (count * pixels / total)
    return total, mean, deviations


@triton.jit
def write_statistics(partials, program, c, count, mean, deviations, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """Writes the statistics of a program's pixels into partials (programs, 3, C)."""
    at = partials + program * (3 * C) + c
    tl.store(at, tl.zeros_like(mean) + count, c < C)
    tl.store(at + C, mean, c < C)
    tl.store(at + 2 * C, deviations, c < C)


@triton.jit
def _statistics_kernel(  # type: ignore[no-untyped-def]
    rows, partials, pixels, tiles, STEP: tl.constexpr, C: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr
):
    program = tl.program_id(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    count = 0.0
    mean = tl.zeros((BC,), tl.float32)
    deviations = tl.zeros((BC,), tl.float32)
    for tile in range(program, tiles, tl.num_programs(0)):
        r = tile * BP + tl.arange(0, BP)
        mask = (r < pixels)[:, None] & (c < C)[None, :]
        values = tl.load(rows + r[:, None] * STEP + c[None, :], mask, 0.0).to(tl.float32)
        height = tl.minimum(pixels - tile * BP, BP).to(tl.float32)
        count, mean, deviations = merged(count, mean, deviations, values, mask, height, 0)
    write_statistics(partials, program, c, count, mean, deviations, C)


@triton.jit
def _finish_kernel(  # type: ignore[no-untyped-def]
    partials,
    programs,
    mean,
    rstd,
    running_mean,
    running_var,
    momentum,
    eps,
    C: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    valid = c < C
    # The first program's mean is near the map's: differences from it lose nothing, in one pass over the partials.
    near = tl.load(partials + C + c, valid, 0.0)
    counts = tl.zeros((BP, BC), tl.float32)
    firsts = tl.zeros((BP, BC), tl.float32)
    seconds = tl.zeros((BP, BC), tl.float32)
    for start in range(0, programs, BP):
        p = start + tl.arange(0, BP)
        mask = (p < programs)[:, None] & valid[None, :]
        at = partials + p[:, None] * (3 * C) + c[None, :]
        count = tl.load(at, mask, 0.0)
        delta = tl.load(at + C, mask, 0.0) - near[None, :]
        counts += count
        firsts += count * delta
        seconds += tl.load(at + 2 * C, mask, 0.0) + count * delta * delta
    count = tl.maximum(tl.sum(counts, 0), 1.0)
    delta = tl.sum(firsts, 0) / count
    deviations = tl.maximum(tl.sum(seconds, 0) - count * delta * delta, 0.0)
    new_mean = near + delta
    tl.store(mean + c, new_mean, valid)
    tl.store(rstd + c, 1.0 / tl.sqrt(deviations / count + eps), valid)
    unbiased = deviations / tl.maximum(count - 1.0, 1.0)
    old = tl.load(running_mean + c, valid, 0.0)
    tl.store(running_mean + c, old + momentum * (new_mean - old), valid)
    old = tl.load(running_var + c, valid, 0.0)
    tl.store(running_var + c, old + momentum * (unbiased - old), valid)


@triton.jit
def _apply_kernel(  # type: ignore[no-untyped-def]
    raw,
    out,
    mean,
    rstd,
    weight,
    bias,
    pixels,
    STEP: tl.constexpr,
    C: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    r = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    mask = (r < pixels)[:, None] & (c < C)[None, :]
    scale = tl.load(weight + c, c < C, 0.0) * tl.load(rstd + c, c < C, 0.0)
    centred = tl.load(raw + r[:, None] * STEP + c[None, :], mask, 0.0).to(tl.float32) - tl.load(mean + c, c < C, 0.0)
    z = centred * scale[None, :] + tl.load(bias + c, c < C, 0.0)
    tl.store(out + r[:, None] * C + c[None, :], activated(z, ACTIVATION).to(out.dtype.element_ty), mask)
