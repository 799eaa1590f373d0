"""Sums over a map, of which each program of a kernel writes a part; a small kernel adds the parts in a fixed order.

Atomic additions would make two runs differ in their last bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 528
"""At most so many programs write partial sums: four for each of 132 multiprocessors."""


def programs(tiles: int, limit: int = PROGRAMS) -> int:
    """The number of programs that share `tiles` evenly, at most `limit`: no program waits for one with a tile more.

    One at least, also where the limit was divided among so many columns that nothing is left of it.
    """
    return int(triton.cdiv(tiles, triton.cdiv(tiles, max(limit, 1))))


def added(partials: Tensor) -> Tensor:
    """The sum of partials (programs, ...), contiguous float32, over programs: (...)."""
    out = torch.empty(partials.shape[1:], dtype=torch.float32, device=partials.device)
    columns = out.numel()
    block = min(max(int(triton.next_power_of_2(columns // 256)), 16), 128)  # for about 256 programs
    _added_kernel[(triton.cdiv(columns, block),)](partials, out, len(partials), columns, BP=2048 // block, BC=block)
    return out


@triton.jit
def _added_kernel(partials, out, programs, columns, BP: tl.constexpr, BC: tl.constexpr):  # type: ignore[no-untyped-def]
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    total = tl.zeros((BP, BC), tl.float32)
    for start in range(0, programs, BP):
        p = start + tl.arange(0, BP)
        mask = (p < programs)[:, None] & (c < columns)[None, :]
        total += tl.load(partials + p[:, None] * columns + c[None, :], mask, 0.0)
    tl.store(out + c, tl.sum(total, 0), c < columns)
