"""The architecture parameters: weights on simplices, and their updates.

GAEA (Li et al. 2020, arXiv 2004.07802, section 3) keeps the weights themselves and moves them by mirror descent with
the entropy's mirror map, which is exponentiated gradient: p <- p * exp(-rate * gradient), each row normalised. The
baselines keep logits behind a softmax and move them with Adam, as DARTS and PC-DARTS do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gaeanet.cells.space import CANDIDATES, CELLS, EDGES, INTO, CellWeights, Weights
from gaeanet.config.search import Search

SMALLEST = 1e-5
"""Weights are raised to this before they are normalised, so that none is ever lost."""

BETAS, WEIGHT_DECAY = (0.5, 0.999), 1e-3
"""Of the baselines' Adam, as in the DARTS and PC-DARTS scripts."""

Mixture = Sequence[Tensor]
"""Operation weights (edges, candidates) of the normal and the reduction cell, then their edge weights (edges,)."""


def exponentiated_gradient(weights: Tensor, gradient: Tensor, rate: float) -> Tensor:
    """One step of mirror descent on each row's simplex; constants added to a row's gradient make no difference.

    Args:
        weights: Positive rows that sum to 1, (rows, n).
        gradient: Of the loss, (rows, n).
    """
    # In logarithms no gradient is too large: exp alone would overflow where a softmax does not.
    relative = gradient - gradient.mean(-1, keepdim=True)
    moved = torch.softmax(weights.log() - rate * relative, dim=-1).clamp(min=SMALLEST)
    return moved / moved.sum(-1, keepdim=True)


def entropy(rows: Tensor) -> Tensor:
    """Entropy of each row of a simplex in nats, (rows,): log(n) for a uniform row, 0 for a one-hot row."""
    return -torch.xlogy(rows, rows).sum(-1)


