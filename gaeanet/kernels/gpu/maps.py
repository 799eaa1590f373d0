"""What the kernels share: maps as rows of pixels, activations, products.

A map (N, C, H, W) in channels-last memory is a matrix of rows, one a pixel: (N * H * W, C). A row's channels are
contiguous; rows may be further apart than they are long, as in a slice of a concatenated map. Kernels keep the dtype of
the maps that they are given (bf16 on a GPU, float32 in Triton's interpreter); sums and all arithmetic are float32.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
"""Triton's interpreter multiplies the bits of bf16 as if they were integers: there, products take float32."""

NONE, RELU, SWISH, HSWISH = (tl.constexpr(code) for code in range(4))
ACTIVATIONS: dict[type[nn.Module], int] = {nn.ReLU: 1, nn.SiLU: 2, nn.Hardswish: 3}
"""A kernel's number of an activation; 0 is none."""


INDICES = 2**31
"""Kernels count elements in int32: a map must span fewer."""


class Size(NamedTuple):
    """The size of a map: images, and pixels of each."""

    images: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        """Rows of the map."""
        return self.images * self.height * self.width

    def strided(self, stride: int) -> Size:
        """The size after an operation of this stride, which keeps ceil(H / stride) by ceil(W / stride) pixels."""
        return Size(self.images, -(-self.height // stride), -(-self.width // stride))


def rows(x: Tensor) -> Tensor:
    """The rows (N * H * W, C) of a map (N, C, H, W): a view where its pixels lie evenly, else a copy."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(n * h * w, c)


def as_map(rows: Tensor, size: Size) -> Tensor:
    """The map (N, C, H, W) of rows; a view."""
    return rows.view(*size, rows.shape[1]).permute(0, 3, 1, 2)


def empty_rows(size: Size, channels: int, like: Tensor) -> Tensor:
    """Rows for a map, of the dtype and on the device of `like`."""
    return torch.empty(size.pixels, channels, dtype=like.dtype, device=like.device)


def channel_block(channels: int, most: int = 64) -> int:
    """Channels of a program's tile: a power of two that holds all of them, 16 at least and `most` at most.

    64 channels are 128 bytes of a bf16 map, a line of the cache.
    """
    return min(max(int(triton.next_power_of_2(channels)), 16), most)


@triton.jit
def product(a, b, sums):  # type: ignore[no-untyped-def]
    """The product of two matrices, added to float32 sums."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), sums)
    else:
        return tl.dot(a, b, sums)


@triton.jit
def sigmoid(z):  # type: ignore[no-untyped-def]
    """The logistic function of float32 values, to about two units in the last place.

    Four instructions: Triton's own exponential and division take fourteen, since they also serve denormal numbers.
    """
    if INTERPRETED:
        return 1.0 / (1.0 + tl.exp(-z))
    else:
        return tl.inline_asm_elementwise(
            """{
            mul.f32 $0, $1, 0fBFB8AA3B;  // -log2(e)
            ex2.approx.ftz.f32 $0, $0;
            add.f32 $0, $0, 0f3F800000;
            rcp.approx.ftz.f32 $0, $0;
            }""",
            "=f,f",
            [z],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )


@triton.jit
def activated(z, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]
    """The activation of float32 values."""
    if ACTIVATION == 0:
        return z
    elif ACTIVATION == 1:
        return tl.maximum(z, 0.0)
    elif ACTIVATION == 2:
        return z * sigmoid(z)
    else:
        return z * tl.minimum(tl.maximum(z + 3.0, 0.0), 6.0) * (1.0 / 6.0)


@triton.jit
def slope(z, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]
    """The activation's derivative at float32 values, as PyTorch has it at its kinks."""
    if ACTIVATION == 0:
        return tl.zeros_like(z) + 1.0
    elif ACTIVATION == 1:
        return tl.where(z > 0.0, 1.0, 0.0)
    elif ACTIVATION == 2:
        s = sigmoid(z)
        return s * (1.0 + z * (1.0 - s))
    else:
        inside = z * (1.0 / 3.0) + 0.5
        return tl.where(z <= -3.0, 0.0, tl.where(z < 3.0, inside, 1.0))


@triton.jit
def activated_and_slope(z, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]
    """Both, for the price of one exponential."""
    if ACTIVATION == 2:
        s = sigmoid(z)
        value = z * s
        return value, s + value * (1.0 - s)
    else:
        return activated(z, ACTIVATION), slope(z, ACTIVATION)
