"""Muon: the matrices of convolutions move along their orthogonalised momentum, everything else as under SGD.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon): of a matrix's momentum only the directions count, not
how large it is along each, so that rare directions learn as fast as those that dominate every gradient. A network of
many small convolutions, each followed by batch norm, gains much where epochs are few (docs/results.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

ROUNDS = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315
"""Of the quintic a x + b x^3 + c x^5: five times over it takes singular values from 0.003 to 1 to 0.68 to 1.14."""


def orthogonalised(matrices: Tensor) -> Tensor:
    """About the nearest matrices with orthonormal rows or columns, whichever are fewer: singular values of 0.7 to 1.2.

    A Newton-Schulz iteration, which takes products only. Matrices may have any scale; a zero matrix stays zero.

    Args:
        matrices: float32 (N, rows, columns).
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-30)
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = _A * x + (_B * square + _C * square @ square) @ x
    return x.mT if tall else x


def is_matrix(parameter: Tensor) -> bool:
    """Whether it is the weight of a convolution that mixes channels, (out, in, kh, kw), seen as (out, in * kh * kw)."""
    return parameter.ndim == 4 and parameter.shape[1] > 1


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov's momentum for matrices, SGD as PyTorch has it for depthwise filters, vectors and classifiers.

    A matrix W (m, n) with gradient G moves by

        M = momentum * M + G
        W = W - lr * (weight_decay * W + sqrt(max(1, m / n)) * orthogonalised(G + momentum * M))

    so that a step's Frobenius norm is about lr * sqrt(m) and one rate fits all widths. Weight decay is decoupled there,
    and part of the gradient elsewhere, as in `torch.optim.SGD`.

    Args:
        parameters: Groups of parameters, as PyTorch's optimizers take them.
    """

    def __init__(self, parameters: Iterable[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure else None
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            others = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if is_matrix(parameter):
                    alike[parameter.shape].append(parameter)
                else:
                    others.append(parameter)
            for matrices in alike.values():
                self._move_matrices(matrices, group)
            if others:
                self._move_others(others, group)
        return loss

    def _move_matrices(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """Those of one shape at once: a network has hundreds of small ones."""
        gradients, momenta = self._gradients_and_momenta(matrices)
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        ahead = torch._foreach_add(gradients, momenta, alpha=group["momentum"])
        shape = matrices[0].shape
        steps = orthogonalised(torch.stack([step.reshape(len(step), -1) for step in ahead]))
        scale = max(1.0, steps.shape[1] / steps.shape[2]) ** 0.5
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(matrices, [step.view(shape) for step in steps], alpha=-group["lr"] * scale)

    def _move_others(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients, momenta = self._gradients_and_momenta(parameters)
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        torch._foreach_add_(momenta, parameters, alpha=group["weight_decay"])
        torch._foreach_add_(parameters, momenta, alpha=-group["lr"])

    def _gradients_and_momenta(self, parameters: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        gradients, momenta = [], []
        for parameter in parameters:
            assert parameter.grad is not None
            gradients.append(parameter.grad)
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            momenta.append(state["momentum_buffer"])
        return gradients, momenta