class Architecture:
    """The architecture parameters of both cells, and their optimizer.

    Args:
        steps: How many there will be; a scaled learning rate depends on it.

    Attributes:
        parameters: Weights (`gaea`) or logits; each cell's operations (edges, candidates), then, unless
            the method is `darts`, each cell's edges (edges,). They start uniform.
    """

    def __init__(
        self, search: Search, device: torch.device, dtype: torch.dtype = torch.float32, *, steps: int = 1
    ) -> None:
        self._method, self._rate = search.method, search.rate(steps)
        self._device, self._dtype = device, dtype
        operations = torch.zeros(len(EDGES), len(CANDIDATES), device=device, dtype=dtype)
        edges = torch.zeros(len(EDGES), device=device, dtype=dtype)
        if self._method == "gaea":
            operations.fill_(1 / len(CANDIDATES))
            for into in INTO:
                edges[list(into)] = 1 / len(into)
        kinds = [operations] * 2 + [edges] * 2 * (self._method != "darts")
        self.parameters = [kind.clone().requires_grad_() for kind in kinds]
        self._adam: torch.optim.Adam | None = None
        if self._method != "gaea":
            self._adam = torch.optim.Adam(
                self.parameters,
                lr=self._rate,
                betas=BETAS,
                weight_decay=WEIGHT_DECAY,
                capturable=device.type == "cuda",  # its counter on the device, where a step can be undone
            )

    def mixture(self) -> Mixture:
        """The weights that multiply operations and edges; gradients reach `parameters` through them."""
        operations, edges = self.parameters[:2], self.parameters[2:]
        if self._method == "gaea":
            return [*operations, *edges]
        operations = [torch.softmax(logits, dim=1) for logits in operations]
        if self._method == "darts":
            ones = torch.ones(len(EDGES), device=self._device, dtype=self._dtype)
            return [*operations, ones, ones]
        return [*operations, *(torch.cat([group.softmax(0) for group in _by_node(logits)]) for logits in edges)]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], scale: float = 1.0) -> list[Tensor]:
        """Moves the parameters by the loss's gradients with regard to them, at `scale` times the learning rate.

        Returns:
            A snapshot from before, with which `restore_unless` undoes the step.
        """
        before = self.snapshot()
        if self._adam is not None:
            for group in self._adam.param_groups:
                group["lr"] = self._rate * scale
            for parameter, gradient in zip(self.parameters, gradients):
                parameter.grad = gradient
            self._adam.step()
            self._adam.zero_grad()
            return before
        rate = self._rate * scale
        for parameter, gradient in zip(self.parameters, gradients):
            if parameter.dim() == 2:
                parameter.copy_(exponentiated_gradient(parameter, gradient, rate))
            else:
                pairs = zip(_by_node(parameter), _by_node(gradient))
                parameter.copy_(torch.cat([exponentiated_gradient(p, g, rate) for p, g in pairs]))
        return before

    @torch.no_grad()
    def weights(self) -> Weights:
        """The mixture as plain numbers."""
        normal, reduce, *edges = (tensor.tolist() for tensor in self.mixture())
        return {cell: CellWeights(rows, ends) for cell, rows, ends in zip(CELLS, (normal, reduce), edges)}

    @torch.no_grad()
    def entropies(self) -> tuple[float, float]:
        """Mean entropy in nats of the operations' simplices, and of the edges' (0 where the method has none)."""
        *operations, normal, reduce = self.mixture()
        edges = 0.0
        if self._method != "darts":
            edges = float(torch.cat([entropy(p[None]) for e in (normal, reduce) for p in _by_node(e)]).mean())
        return float(entropy(torch.cat(list(operations))).mean()), edges

    def snapshot(self) -> list[Tensor]:
        """Copies of all tensors that a step changes, in the order of `_changing`."""
        return [tensor.detach().clone() for tensor in self._changing()]

    @torch.no_grad()
    def restore_unless(self, finite: Tensor, before: Sequence[Tensor]) -> None:
        """Restores a snapshot where `finite` (0-d bool) is false; nothing waits for the device."""
        for number, tensor in enumerate(self._changing()):
            # Adam's moments are made by its first step: before it they are zero.
            old = before[number] if number < len(before) else torch.zeros_like(tensor)
            tensor.copy_(torch.where(finite.to(tensor.device, non_blocking=True), tensor, old))

    def _changing(self) -> list[Tensor]:
        moments = self._adam.state.values() if self._adam is not None else ()
        return [*self.parameters, *(value for state in moments for value in state.values())]

    def saved(self) -> dict[str, Tensor]:
        """All tensors by name, as a checkpoint keeps them."""
        tensors = {f"{number}": parameter.detach().clone() for number, parameter in enumerate(self.parameters)}
        if self._adam is not None:
            for number, values in self._adam.state_dict()["state"].items():
                tensors |= {f"{number}.{name}": value.detach().clone() for name, value in values.items()}
        return tensors

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Loads what `saved` gave; raises KeyError or RuntimeError where it is another method's."""
        for number, parameter in enumerate(self.parameters):
            parameter.copy_(tensors[f"{number}"])
        if self._adam is not None:
            moments: dict[int, dict[str, Any]] = {}
            for name, value in tensors.items():
                index, _, moment = name.partition(".")
                if moment:
                    moments.setdefault(int(index), {})[moment] = value.clone()
            self._adam.load_state_dict({**self._adam.state_dict(), "state": moments})


def _by_node(edges: Tensor) -> Sequence[Tensor]:
    """Values of the edges (edges,), split by the node that the edges enter."""
    groups: Sequence[Tensor] = edges.split([len(into) for into in INTO])
    return groups


def mixture_of(weights: Weights, device: torch.device, dtype: torch.dtype = torch.float32) -> Mixture:
    """A mixture from plain numbers."""
    rows = [weights[cell].operations for cell in CELLS] + [weights[cell].edges for cell in CELLS]
    return [torch.tensor(row, device=device, dtype=dtype) for row in rows]
