"""A cell's operations on the GPU kernels: forward passes, and records of what their backward passes read.

Each record's `backward` takes the gradient of the operation's output, dense rows, and (where batch norm made it) the
sums that batch norm's gradients need; it sets its parameters' gradients and returns that of the state it read, dense
rows: the state as it is, or where `reads_active` its activation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gaeanet.kernels.gpu import batch_norm, depthwise, pointwise, pooling
from gaeanet.kernels.gpu.batch_norm import Normalization
from gaeanet.kernels.gpu.maps import ACTIVATIONS, Size, as_map, empty_rows, rows
from gaeanet.kernels.maps import Window
from gaeanet.models.cell_weights import Gradients, Weights
from gaeanet.models.operations import ConvNorm, FactorizedReduce


@dataclass(frozen=True)
class Projection:
    """Batch norm of act(x) times a matrix, or of two such products side by side, each of every other pixel of x."""

    reads_active: ClassVar[bool] = False
    x: Tensor
    size: Size
    activation: int
    gathers: tuple[int | None, ...]
    weights: tuple[Tensor, ...]
    matrices: tuple[Tensor, ...]
    raw: Tensor
    normalization: Normalization
    indices: tuple[int, ...]
    norm_indices: tuple[int, int]

    @property
    def out_size(self) -> Size:
        """The size of the output."""
        return self.size if self.gathers[0] is None else self.size.strided(2)

    @property
    def out(self) -> tuple[Tensor, Normalization]:
        """The raw output and its batch norm."""
        return self.raw, self.normalization

    def backward(self, grad: Tensor, sums: Tensor | None, gradients: Gradients) -> Tensor:
        """See above."""
        assert sums is not None
        gradients.norm(sums, self.norm_indices)
        into = None if self.gathers[0] is None else torch.zeros(self.x.shape, dtype=self.x.dtype, device=self.x.device)
        start = 0
        for gather, weight, matrix, index in zip(self.gathers, self.weights, self.matrices, self.indices):
            part = slice(start, start + len(matrix))
            into, of_matrix = pointwise.backward(
                grad[:, part],
                self.raw[:, part],
                self.normalization.channels(part.start, part.stop),
                sums[:, part],
                self.x,
                matrix,
                self.activation,
                self.size,
                gather,
                into,
            )
            assert of_matrix is not None
            gradients.convolution(of_matrix, weight, index)
            start = part.stop
        assert into is not None
        return into


def preprocess(module: nn.Module, x: Tensor, size: Size, weights: Weights) -> Projection:
    """A cell's preprocessing of an input."""
    if isinstance(module, FactorizedReduce):
        return factorized_reduce(module, x, size, weights)
    assert isinstance(module, ConvNorm)
    activation, convolution, norm = module.op
    return _projected(x, size, ACTIVATIONS[type(activation)], (None,), (convolution,), norm, weights)


def factorized_reduce(module: FactorizedReduce, x: Tensor, size: Size, weights: Weights) -> Projection:
    """Every other pixel of every other row, from the first and from the second on, each with a matrix of its own."""
    convolutions = (module.conv_1, module.conv_2)
    return _projected(x, size, ACTIVATIONS[type(module.relu)], (0, 1), convolutions, module.bn, weights)


def _projected(
    x: Tensor,
    size: Size,
    activation: int,
    gathers: tuple[int | None, ...],
    convolutions: tuple[Any, ...],
    norm: Any,
    weights: Weights,
) -> Projection:
    matrices = tuple(weights.matrix(convolution) for convolution in convolutions)
    if len(matrices) == 1:
        raw, partials = pointwise.forward(x, matrices[0], activation, size)
    else:
        raw, start, halves = empty_rows(size.strided(2), norm.num_features, x), 0, []
        for gather, matrix in zip(gathers, matrices):
            out = raw[:, start : start + len(matrix)]
            halves.append(pointwise.forward(x, matrix, activation, size, gather, out)[1])
            start += len(matrix)
        partials = torch.cat(halves, dim=2)
    return Projection(
        x,
        size,
        activation,
        gathers,
        tuple(convolution.weight.detach() for convolution in convolutions),
        matrices,
        raw,
        batch_norm.finish(partials, norm),
        tuple(weights.index(convolution.weight) for convolution in convolutions),
        (weights.index(norm.weight), weights.index(norm.bias)),
    )


@dataclass(frozen=True)
class Unit:
    """A depthwise convolution of an activated map, and the projection of its output."""

    given: Tensor
    size: Size
    window: Window
    activation: int
    weight: Tensor
    filters: Tensor
    index: int
    projection: Projection


@dataclass(frozen=True)
class Units:
    """Units in turn: one is a dilated, two are a separable convolution. The first one's input comes activated."""

    reads_active: ClassVar[bool] = True
    units: tuple[Unit, ...]

    @property
    def out(self) -> tuple[Tensor, Normalization]:
        """The last unit's raw output and its batch norm."""
        return self.units[-1].projection.out

    def backward(self, grad: Tensor, sums: Tensor | None, gradients: Gradients) -> Tensor:
        """See above."""
        for number in reversed(range(len(self.units))):
            unit = self.units[number]
            grad = unit.projection.backward(grad, sums, gradients)
            convolution = (unit.size, unit.filters, unit.window)
            gradients.convolution(depthwise.weight_gradient(grad, unit.given, *convolution), unit.weight, unit.index)
            if number == 0:
                break
            before = self.units[number - 1].projection
            grad, partials = depthwise.data_gradient_behind(grad, *convolution, *before.out, unit.activation)
            sums = batch_norm.finish_backward(partials)
        return depthwise.data_gradient(grad, *convolution)


