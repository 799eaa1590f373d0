"""What squeeze-and-excitation does to a map: means of its channels, their gating, and the gradients of both.

The gate itself is a handful of numbers for each image, which PyTorch computes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gaeanet.kernels.gpu.maps import INDICES, Size, channel_block, empty_rows

_CHANNELS = 64
"""Channels of a program: 128 bytes of a bf16 map, a line of the cache."""

_SUMMED = 128
"""Pixels that a program adds to its sums at a time, with eight warps: enough loads for a memory far away."""

_SCALED = 64
"""Pixels of a program that scales, with four warps."""


def channel_means(x: Tensor, size: Size) -> Tensor:
    """The mean of each channel of each image, float32 (N, C); `x` are rows (P, C) of a map of this `size`.

    Raises:
        ValueError: Rows are not those of `size`, their channels are not contiguous, or they span 2**31 elements.
    """
    return _sums(x, x, size, dots=False)


def channel_dots(grad: Tensor, x: Tensor, size: Size) -> Tensor:
    """The sum of grad * x over the pixels of each image, float32 (N, C); both are rows (P, C) of maps of this `size`.

    Raises:
        ValueError: As `channel_means`.
    """
    return _sums(grad, x, size, dots=True)


def scaled(x: Tensor, size: Size, factors: Tensor, shift: Tensor | None = None) -> Tensor:
    """A map times factors, plus a shift, for each channel of each image.

    Args:
        x: Rows (P, C) of a map of this `size`.
        factors, shift: float32 (N, C), contiguous.

    Returns:
        Dense rows in the dtype of `x`.

    Raises:
        ValueError: As `channel_means`, or `factors` or `shift` are of another shape.
    """
    _check(x, size)
    channels = x.shape[1]
    for values in (factors, shift):
        if values is not None and (values.shape != (size.images, channels) or not values.is_contiguous()):
            raise ValueError(f"factors must be dense {(size.images, channels)}, got {tuple(values.shape)}")
    out = empty_rows(size, channels, x)
    pixels = size.height * size.width
    block, split = _blocks(channels)
    _scale[(size.images * triton.cdiv(pixels, _SCALED) * split,)](
        x, x.stride(0), factors, factors if shift is None else shift, out, pixels,
        CHANNELS=channels, SHIFTED=shift is not None, PIXELS=_SCALED, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out


def _sums(a: Tensor, b: Tensor, size: Size, dots: bool) -> Tensor:
    _check(a, size)
    _check(b, size)
    channels = a.shape[1]
    if b.shape[1] != channels:
        raise ValueError(f"two maps must have the same channels, got {channels} and {b.shape[1]}")
    out = torch.empty(size.images, channels, dtype=torch.float32, device=a.device)
    pixels = size.height * size.width
    block, split = _blocks(channels)
    at_once = min(_SUMMED, triton.next_power_of_2(pixels))
    _sum[(size.images * split,)](
        a, a.stride(0), b, b.stride(0), out, pixels,
        CHANNELS=channels, DOTS=dots, PIXELS=at_once, BLOCK=block, num_warps=8 if at_once == _SUMMED else 4,
    )  # fmt: skip
    return out


def _check(rows: Tensor, size: Size) -> None:
    if rows.ndim != 2 or len(rows) != size.pixels or rows.stride(1) != 1:
        raise ValueError(f"a map must be rows of {size}, got {tuple(rows.shape)} with strides {rows.stride()}")
    if size.pixels * rows.stride(0) >= INDICES:
        raise ValueError(f"a map must span fewer than {INDICES} elements, got {size.pixels * rows.stride(0)}")


def _blocks(channels: int) -> tuple[int, int]:
    """Channels of a program, and how many programs share a pixel."""
    block = channel_block(channels, _CHANNELS)
    return block, triton.cdiv(channels, block)


@triton.jit
def _sum(  # type: ignore[no-untyped-def]
    a, a_stride, b, b_stride, out, pixels,
    CHANNELS: tl.constexpr, DOTS: tl.constexpr, PIXELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The means of a (DOTS: the sums of a * b) over the pixels of an image."""
    SPLIT: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
    image = tl.program_id(0) // SPLIT
    channels = tl.program_id(0) % SPLIT * BLOCK + tl.arange(0, BLOCK)
    sums = tl.zeros((PIXELS, BLOCK), tl.float32)
    for first in range(0, pixels, PIXELS):
        pixel = first + tl.arange(0, PIXELS)
        row = image * pixels + pixel
        mask = (pixel < pixels)[:, None] & (channels < CHANNELS)[None, :]
        value = tl.load(a + row[:, None] * a_stride + channels[None, :], mask, 0.0).to(tl.float32)
        if DOTS:
            value *= tl.load(b + row[:, None] * b_stride + channels[None, :], mask, 0.0).to(tl.float32)
        sums += value
    total = tl.sum(sums, 0)
    if not DOTS:
        total = total / pixels
    tl.store(out + image * CHANNELS + channels, total, channels < CHANNELS)


@triton.jit
def _scale(  # type: ignore[no-untyped-def]
    x, x_stride, factors, shift, out, pixels,
    CHANNELS: tl.constexpr, SHIFTED: tl.constexpr, PIXELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Out = x * factors (SHIFTED: + shift); factors and shift are (N, C)."""
    SPLIT: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
    channels = tl.program_id(0) % SPLIT * BLOCK + tl.arange(0, BLOCK)
    tile = tl.program_id(0) // SPLIT
    tiles = tl.cdiv(pixels, PIXELS)
    image = tile // tiles
    pixel = (tile - image * tiles) * PIXELS + tl.arange(0, PIXELS)
    row = image * pixels + pixel
    of_image = image * CHANNELS + channels
    mask = (pixel < pixels)[:, None] & (channels < CHANNELS)[None, :]
    value = tl.load(x + row[:, None] * x_stride + channels[None, :], mask, 0.0).to(tl.float32)
    value *= tl.load(factors + of_image, channels < CHANNELS, 0.0)[None, :]
    if SHIFTED:
        value += tl.load(shift + of_image, channels < CHANNELS, 0.0)[None, :]
    tl.store(out + row[:, None] * CHANNELS + channels[None, :], value.to(out.dtype.element_ty), mask)
