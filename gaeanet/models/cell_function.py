"""A cell's training step on the GPU kernels, as one autograd function.

Autograd sees a cell as one operation, so that nodes are written into the slices of the concatenated map, gradients are
read from slices, all gradients of a state are added in one pass, and whoever writes a map makes the statistics that its
batch norm needs. Batch norm's output is computed where it is read, and not stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Union

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gaeanet.kernels.gpu import batch_norm, gate, nodes
from gaeanet.kernels.gpu.maps import ACTIVATIONS, Size, as_map, empty_rows, rows
from gaeanet.kernels.gpu.nodes import Term
from gaeanet.models import cell_operations as operations
from gaeanet.models.cell_operations import Factorized, Pool, Projection, Units
from gaeanet.models.cell_weights import Gradients, Weights
from gaeanet.models.network import Cell
from gaeanet.models.operations import DilatedConv, FactorizedReduce, SeparableConv, SqueezeExcite
from gaeanet.models.records import put_back, taken_out


class CellFunction(torch.autograd.Function):
    """A cell in training: maps `older` and `newer` to the concatenation of its nodes.

    Arguments: the two maps (N, C, H, W), of the kernels' dtype; drop-path's factors (edges, N) float32 or None; the
    cell; its parameters, all of which learn.
    """

    @staticmethod
    def forward(
        ctx: Any, older: Tensor, newer: Tensor, factors: Tensor | None, cell: Cell, *parameters: Tensor
    ) -> Tensor:
        record, out = _forward(older, newer, factors, cell, Weights(parameters, newer.dtype))
        ctx.record, tensors = taken_out(record)
        ctx.save_for_backward(*tensors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = Gradients(len(ctx.needs_input_grad) - 4)
        of_inputs = _backward(put_back(ctx.record, ctx.saved_tensors), _rows(grad), gradients)
        return (*of_inputs, None, None, *gradients.at)


class GatedFunction(torch.autograd.Function):
    """A map times the gate that squeeze-and-excitation computes from its channels' means, in float32.

    The gate's parameters are arguments so that they receive gradients.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: SqueezeExcite, *parameters: Tensor) -> Tensor:
        given, size = operations.dense(x), _size(x)
        means = gate.channel_means(given, size)
        with torch.autocast(x.device.type, enabled=False):
            factors = module.gate(means[:, :, None, None]).flatten(1)
        ctx.save_for_backward(given, means, factors)
        ctx.module, ctx.size, ctx.parameters = module, size, parameters  # themselves: what is saved may be a copy
        return as_map(gate.scaled(given, size, factors), size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (given, means, factors), size = ctx.saved_tensors, ctx.size
        grads = operations.dense(grad)
        of_factors = gate.channel_dots(grads, given, size)
        wanted = [p for p in ctx.parameters if p.requires_grad]
        with torch.enable_grad(), torch.autocast(grad.device.type, enabled=False):  # a handful of numbers, recomputed
            means = means.detach().requires_grad_()
            of_means, *of_wanted = torch.autograd.grad(
                ctx.module.gate(means[:, :, None, None]).flatten(1), [means, *wanted], of_factors
            )
        gradients = iter(of_wanted)
        of_parameters = [next(gradients) if p.requires_grad else None for p in ctx.parameters]
        shift = of_means / (size.height * size.width)
        return as_map(gate.scaled(grads, size, factors, shift), size), None, *of_parameters


Operation = Union[Units, Projection, Pool, Factorized]


@dataclass(frozen=True)
class _State:
    """A state: the terms whose sum it is, its rows where they are stored, and its activation where it is read."""

    size: Size
    terms: tuple[Term, ...]
    rows: Tensor | None
    active: Tensor | None


@dataclass(frozen=True)
class _Edge:
    """The operation on the state `source`, None for a skip connection."""

    source: int
    operation: Operation | None


@dataclass(frozen=True)
class _Record:
    """What the backward pass reads of a cell."""

    inputs: tuple[Projection, Projection]
    states: tuple[_State, ...]
    edges: tuple[_Edge, ...]
    concat: tuple[int, ...]
    activation: int


def _forward(
    older: Tensor, newer: Tensor, factors: Tensor | None, cell: Cell, weights: Weights
) -> tuple[_Record, Tensor]:
    modules = list(cell._ops)
    activation = ACTIVATIONS[type(next(cell.preprocess1.op.children()))]
    as_it_is, activated = _readings(modules, cell.inputs)
    inputs = (
        operations.preprocess(cell.preprocess0, _rows(older), _size(older), weights),
        operations.preprocess(cell.preprocess1, _rows(newer), _size(newer), weights),
    )
    states: list[_State] = []
    terms: tuple[Term, ...]
    for source, projection in enumerate(inputs):
        terms, size = (Term(*projection.out),), projection.out_size
        out = empty_rows(size, projection.raw.shape[1], projection.raw) if source in as_it_is else None
        active = None
        if source in as_it_is | activated:
            active = nodes.forward(terms, size, out, activation if source in activated else 0)
        states.append(_State(size, terms, out, active))

    width, size = inputs[1].raw.shape[1], states[1].size.strided(_stride(modules[0]))
    whole = empty_rows(size, len(cell.concat) * width, inputs[1].raw)
    edges: list[_Edge] = []
    pending: list[Term] = []
    for k, (module, source) in enumerate(zip(modules, cell.inputs)):
        operation = _applied(module, states[source], weights)
        edges.append(_Edge(source, operation))
        term = _read(states[source]) if operation is None else Term(*operation.out)
        pending.append(term if factors is None or not cell._drop_paths[k].active else term._replace(factors=factors[k]))
        if len(pending) == 2:
            number, terms = len(states), tuple(pending)
            part = _part(whole, cell.concat, number, width)
            out = part if part is not None else empty_rows(size, width, whole)
            active = nodes.forward(terms, size, out, activation if number in activated else 0)
            states.append(_State(size, terms, out, active))
            pending = []
    return _Record(inputs, tuple(states), tuple(edges), tuple(cell.concat), activation), as_map(whole, size)


def _backward(record: _Record, whole: Tensor, gradients: Gradients) -> list[Tensor | None]:
    """The gradients of the cell's two inputs from that of its output, rows that may be strided."""
    direct: list[list[Tensor]] = [[] for _ in record.states]
    active: list[list[Tensor]] = [[] for _ in record.states]
    of_inputs: list[Tensor | None] = [None, None]
    for number in reversed(range(len(record.states))):
        state = record.states[number]
        part = _part(whole, record.concat, number, state.terms[0].rows.shape[1])
        if part is None and not direct[number] and not active[number]:
            continue  # nobody reads this state
        grads, partials = nodes.backward(
            state.terms, state.size, part, direct[number], active[number], state.rows, record.activation
        )
        direct[number], active[number] = [], []  # their memory is free for what follows
        sums = _sums(partials, state.terms)
        if number < 2:
            projection = record.inputs[number]
            of_inputs[number] = as_map(projection.backward(grads[0], sums[0], gradients), projection.size)
            continue
        for edge, grad, of_norm in zip(record.edges[2 * number - 4 : 2 * number - 2], grads, sums):
            operation = edge.operation
            if operation is None:
                direct[edge.source].append(grad)
            else:
                to = active if operation.reads_active else direct
                to[edge.source].append(operation.backward(grad, of_norm, gradients))
    return of_inputs


def _applied(module: nn.Module, state: _State, weights: Weights) -> Operation | None:
    if isinstance(module, nn.Identity):
        return None
    if isinstance(module, (FactorizedReduce, nn.MaxPool2d, nn.AvgPool2d)):
        assert state.rows is not None
        if isinstance(module, FactorizedReduce):
            return operations.factorized_reduce(module, state.rows, state.size, weights)
        return operations.pool(module, state.rows, state.size)
    assert state.active is not None
    if isinstance(module, (SeparableConv, DilatedConv)):
        return operations.units(list(module.op), state.active, state.size, weights)
    return operations.factorized(list(module.children()), state.active, state.size, weights)


def _readings(modules: Sequence[nn.Module], sources: Sequence[int]) -> tuple[set[int], set[int]]:
    """The states that operations read as they are, and activated; skip connections read what there is."""
    as_it_is, activated = set(), set()
    for module, source in zip(modules, sources):
        if isinstance(module, (FactorizedReduce, nn.MaxPool2d, nn.AvgPool2d)):
            as_it_is.add(source)
        elif not isinstance(module, nn.Identity):
            activated.add(source)
    return as_it_is, activated


def _read(state: _State) -> Term:
    """A state as a term of another one."""
    return state.terms[0] if state.rows is None else Term(state.rows)


def _part(whole: Tensor, concat: Sequence[int], number: int, width: int) -> Tensor | None:
    """The slice of the concatenated map that is this state, None where it is not in there."""
    if number not in concat:
        return None
    start = list(concat).index(number) * width
    return whole[:, start : start + width]


def _sums(partials: Tensor | None, terms: tuple[Term, ...]) -> list[Tensor | None]:
    """For each term the sums (2, C) that its batch norm's gradients need, None where it has none; by one launch."""
    if partials is None:
        return [None] * len(terms)
    programs, norms, _, channels = partials.shape
    sums = iter(batch_norm.finish_backward(partials.view(programs, 2, norms * channels)).view(norms, 2, channels))
    return [next(sums) if term.normalization is not None else None for term in terms]


def _stride(module: nn.Module) -> int:
    """By how much an operation makes its map smaller."""
    if isinstance(module, FactorizedReduce):
        return 2
    if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
        return int(module.stride)  # type: ignore[arg-type]
    return max((step for m in module.modules() if isinstance(m, nn.Conv2d) for step in m.stride), default=1)


def _rows(x: Tensor) -> Tensor:
    """A map's rows with contiguous channels, as the kernels want them: a view where it has them, else a copy."""
    given = rows(x)
    return given if given.stride(1) == 1 else given.contiguous()


def _size(x: Tensor) -> Size:
    return Size(x.shape[0], x.shape[2], x.shape[3])
