"""The 1x1 convolution between an activation and a batch norm, and its gradients.

A map's rows times a matrix: memory-bound, so each map is read once for all that needs it. The product's epilogue makes
the batch norm's statistics; the backward pass applies the batch norm's and the activation's derivatives where it reads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from gaeanet.kernels.gpu import partials as parts
from gaeanet.kernels.gpu.batch_norm import Normalization
from gaeanet.kernels.gpu.maps import INDICES, INTERPRETED, Size
from gaeanet.kernels.gpu.pointwise_kernels import (
    backward_kernel,
    forward_kernel,
    input_gradient_kernel,
    weight_gradient_kernel,
)


class _Tiles(NamedTuple):
    """How a kernel is cut up: pixels of a tile, the launch's parameters, and how many programs share the pixels."""

    pixels: int
    num_warps: int
    num_stages: int
    programs: int = parts.PROGRAMS


# By the larger number of padded channels of a tile's product, which decides registers: none may spill. Hopper's wgmma
# reads operands from shared memory. Elsewhere threads keep the weight in registers, where both gradients of 128
# channels do not fit beside it: each has a kernel of its own, as it has everywhere with more channels.
_FORWARD = {64: _Tiles(64, 4, 3), 128: _Tiles(64, 8, 3)}
_FORWARD_OLDER = {64: _Tiles(64, 4, 2), 128: _Tiles(64, 8, 3)}
_BACKWARD = {64: _Tiles(64, 4, 3, 264), 128: _Tiles(64, 8, 2, 132)}
_BACKWARD_OLDER = {64: _Tiles(32, 4, 2, 264)}
_INPUT_GRADIENT = {64: _Tiles(64, 4, 3), 128: _Tiles(64, 8, 3)}
_WEIGHT_GRADIENT = _Tiles(64, 4, 3, 132)


