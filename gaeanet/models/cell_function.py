"""A cell's training step on the GPU kernels, as one autograd function.

Autograd sees a cell as one operation, so that nodes are written into the slices of the concatenated map, gradients are
read from slices, all gradients of a state are added in one pass, and whoever writes a map makes the statistics that its
batch norm needs. Batch norm's output is never stored: it is computed where it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gaeanet.kernels.gpu import batch_norm, depthwise, gate, nodes, pointwise
from gaeanet.kernels.gpu.batch_norm import Normalization
from gaeanet.kernels.gpu.maps import ACTIVATIONS, Size, as_map, empty_rows, rows
from gaeanet.kernels.gpu.nodes import Term
from gaeanet.kernels.maps import Window
from gaeanet.models.network import Cell
from gaeanet.models.operations import ConvNorm, DilatedConv, FactorizedReduce, SeparableConv, SqueezeExcite
from gaeanet.models.records import put_back, taken_out

RELU = ACTIVATIONS[nn.ReLU]


class CellFunction(torch.autograd.Function):
    """A cell in training: maps `older` and `newer` to the concatenation of its nodes.

    Arguments: the two maps (N, C, H, W), of the kernels' dtype; drop-path's factors (edges, N) float32 or None; the
    cell; its parameters, all of which learn.
    """

    @staticmethod
    def forward(
        ctx: Any, older: Tensor, newer: Tensor, factors: Tensor | None, cell: Cell, *parameters: Tensor
    ) -> Tensor:
        record, out = _forward(older, newer, factors, cell, _Weights(parameters, newer.dtype))
        ctx.record, tensors = taken_out(record)
        ctx.save_for_backward(*tensors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        before_parameters = 4
        gradients = _Gradients(len(ctx.needs_input_grad) - before_parameters)
        of_maps = _backward(put_back(ctx.record, ctx.saved_tensors), _dense_channels(rows(grad)), gradients)
        return (*of_maps, None, None, *gradients.of_parameters)


class GatedFunction(torch.autograd.Function):
    """A map times the gate that squeeze-and-excitation computes from its channels' means, in float32.

    The gate's parameters are arguments so that they receive gradients.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: SqueezeExcite, *parameters: Tensor) -> Tensor:
        given, size = _dense(x)
        means = gate.channel_means(given, size)
        with torch.autocast(x.device.type, enabled=False):
            factors = module.gate(means[:, :, None, None])[:, :, 0, 0].contiguous()
        ctx.save_for_backward(given, means, factors)
        ctx.module, ctx.size, ctx.parameters = module, size, parameters
        return as_map(gate.scaled(given, size, factors), size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (given, means, factors), size = ctx.saved_tensors, ctx.size
        grads, _ = _dense(grad)
        of_factors = gate.channel_dots(grads, given, size)
        wanted = [p for p in ctx.parameters if p.requires_grad]
        with torch.enable_grad(), torch.autocast(grad.device.type, enabled=False):  # a handful of numbers
            means = means.detach().requires_grad_()
            again = ctx.module.gate(means[:, :, None, None])[:, :, 0, 0]
            of_means, *of_wanted = torch.autograd.grad(again, [means, *wanted], of_factors)
        gradients = iter(of_wanted)
        of_parameters = [next(gradients) if p.requires_grad else None for p in ctx.parameters]
        shift = of_means / (size.height * size.width)
        return as_map(gate.scaled(grads, size, factors, shift), size), None, *of_parameters


class _Weights:
    """The parameters: their places among the function's arguments, and 1x1 convolutions as matrices of the map's dtype."""

    def __init__(self, parameters: Sequence[Tensor], dtype: torch.dtype) -> None:
        self.places = {id(parameter): place for place, parameter in enumerate(parameters)}
        self.dtype = dtype
        given = [p for p in parameters if p.ndim == 4 and p.shape[2:] == (1, 1)]
        matrices = [p.detach().flatten(1) for p in given]
        if matrices and dtype is not matrices[0].dtype:
            # All in one launch. Each begins at a multiple of 16 elements, as wide loads want it.
            starts = [0]
            for matrix in matrices:
                starts.append(starts[-1] + -(-matrix.numel() // 16) * 16)
            buffer = torch.empty(starts[-1], dtype=dtype, device=matrices[0].device)
            copies = [buffer[start : start + m.numel()].view(m.shape) for start, m in zip(starts, matrices)]
            torch._foreach_copy_(copies, matrices)
            matrices = copies
        self._matrices = {id(parameter): matrix for parameter, matrix in zip(given, matrices)}

    def matrix(self, convolution: nn.Conv2d) -> Tensor:
        """A 1x1 convolution's weight as (outputs, inputs)."""
        return self._matrices[id(convolution.weight)]

    def place(self, parameter: Tensor) -> int:
        return self.places[id(parameter)]


class _Gradients:
    """The gradients of the parameters, each at its parameter's place."""

    def __init__(self, parameters: int) -> None:
        self.of_parameters: list[Tensor | None] = [None] * parameters

    def norm(self, sums: Tensor, places: tuple[int, int]) -> None:
        """Those of batch norm's weight and bias, from the sums (2, C) of `finish_backward`."""
        self.of_parameters[places[0]], self.of_parameters[places[1]] = sums[1], sums[0]

    def convolution(self, grad: Tensor, weight: Tensor, place: int) -> None:
        """That of a convolution, with the strides of its weight, as DistributedDataParallel wants it."""
        self.of_parameters[place] = grad.as_strided(weight.shape, weight.stride())


class _State(NamedTuple):
    """A state: the terms whose sum it is, its rows where they are stored, and its activation where it is read."""

    size: Size
    terms: tuple[Term, ...]
    rows: Tensor | None
    active: Tensor | None


class _Projection(NamedTuple):
    """1x1 convolutions of act(x), side by side, and batch norm; each reads all pixels or (`gather`) a quarter."""

    x: Tensor
    size: Size
    activation: int
    gathers: tuple[int | None, ...]
    weights: tuple[Tensor, ...]
    matrices: tuple[Tensor, ...]
    raw: Tensor
    normalization: Normalization
    places: tuple[int, ...]
    norm_places: tuple[int, int]


class _Unit(NamedTuple):
    """A depthwise convolution of an activated map, a 1x1 convolution, batch norm."""

    given: Tensor
    size: Size
    window: Window
    activation: int
    filters: Tensor
    place: int
    projection: _Projection


class _Pool(NamedTuple):
    """A pooling of a state; `indices` of the largest values, None for an average."""

    x: Tensor
    size: Size
    kernel: int
    stride: int
    indices: Tensor | None


class _Factorized(NamedTuple):
    """A 1xk and a kx1 convolution of an activated map, and batch norm, by PyTorch's operators."""

    given: Tensor
    size: Size
    inner: Tensor
    weights: tuple[Tensor, ...]
    halved: tuple[Tensor, ...]
    strides: tuple[tuple[int, int], ...]
    paddings: tuple[tuple[int, int], ...]
    raw: Tensor
    normalization: Normalization
    eps: float
    places: tuple[int, ...]
    norm_places: tuple[int, int]


class _Edge(NamedTuple):
    """An operation on the state `source`: what of it the backward pass reads; None for a skip connection."""

    source: int
    work: tuple[_Unit, ...] | _Projection | _Pool | _Factorized | None


class _Record(NamedTuple):
    """What the backward pass reads of a cell."""

    inputs: tuple[_Projection, _Projection]
    states: tuple[_State, ...]
    edges: tuple[_Edge, ...]
    concat: tuple[int, ...]
    activation: int


def _forward(
    older: Tensor, newer: Tensor, factors: Tensor | None, cell: Cell, weights: _Weights
) -> tuple[_Record, Tensor]:
    activation = ACTIVATIONS[type(cell.preprocess1.op[0])]  # type: ignore[index, union-attr]
    operations = list(cell._ops)
    as_it_is, activated = _readings(operations, cell.inputs)
    inputs = (_preprocessed(cell.preprocess0, older, weights), _preprocessed(cell.preprocess1, newer, weights))
    states = []
    for source, projection in enumerate(inputs):
        terms = (Term(projection.raw, projection.normalization),)
        size = projection.size.strided(2) if len(projection.matrices) == 2 else projection.size
        out = empty_rows(size, projection.raw.shape[1], projection.raw) if source in as_it_is else None
        active = None
        if out is not None or source in activated:
            active = nodes.forward(terms, size, out, activation if source in activated else 0)
        states.append(_State(size, terms, out, active))

    width = inputs[0].raw.shape[1]
    stride = max((_stride(operation) for operation in operations), default=1)
    size = states[1].size.strided(stride)
    whole = empty_rows(size, len(cell.concat) * width, inputs[0].raw)
    edges: list[_Edge] = []
    first: Term | None = None
    for k, (operation, source) in enumerate(zip(operations, cell.inputs)):
        work, term = _applied(operation, states[source], weights)
        edges.append(_Edge(source, work))
        if factors is not None and cell._drop_paths[k].active:
            term = term._replace(factors=factors[k])
        if first is None:
            first = term
            continue
        state = len(states)
        if state in cell.concat:
            at = cell.concat.index(state) * width
            out = whole[:, at : at + width]
        else:
            out = empty_rows(size, width, whole)
        terms = (first, term)
        active = nodes.forward(terms, size, out, activation if state in activated else 0)
        states.append(_State(size, terms, out, active))
        first = None
    return _Record(inputs, tuple(states), tuple(edges), tuple(cell.concat), activation), as_map(whole, size)


def _backward(record: _Record, whole: Tensor, gradients: _Gradients) -> list[Tensor | None]:
    """The gradients of the cell's two inputs from that of its output, rows that may be strided."""
    direct: list[list[Tensor]] = [[] for _ in record.states]
    active: list[list[Tensor]] = [[] for _ in record.states]
    of_inputs: list[Tensor | None] = [None, None]
    for number in reversed(range(len(record.states))):
        state = record.states[number]
        width = state.terms[0].rows.shape[1]
        part = None
        if number in record.concat:
            at = record.concat.index(number) * width
            part = whole[:, at : at + width]
        if part is None and not direct[number] and not active[number]:
            continue  # nobody reads this state
        grads, partials = nodes.backward(
            state.terms, state.size, part, direct[number], active[number], state.rows, record.activation
        )
        direct[number], active[number] = [], []  # their memory is free for what follows
        sums = _sums(partials, state.terms)
        if number < 2:
            projection = record.inputs[number]
            of_inputs[number] = as_map(_projected_backward(projection, grads[0], sums[0], gradients), projection.size)
            continue
        for k in (0, 1):
            edge = record.edges[2 * (number - 2) + k]
            grad, through_activation = _applied_backward(edge.work, grads[k], sums[k], state.size, gradients)
            (active if through_activation else direct)[edge.source].append(grad)
    return of_inputs


def _sums(partials: Tensor | None, terms: tuple[Term, ...]) -> list[Tensor | None]:
    """For each term the sums (2, C) that its batch norm's gradients need, None where it has none: one launch for all."""
    if partials is None:
        return [None] * len(terms)
    programs, norms, _, channels = partials.shape
    finished = batch_norm.finish_backward(partials.view(programs, 2, norms * channels)).view(norms, 2, channels)
    each = iter(finished)
    return [next(each) if term.normalization is not None else None for term in terms]


def _readings(operations: Sequence[nn.Module], sources: Sequence[int]) -> tuple[set[int], set[int]]:
    """The states that some operation reads as they are (a skip connection reads a state's terms), and activated."""
    as_it_is, activated = set(), set()
    for operation, source in zip(operations, sources):
        if isinstance(operation, (FactorizedReduce, nn.MaxPool2d, nn.AvgPool2d)):
            as_it_is.add(source)
        elif not isinstance(operation, nn.Identity):
            activated.add(source)
    return as_it_is, activated


def _stride(operation: nn.Module) -> int:
    """By how much an operation makes its map smaller."""
    if isinstance(operation, FactorizedReduce):
        return 2
    if isinstance(operation, (nn.MaxPool2d, nn.AvgPool2d)):
        return int(operation.stride)  # type: ignore[arg-type]
    strides = (m.stride for m in operation.modules() if isinstance(m, nn.Conv2d))
    return max((step for stride in strides for step in stride), default=1)


# An operation forward: what it reads in the backward pass, and its output as a term of a node.


def _applied(operation: nn.Module, state: _State, weights: _Weights) -> tuple[Any, Term]:
    if isinstance(operation, nn.Identity):
        term = Term(state.rows) if state.rows is not None else state.terms[0]
        return None, term
    if isinstance(operation, FactorizedReduce):
        assert state.rows is not None
        reduced = _reduced(operation, state.rows, state.size, weights)
        return reduced, Term(reduced.raw, reduced.normalization)
    if isinstance(operation, (nn.MaxPool2d, nn.AvgPool2d)):
        assert state.rows is not None
        return _pooled(operation, state.rows, state.size)
    assert state.active is not None
    if isinstance(operation, (SeparableConv, DilatedConv)):
        units = _units(list(operation.op), state.active, state.size, weights)
        return units, Term(units[-1].projection.raw, units[-1].projection.normalization)
    factorized = _factorized(list(operation.children()), state.active, state.size, weights)
    return factorized, Term(factorized.raw, factorized.normalization)


def _applied_backward(
    work: tuple[_Unit, ...] | _Projection | _Pool | _Factorized | None,
    grad: Tensor,
    sums: Tensor | None,
    size: Size,
    gradients: _Gradients,
) -> tuple[Tensor, bool]:
    """The gradient of the state that the operation reads, and whether it is that of the activated state."""
    if work is None:
        return grad, False
    if isinstance(work, _Pool):
        return _pooled_backward(work, grad, size), False
    assert sums is not None
    if isinstance(work, _Projection):
        return _projected_backward(work, grad, sums, gradients), False
    if isinstance(work, _Factorized):
        return _factorized_backward(work, grad, sums, size, gradients), True
    return _units_backward(work, grad, sums, gradients), True


def _preprocessed(module: nn.Module, x: Tensor, weights: _Weights) -> _Projection:
    given, size = _dense_channels(rows(x)), Size(x.shape[0], x.shape[2], x.shape[3])
    if isinstance(module, FactorizedReduce):
        return _reduced(module, given, size, weights)
    assert isinstance(module, ConvNorm)
    activation, convolution, norm = module.op
    return _projected(given, size, ACTIVATIONS[type(activation)], (None,), [convolution], norm, weights)  # type: ignore[list-item, arg-type]


def _reduced(module: FactorizedReduce, given: Tensor, size: Size, weights: _Weights) -> _Projection:
    return _projected(given, size, RELU, (0, 1), [module.conv_1, module.conv_2], module.bn, weights)


def _projected(
    x: Tensor,
    size: Size,
    activation: int,
    gathers: tuple[int | None, ...],
    convolutions: list[nn.Conv2d],
    norm: nn.BatchNorm2d,
    weights: _Weights,
) -> _Projection:
    matrices = tuple(weights.matrix(convolution) for convolution in convolutions)
    if len(matrices) == 1:
        raw, partials = pointwise.forward(x, matrices[0], activation, size)
    else:
        raw = empty_rows(size.strided(2), norm.num_features, x)
        halves, start = [], 0
        for gather, matrix in zip(gathers, matrices):
            out = raw[:, start : start + len(matrix)]
            halves.append(pointwise.forward(x, matrix, activation, size, gather, out)[1])
            start += len(matrix)
        partials = _side_by_side(halves)
    return _Projection(
        x,
        size,
        activation,
        gathers,
        tuple(convolution.weight.detach() for convolution in convolutions),
        matrices,
        raw,
        batch_norm.finish(partials, norm),
        tuple(weights.place(convolution.weight) for convolution in convolutions),
        (weights.place(norm.weight), weights.place(norm.bias)),
    )


def _side_by_side(halves: list[Tensor]) -> Tensor:
    """Partial statistics of parts of the channels as one; a program that one part lacks has seen no pixel."""
    programs = max(len(half) for half in halves)
    return torch.cat([F.pad(half, (0, 0, 0, 0, 0, programs - len(half))) for half in halves], dim=2)


def _projected_backward(work: _Projection, grad: Tensor, sums: Tensor, gradients: _Gradients) -> Tensor:
    """The gradient of x from that of batch norm's output."""
    gradients.norm(sums, work.norm_places)
    if len(work.matrices) == 1:
        x_grad, weight_grad = pointwise.backward(
            grad, work.raw, work.normalization, sums, work.x, work.matrices[0], work.activation, work.size
        )
        assert weight_grad is not None
        gradients.convolution(weight_grad, work.weights[0], work.places[0])
        return x_grad
    x_grad, start = torch.zeros_like(work.x, memory_format=torch.contiguous_format), 0
    for gather, matrix, weight, place in zip(work.gathers, work.matrices, work.weights, work.places):
        end = start + len(matrix)
        _, weight_grad = pointwise.backward(
            grad[:, start:end],
            work.raw[:, start:end],
            work.normalization.channels(start, end),
            sums[:, start:end].contiguous(),
            work.x,
            matrix,
            work.activation,
            work.size,
            gather,
            x_grad,
        )
        assert weight_grad is not None
        gradients.convolution(weight_grad, weight, place)
        start = end
    return x_grad


def _units(modules: list[Any], given: Tensor, size: Size, weights: _Weights) -> tuple[_Unit, ...]:
    """Units of activation, depthwise convolution, 1x1 convolution, batch norm; the first one's input is activated."""
    units: list[_Unit] = []
    for first in range(0, len(modules), 4):
        module, convolution, matrix, norm = modules[first : first + 4]
        activation = ACTIVATIONS[type(module)]
        if units:
            before = units[-1].projection
            given = batch_norm.apply(before.raw, before.normalization, activation)
        window = Window(
            *(
                pair[0]
                for pair in (convolution.kernel_size, convolution.stride, convolution.padding, convolution.dilation)
            )
        )
        filters = convolution.weight.detach()
        inner, inner_size = depthwise.forward(given, size, filters, window), size.strided(window.stride)
        projection = _projected(inner, inner_size, 0, (None,), [matrix], norm, weights)
        units.append(_Unit(given, size, window, activation, filters, weights.place(convolution.weight), projection))
        size = inner_size
    return tuple(units)


def _units_backward(units: tuple[_Unit, ...], grad: Tensor, sums: Tensor, gradients: _Gradients) -> Tensor:
    """The gradient of the activated input from that of the last batch norm's output."""
    for number in reversed(range(len(units))):
        unit = units[number]
        grad = _projected_backward(unit.projection, grad, sums, gradients)
        of_filters = depthwise.weight_gradient(grad, unit.given, unit.size, unit.filters, unit.window)
        gradients.convolution(of_filters, unit.filters, unit.place)
        arguments = (grad, unit.size, unit.filters, unit.window)
        if number == 0:
            return depthwise.data_gradient(*arguments)
        before = units[number - 1].projection
        grad, partials = depthwise.data_gradient_behind(*arguments, before.raw, before.normalization, unit.activation)
        sums = batch_norm.finish_backward(partials)
    raise AssertionError("an operation without units")


def _pooled(operation: nn.MaxPool2d | nn.AvgPool2d, given: Tensor, size: Size) -> tuple[_Pool, Term]:
    kernel, stride = int(operation.kernel_size), int(operation.stride)  # type: ignore[arg-type]
    x, indices = as_map(given, size), None
    if isinstance(operation, nn.MaxPool2d):
        out, indices = F.max_pool2d(x, kernel, stride, kernel // 2, return_indices=True)
    else:
        out = F.avg_pool2d(x, kernel, stride, kernel // 2, count_include_pad=False)
    return _Pool(given, size, kernel, stride, indices), Term(_dense(out)[0])


def _pooled_backward(work: _Pool, grad: Tensor, size: Size) -> Tensor:
    x, window = as_map(work.x, work.size), [work.kernel] * 2
    arguments = (as_map(grad, size), x, window, [work.stride] * 2, [work.kernel // 2] * 2)
    if work.indices is not None:
        x_grad = torch.ops.aten.max_pool2d_with_indices_backward(*arguments, [1, 1], False, work.indices)
    else:
        x_grad = torch.ops.aten.avg_pool2d_backward(*arguments, False, False, None)
    return _dense(x_grad)[0]


def _factorized(modules: list[Any], given: Tensor, size: Size, weights: _Weights) -> _Factorized:
    _, *convolutions, norm = modules
    halved = tuple(convolution.weight.detach().to(given.dtype) for convolution in convolutions)
    x, between = as_map(given, size), []
    for convolution, weight in zip(convolutions, halved):
        between.append(x)
        x = F.conv2d(x, weight, None, convolution.stride, convolution.padding)
    raw, _ = _dense(x)
    return _Factorized(
        given,
        size,
        between[1],
        tuple(convolution.weight.detach() for convolution in convolutions),
        halved,
        tuple(convolution.stride for convolution in convolutions),
        tuple(convolution.padding for convolution in convolutions),
        raw,
        batch_norm.finish(batch_norm.statistics(raw), norm),
        norm.eps,
        tuple(weights.place(convolution.weight) for convolution in convolutions),
        (weights.place(norm.weight), weights.place(norm.bias)),
    )


def _factorized_backward(work: _Factorized, grad: Tensor, sums: Tensor, size: Size, gradients: _Gradients) -> Tensor:
    gradients.norm(sums, work.norm_places)
    norm = work.normalization
    grads, _, _ = torch.ops.aten.native_batch_norm_backward(
        as_map(grad, size),
        as_map(work.raw, size),
        norm.weight,
        None,
        None,
        norm.mean,
        norm.rstd,
        True,
        work.eps,
        [True, False, False],
    )
    inputs = (as_map(work.given, work.size), work.inner)
    for k in (1, 0):
        grads, weight_grad, _ = torch.ops.aten.convolution_backward(
            grads,
            inputs[k],
            work.halved[k],
            None,
            work.strides[k],
            work.paddings[k],
            [1, 1],
            False,
            [0, 0],
            1,
            [True, True, False],
        )
        weight = work.weights[k]
        gradients.of_parameters[work.places[k]] = torch.empty_like(weight).copy_(weight_grad)
    return _dense(grads)[0]


def _dense(x: Tensor) -> tuple[Tensor, Size]:
    """A map's rows, dense, and its size."""
    return rows(x.contiguous(memory_format=torch.channels_last)), Size(x.shape[0], x.shape[2], x.shape[3])


def _dense_channels(x: Tensor) -> Tensor:
    """Rows whose channels are contiguous, as the kernels want them: these, or a copy."""
    return x if x.stride(1) == 1 else x.contiguous()
