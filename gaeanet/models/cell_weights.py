"""A fused cell's parameters: as the kernels take them, and their gradients as autograd takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Weights:
    """Parameters among the arguments of an autograd function.

    Args:
        parameters: All of the cell's, each once.
        dtype: That of maps.
    """

    def __init__(self, parameters: Sequence[Tensor], dtype: torch.dtype) -> None:
        self._indices = {id(parameter): index for index, parameter in enumerate(parameters)}
        given = [p for p in parameters if p.ndim == 4 and p.shape[2:] == (1, 1)]
        self._matrices = dict(zip(map(id, given), _rounded([p.detach().flatten(1) for p in given], dtype)))
        self._filters: dict[int, Tensor] = {}
        for side in (3, 5, 7):
            filters = [p for p in parameters if p.ndim == 4 and p.shape[1:] == (1, side, side)]
            self._filters |= zip(map(id, filters), _taps_first([p.detach() for p in filters]))

    def index(self, parameter: Tensor) -> int:
        """The parameter's index among the parameters."""
        return self._indices[id(parameter)]

    def matrix(self, convolution: nn.Conv2d) -> Tensor:
        """A 1x1 convolution's weight as (outputs, inputs), of the map's dtype."""
        return self._matrices[id(convolution.weight)]

    def filters(self, convolution: nn.Conv2d) -> Tensor:
        """A depthwise convolution's weight (C, 1, K, K), in memory (K * K, C)."""
        return self._filters[id(convolution.weight)]


class Gradients:
    """The gradients of parameters, each at its parameter's index."""

    def __init__(self, parameters: int) -> None:
        self.at: list[Tensor | None] = [None] * parameters

    def norm(self, sums: Tensor, indices: tuple[int, int]) -> None:
        """Sets those of batch norm's weight and bias, from the sums (2, C) of `finish_backward`."""
        self.at[indices[0]], self.at[indices[1]] = sums[1], sums[0]

    def convolution(self, grad: Tensor, weight: Tensor, index: int) -> None:
        """Sets that of a convolution, with the strides of its weight, as DistributedDataParallel wants it."""
        if weight.is_contiguous() and grad.is_contiguous():  # the strides of sides of length 1 may differ
            self.at[index] = grad.as_strided(weight.shape, weight.stride())
        else:
            self.at[index] = torch.empty_like(weight).copy_(grad.view(weight.shape))


def _rounded(matrices: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Matrices in another dtype, by one launch; each begins at a multiple of 16 elements, as wide loads want it."""
    if not matrices or matrices[0].dtype is dtype:
        return [matrix.contiguous() for matrix in matrices]
    starts = [0]
    for matrix in matrices:
        starts.append(starts[-1] + -(-matrix.numel() // 16) * 16)
    buffer = torch.empty(starts[-1], dtype=dtype, device=matrices[0].device)
    copies = [buffer[start : start + m.numel()].view(m.shape) for start, m in zip(starts, matrices)]
    torch._foreach_copy_(copies, matrices)
    return copies


def _taps_first(filters: list[Tensor]) -> list[Tensor]:
    """Filters (C, 1, K, K) of one shape in memory (K * K, C), by two launches; any that lie so already are kept."""
    if not filters or all(f.stride(0) == 1 and f.flatten(1).t().is_contiguous() for f in filters):
        return filters
    channels, _, side, _ = filters[0].shape
    stacked = torch.stack([f.flatten(1) for f in filters])
    taps = stacked.transpose(1, 2).contiguous().view(len(filters), side, side, 1, channels)
    return list(taps.permute(0, 4, 3, 1, 2))
