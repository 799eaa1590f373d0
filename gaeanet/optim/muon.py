"""Muon: convolutions are updated along their orthogonalised momentum, all other parameters by SGD.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon): of a matrix's momentum only the directions count, not
how large it is along each, so that rare directions learn as fast as those that dominate every gradient. A network of
many small convolutions, each followed by batch norm, gains much where epochs are few (docs/results.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
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
    x: Tensor = unit(matrices.transpose(1, 2) if tall else matrices)
    for _ in range(ROUNDS):
        square = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=_B, alpha=_C), x, beta=_A)
    return x.transpose(1, 2) if tall else x


def unit(matrices: Tensor) -> Tensor:
    """Each of the matrices (N, rows, columns) divided by its Frobenius norm; a zero matrix stays zero."""
    tiny = torch.finfo(matrices.dtype).tiny
    # Squares of what is small or large leave the range of float32: the largest value becomes 1 first.
    scaled = matrices / matrices.abs().amax((1, 2), keepdim=True).clamp_min(tiny)
    lengths: Tensor = torch.linalg.matrix_norm(scaled, keepdim=True)
    return scaled / lengths.clamp_min(tiny)


def as_matrices(weights: Sequence[Tensor]) -> Tensor:
    """Weights of one shape (out, in, kh, kw), stacked as (N, out, in * kh * kw); a stack stays as it is."""
    if weights[0].ndim == 3:
        return weights[0]
    return torch.stack([weight.reshape(len(weight), -1) for weight in weights])


def is_matrix(parameter: Tensor) -> bool:
    """Whether it is the weight of a convolution that mixes channels, (out, in, kh, kw), seen as (out, in * kh * kw)."""
    return parameter.ndim == 4 and parameter.shape[1] > 1


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov's momentum for matrices, SGD as PyTorch has it for depthwise filters, vectors and classifiers.

    A matrix W with gradient G moves by

        M = momentum * M + G
        U = orthogonalised(G + momentum * M)
        W = |W| * unit(unit(W) - lr * unit(U))

    in Frobenius norms: it turns by about `lr`, in radians, and keeps its length, which batch norm takes out of what
    the network computes but which sets how far a step turns. So one rate fits all matrices and the whole run follows
    its schedule, and weight decay has no part in it; elsewhere it is part of the gradient, as in `torch.optim.SGD`.

    Args:
        parameters: Groups of parameters, as PyTorch's optimizers take them. A parameter (N, rows, columns) is a stack
            of N matrices, as a flat buffer has it (`optim/flat.py`).
    """

    _step_supports_amp_scaling = True

    def __init__(self, parameters: Iterable[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Moves the parameters; where `found_inf` (0-d, as `torch.amp.GradScaler` sets it) is 1, nothing changes."""
        loss = closure() if closure else None
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            others = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.ndim == 3 or is_matrix(parameter):
                    alike[parameter.shape].append(parameter)
                else:
                    others.append(parameter)
            for matrices in alike.values():
                self._move_matrices(matrices, group)
            if others:
                self._move_others(others, group)
        return loss

    def _move_matrices(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """Moves matrices of one shape in one batch: a network has hundreds of small ones."""
        gradients, momenta = self._gradients_and_momenta(matrices)
        before, gradient = as_matrices(momenta), as_matrices(gradients)
        momentum = before * group["momentum"] + gradient
        directions = orthogonalised(torch.add(gradient, momentum, alpha=group["momentum"]))
        weights = as_matrices(matrices)
        lengths = torch.linalg.matrix_norm(weights, keepdim=True)
        turned = unit(unit(weights) - group["lr"] * unit(directions)) * lengths
        self._assign(momenta, self._unless_skipped(momentum, before))
        self._assign(matrices, self._unless_skipped(turned, weights))

    @staticmethod
    def _assign(tensors: list[Tensor], values: Tensor) -> None:
        """Copies matrices (N, rows, columns) to N tensors of one shape, or to the one stack of them."""
        shape = tensors[0].shape
        torch._foreach_copy_(tensors, [values] if len(shape) == 3 else [value.view(shape) for value in values])

    def _move_others(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients, momenta = self._gradients_and_momenta(parameters)
        changing = [*momenta, *parameters]
        before = [tensor.clone() for tensor in changing]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        torch._foreach_add_(momenta, parameters, alpha=group["weight_decay"])
        _descend(parameters, momenta, group["lr"])
        if self.found_inf is not None:
            for tensor, old in zip(changing, before):
                tensor.copy_(self._unless_skipped(tensor, old))

    def _unless_skipped(self, new: Tensor, old: Tensor) -> Tensor:
        return new if self.found_inf is None else torch.where(self.found_inf == 0, new, old)

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


def _descend(parameters: list[Tensor], momenta: list[Tensor], rate: float | Tensor) -> None:
    """Subtracts the rate times the momenta; the rate may be a tensor on the device (0-d)."""
    if isinstance(rate, Tensor) and rate.device.type != "cpu":
        torch._foreach_sub_(parameters, torch._foreach_mul(momenta, rate))
    else:  # one rounding less, and nothing to wait for
        torch._foreach_add_(parameters, momenta, alpha=-float(rate))
