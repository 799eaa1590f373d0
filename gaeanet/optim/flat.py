"""Flat buffers: many small tensors side by side in one, so that one kernel does for all of them what hundreds did.

A network of cells has some 400 parameters, most of them a few thousand numbers. On a GPU an optimizer's step, a moving
average or a copy of them one by one takes longer than the numbers themselves would. In a flat buffer they are one
tensor; the parameters stay what they were to everyone else, views of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gaeanet.optim.muon import is_matrix

ALIGNMENT = 64
"""Each tensor begins at a multiple of so many bytes, as vectorised loads want it."""


class Span(NamedTuple):
    """A part of a flat buffer.

    Attributes:
        start, stop: Its elements.
        shape: As what an optimizer sees it: flat, or a stack of matrices (N, rows, columns).
    """

    start: int
    stop: int
    shape: tuple[int, ...]

    def of(self, buffer: Tensor) -> Tensor:
        """This part of a buffer; a view."""
        return buffer[self.start : self.stop].view(self.shape)


class Layout:
    """The order of some tensors in a flat buffer; buffers of one layout can be worked on side by side.

    Args:
        tensors: Dense tensors of one dtype, in any memory format.
        stacked: Whether matrices of one shape (see `muon.is_matrix`) lie side by side as a span of their own, without
            gaps: a stack (N, rows, columns) whose columns are in the order of their memory.

    Attributes:
        spans: Without `stacked` one; else a span for each shape of matrix, and a last one for all other tensors.
        elements: Of a buffer, gaps included.
    """

    def __init__(self, tensors: Sequence[Tensor], stacked: bool = False) -> None:
        self._like = tensors[0]
        self._starts = [0] * len(tensors)
        self._shapes = [(tensor.shape, tensor.stride()) for tensor in tensors]
        self.spans: list[Span] = []
        matrices: dict[tuple[int, ...], list[int]] = defaultdict(list)
        others = []
        for number, tensor in enumerate(tensors):
            if stacked and is_matrix(tensor):
                matrices[tensor.shape + tensor.stride()].append(number)
            else:
                others.append(number)
        grain = ALIGNMENT // self._like.element_size()
        end = 0
        for members in matrices.values():
            first = tensors[members[0]]
            start, size = end, first.numel()
            for position, number in enumerate(members):
                self._starts[number] = start + position * size
            stop = start + len(members) * size
            self.spans.append(Span(start, stop, (len(members), len(first), size // len(first))))
            end = -(-stop // grain) * grain
        start = end
        for number in others:
            self._starts[number] = end
            end += -(-tensors[number].numel() // grain) * grain
        if end > start:
            self.spans.append(Span(start, end, (end - start,)))
        self.elements = end

    def zeros(self) -> Tensor:
        """A flat buffer of zeros, (elements,)."""
        return torch.zeros(self.elements, dtype=self._like.dtype, device=self._like.device)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The tensors of a buffer, in the order, shapes and memory formats of those that the layout was made from."""
        offset = buffer.storage_offset()
        return [buffer.as_strided(*form, offset + start) for form, start in zip(self._shapes, self._starts)]

    @torch.no_grad()
    def gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """Moves tensors into a new flat buffer, whose views they become; values, shapes and strides stay."""
        buffer = self.zeros()
        for tensor, view in zip(tensors, self.views(buffer)):
            tensor.data = view.copy_(tensor)
        return buffer