def units(modules: list[Any], given: Tensor, size: Size, weights: Weights) -> Units:
    """Units of four modules each: activation, depthwise convolution, 1x1 convolution, batch norm."""
    done: list[Unit] = []
    for first in range(0, len(modules), 4):
        module, convolution, pointwise_convolution, norm = modules[first : first + 4]
        activation = ACTIVATIONS[type(module)]
        if done:
            given = batch_norm.apply(*done[-1].projection.out, activation)
        window = Window(
            convolution.kernel_size[0], convolution.stride[0], convolution.padding[0], convolution.dilation[0]
        )
        weight, filters = convolution.weight.detach(), weights.filters(convolution)
        inner, inner_size = depthwise.forward(given, size, filters, window), size.strided(window.stride)
        projection = _projected(inner, inner_size, 0, (None,), (pointwise_convolution,), norm, weights)
        index = weights.index(convolution.weight)
        done.append(Unit(given, size, window, activation, weight, filters, index, projection))
        size = inner_size
    return Units(tuple(done))


@dataclass(frozen=True)
class Pool:
    """A pooling; `taps` are the positions of the largest values, None for an average. Its output has no batch norm."""

    reads_active: ClassVar[bool] = False
    size: Size
    kernel: int
    stride: int
    taps: Tensor | None
    out: tuple[Tensor, None]

    def backward(self, grad: Tensor, sums: Tensor | None, gradients: Gradients) -> Tensor:
        """See above."""
        if self.taps is None:
            return pooling.average_backward(grad, self.size, self.kernel, self.stride)
        return pooling.maximum_backward(grad, self.taps, self.size, self.kernel, self.stride)


def pool(module: Any, x: Tensor, size: Size) -> Pool:
    """Max or average pooling."""
    kernel, stride, taps = int(module.kernel_size), int(module.stride), None
    if isinstance(module, nn.MaxPool2d):
        out, taps = pooling.maximum(x, size, kernel, stride)
    else:
        out = pooling.average(x, size, kernel, stride)
    return Pool(size, kernel, stride, taps, (out, None))


@dataclass(frozen=True)
class Factorized:
    """A 1xk and a kx1 convolution of an activated map by PyTorch's own operators, and batch norm; one cell has it."""

    reads_active: ClassVar[bool] = True
    inputs: tuple[Tensor, Tensor]
    weights: tuple[Tensor, ...]
    rounded: tuple[Tensor, ...]
    strides: tuple[tuple[int, int], ...]
    paddings: tuple[tuple[int, int], ...]
    raw: Tensor
    size: Size
    normalization: Normalization
    eps: float
    indices: tuple[int, ...]
    norm_indices: tuple[int, int]

    @property
    def out(self) -> tuple[Tensor, Normalization]:
        """The raw output and its batch norm."""
        return self.raw, self.normalization

    def backward(self, grad: Tensor, sums: Tensor | None, gradients: Gradients) -> Tensor:
        """See above."""
        assert sums is not None
        gradients.norm(sums, self.norm_indices)
        norm, only_input, no_bias = self.normalization, [True, False, False], [True, True, False]
        outer, raw = as_map(grad, self.size), as_map(self.raw, self.size)
        outer, _, _ = torch.ops.aten.native_batch_norm_backward(
            outer, raw, norm.weight, None, None, norm.mean, norm.rstd, True, self.eps, only_input
        )
        for k in (1, 0):
            outer, of_weight, _ = torch.ops.aten.convolution_backward(
                outer,
                self.inputs[k],
                self.rounded[k],
                None,
                self.strides[k],
                self.paddings[k],
                [1, 1],
                False,
                [0, 0],
                1,
                no_bias,
            )
            gradients.at[self.indices[k]] = torch.empty_like(self.weights[k]).copy_(of_weight)
        return dense(outer)


def factorized(modules: list[Any], given: Tensor, size: Size, weights: Weights) -> Factorized:
    """Activation (which `given` has been through), two convolutions, batch norm."""
    _, *convolutions, norm = modules
    rounded = tuple(convolution.weight.detach().to(given.dtype) for convolution in convolutions)
    maps = [as_map(given, size)]
    for convolution, weight in zip(convolutions, rounded):
        maps.append(F.conv2d(maps[-1], weight, None, convolution.stride, convolution.padding))
    raw = dense(maps[2])
    return Factorized(
        (maps[0], maps[1]),
        tuple(convolution.weight.detach() for convolution in convolutions),
        rounded,
        tuple(convolution.stride for convolution in convolutions),
        tuple(convolution.padding for convolution in convolutions),
        raw,
        Size(size.images, *maps[2].shape[2:]),
        batch_norm.finish(batch_norm.statistics(raw), norm),
        norm.eps,
        tuple(weights.index(convolution.weight) for convolution in convolutions),
        (weights.index(norm.weight), weights.index(norm.bias)),
    )


def dense(x: Tensor) -> Tensor:
    """A map's rows, dense."""
    return rows(x.contiguous(memory_format=torch.channels_last))