def forward(
    x: Tensor,
    weight: Tensor,
    activation: int,
    size: Size,
    gather: int | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The product act(x) @ weight.T and its partial statistics.

    Args:
        x: Rows (P, C_in) of a map of this `size`.
        weight: (C_out, C_in), contiguous, of the map's dtype.
        activation: Its number.
        size: Of x.
        gather: 0 or 1: reads every other pixel of every other row, from that one on. The output's size is
            `size.strided(2)`; a pixel beyond an odd map is zero.
        out: Rows (P_out, C_out) to write into, else dense ones.

    Returns:
        The raw output (P_out, C_out), and the statistics (programs, 3, C_out), float32, of its values as rounded to the
        map's dtype. P_out decides how many programs.

    Raises:
        ValueError: Tensors do not fit each other or the size, or a map is beyond 32-bit indices.
    """
    outputs, inputs = weight.shape
    to = _output_size(size, gather)
    if out is None:
        out = torch.empty((to.pixels, outputs), dtype=x.dtype, device=x.device)
    _check(x, size.pixels, inputs)
    _check(out, to.pixels, outputs)
    _check_weight(weight, x)
    block = _block(outputs)
    tiling = (_FORWARD if _is_hopper() else _FORWARD_OLDER)[64 if block <= 64 else 128]
    tiles = triton.cdiv(to.pixels, tiling.pixels)
    programs = parts.programs(tiles, tiling.programs)
    partials = torch.empty((programs, 3, outputs), dtype=torch.float32, device=x.device)
    forward_kernel[(triton.cdiv(outputs, block), programs)](
        x,
        weight,
        out,
        partials,
        to.pixels,
        tiles,
        *_sides(size, to),
        X_STEP=x.stride(0),
        OUT_STEP=out.stride(0),
        INPUTS=inputs,
        OUTPUTS=outputs,
        ACTIVATION=activation,
        GATHER=_NO_GATHER if gather is None else gather,
        BP=tiling.pixels,
        BN=block,
        BK=_block(inputs) if inputs <= 128 else 64,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    return out, partials


def backward(
    grad: Tensor,
    raw: Tensor,
    normalization: Normalization,
    sums: Tensor,
    x: Tensor,
    weight: Tensor,
    activation: int,
    size: Size,
    gather: int | None = None,
    into: Tensor | None = None,
    need_weight: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of `forward` and the batch norm behind it.

    Args:
        grad: Rows (P_out, C_out): the gradient of batch norm's output.
        raw: Rows (P_out, C_out) that `forward` returned.
        normalization: The batch norm of raw.
        sums: (2, C_out) of `batch_norm.finish_backward`, or a slice of its columns.
        x, weight, activation, size, gather: As given to `forward`.
        into: Rows (P, C_in) to write x's gradient into, else dense ones. With `gather` only the gathered pixels are
            written; new rows are zero elsewhere.
        need_weight: Whether the weight learns.

    Returns:
        The gradient of x, and that of weight (C_out, C_in), float32, or None.

    Raises:
        ValueError: As `forward`.
    """
    outputs, inputs = weight.shape
    to = _output_size(size, gather)
    if into is None:
        new = torch.empty if gather is None else torch.zeros
        into = new((size.pixels, inputs), dtype=x.dtype, device=x.device)
    _check(x, size.pixels, inputs)
    _check(into, size.pixels, inputs)
    _check(grad, to.pixels, outputs)
    _check(raw, to.pixels, outputs)
    _check_weight(weight, x)
    behind = grad, raw, normalization.mean, normalization.rstd, normalization.weight, sums, sums.stride(0)
    shape = to.pixels, 1.0 / to.pixels, *_sides(size, to)
    constants = {
        "GRAD_STEP": grad.stride(0),
        "RAW_STEP": raw.stride(0),
        "X_STEP": x.stride(0),
        "INPUTS": inputs,
        "OUTPUTS": outputs,
        "ACTIVATION": activation,
        "GATHER": _NO_GATHER if gather is None else gather,
    }
    fused = _BACKWARD if _is_hopper() else _BACKWARD_OLDER
    if need_weight and outputs <= max(fused):
        block = _block(inputs, max(fused))
        columns = triton.cdiv(inputs, block)
        tiling = fused[64 if max(outputs, block) <= 64 else 128]
        tiles = triton.cdiv(to.pixels, tiling.pixels)
        partials = _weight_partials(tiles, tiling.programs // columns, weight)
        backward_kernel[(columns, len(partials))](
            *behind,
            x,
            weight,
            into,
            partials,
            tiles,
            *shape,
            **constants,
            INTO_STEP=into.stride(0),
            BP=tiling.pixels,
            BM=_block(outputs),
            BN=block,
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
        )
        return into, parts.added(partials)

    block = _block(inputs)
    columns = triton.cdiv(inputs, block)
    tiling = _INPUT_GRADIENT[64 if block <= 64 else 128]
    input_gradient_kernel[(columns, triton.cdiv(to.pixels, tiling.pixels))](
        *behind,
        x,
        weight,
        into,
        *shape,
        **constants,
        INTO_STEP=into.stride(0),
        BP=tiling.pixels,
        BN=block,
        BK=_block(outputs, 64),
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    if not need_weight:
        return into, None
    tiling, height = _WEIGHT_GRADIENT, _block(outputs, 64)
    blocks = triton.cdiv(outputs, height)
    tiles = triton.cdiv(to.pixels, tiling.pixels)
    partials = _weight_partials(tiles, tiling.programs // (columns * blocks), weight)
    weight_gradient_kernel[(columns, blocks, len(partials))](
        *behind,
        x,
        partials,
        tiles,
        *shape,
        **constants,
        BP=tiling.pixels,
        BM=height,
        BN=block,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    return into, parts.added(partials)


_NO_GATHER = -1


def _output_size(size: Size, gather: int | None) -> Size:
    return size if gather is None else size.strided(2)


def _sides(size: Size, to: Size) -> tuple[int, int, int, int]:
    return size.height, size.width, to.height, to.width


def _block(channels: int, most: int = 128) -> int:
    """Channels of a tile: all up to `most`, else 128 or 64, which divide 3 * 2^n without a remainder."""
    if channels <= most:
        return max(int(triton.next_power_of_2(channels)), 16)  # tl.dot takes no less
    return 128 if channels % 128 == 0 and most == 128 else 64


def _is_hopper() -> bool:
    return INTERPRETED.value or bool(triton.runtime.driver.active.get_current_target().arch // 10 == 9)


def _weight_partials(tiles: int, programs: int, weight: Tensor) -> Tensor:
    shape = parts.programs(tiles, programs), *weight.shape
    return torch.empty(shape, dtype=torch.float32, device=weight.device)


def _check(rows: Tensor, pixels: int, channels: int) -> None:
    if rows.shape != (pixels, channels) or rows.stride(1) != 1:
        raise ValueError(f"rows must be ({pixels}, {channels}) with contiguous channels, got {tuple(rows.shape)}")
    if pixels * rows.stride(0) >= INDICES:
        raise ValueError(f"{pixels} rows of {rows.stride(0)} values are beyond 32-bit indices: take a smaller batch")


def _check_weight(weight: Tensor, x: Tensor) -> None:
    if not weight.is_contiguous() or weight.dtype != x.dtype:
        raise ValueError(f"the weight must be contiguous and of the map's dtype {x.dtype}, got {weight.dtype}")
