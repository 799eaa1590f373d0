"""The supernet: a network whose edges compute all candidates together, mixed by weights that come with each call.

It follows PC-DARTS (Xu et al. 2020, arXiv 1907.05737): on each edge the first 1/k of the channels go through
the candidates and the rest bypasses them (max-pooled 2 x 2 where the edge halves the map); the output's channels are
shuffled in k groups. Batch norm has no affine anywhere. With k = 1 it is the supernet of DARTS.

What edges have in common is computed once. Pools, their batch norm and a plain skip depend on the state alone, not on
the edge that reads it. The convolutions of all edges that leave a state are one grouped convolution (`ParallelConv`),
scaled by its batch norm. A node adds up its edges before it concatenates and shuffles: both are linear.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gaeanet.cells.operations import OPERATIONS
from gaeanet.cells.space import CANDIDATES, CONCAT, EDGES
from gaeanet.models.fast import FAST, fits, units
from gaeanet.models.network import build_stem
from gaeanet.models.operations import ACTIVATIONS, ConvNorm, FactorizedReduce
from gaeanet.search.architecture import Mixture

_MAX, _AVG, _SKIP = (CANDIDATES.index(name) for name in ("max_pool_3x3", "avg_pool_3x3", "skip_connect"))
_CONVOLUTIONS = [
    (number, operation)
    for number, operation in enumerate(map(OPERATIONS.get, CANDIDATES))
    if operation is not None and operation.kind in ("separable", "dilated")
]

LEAVING = [[number for number, (source, _) in enumerate(EDGES) if source == state] for state in range(CONCAT[-1])]
"""The numbers of the edges that leave each state."""


class ParallelConv(nn.Module):
    """Activation, depthwise k x k, pointwise, batch norm without affine: one for each of several edges, side by side.

    The search computes the same operation on all edges that leave a state together: edge e has the channels e * c to
    (e + 1) * c - 1. Batch norm's weight comes with each call and multiplies an edge's whole output, so that weighing
    operations takes no pass of its own.
    """

    def __init__(
        self, edges: int, channels: int, kernel: int, stride: int, dilation: int, activation: type[nn.Module]
    ) -> None:
        super().__init__()
        wide, padding = edges * channels, dilation * (kernel - 1) // 2
        self.activation = activation()
        self.depthwise = nn.Conv2d(wide, wide, kernel, stride, padding, dilation, groups=wide, bias=False)
        self.pointwise = nn.Conv2d(wide, wide, 1, groups=edges, bias=False)
        self.norm = nn.BatchNorm2d(wide, affine=False)

    def forward(self, x: Tensor, scale: Tensor | None) -> Tensor:
        """Maps (N, edges * c, H, W), scale (edges * c,) or None for 1, to (N, edges * c, ceil(H / s), ceil(W / s))."""
        return scaled_norm(self.pointwise(self.depthwise(self.activation(x))), scale, self.norm)


def scaled_norm(x: Tensor, scale: Tensor | None, norm: nn.BatchNorm2d) -> Tensor:
    """Batch norm by `norm`, which has no affine, times `scale` (C,)."""
    if scale is None:
        return norm(x)
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    momentum = 0.1 if norm.momentum is None else norm.momentum
    return F.batch_norm(x, norm.running_mean, norm.running_var, scale, None, norm.training, momentum, norm.eps)


class FastParallelConv(ParallelConv):
    """Activation, depthwise, 1x1 convolution, batch norm, for several edges side by side."""

    def forward(self, x: Tensor, scale: Tensor | None) -> Tensor:
        parts = self.activation, self.depthwise, self.pointwise, self.norm
        if not fits(x, parts):
            return super().forward(x, scale)
        return units(x, parts, scale=scale)


FAST[ParallelConv] = FastParallelConv


class FanOut(nn.Module):
    """All candidate operations of all edges that leave one state.

    Args:
        edges: How many.
        channels: Channels of the state that go through the candidates; even.
        stride: 1 or 2.
    """

    def __init__(self, edges: int, channels: int, stride: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.edges, self.channels = edges, channels
        self.max_pool = nn.Sequential(nn.MaxPool2d(3, stride, 1), nn.BatchNorm2d(channels))
        self.avg_pool = nn.Sequential(nn.AvgPool2d(3, stride, 1, count_include_pad=False), nn.BatchNorm2d(channels))
        self.reduction = ParallelReduce(edges, channels) if stride == 2 else None
        self.convolutions = nn.ModuleList()
        for _, operation in _CONVOLUTIONS:
            dilation = 2 if operation.kind == "dilated" else 1
            halves = [ParallelConv(edges, channels, operation.kernel, stride, dilation, activation)]
            if operation.kind == "separable":
                halves.append(ParallelConv(edges, channels, operation.kernel, 1, dilation, activation))
            self.convolutions.append(nn.ModuleList(halves))
        without_affine(self)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Maps (N, c, H, W) and the candidates' weights (edges, 8) to the edges' mixtures (N, edges * c, H', W')."""
        per_channel = weights.repeat_interleave(self.channels, dim=0)
        shared, columns = [self.max_pool(x), self.avg_pool(x)], [_MAX, _AVG]
        if self.reduction is None:
            shared.append(x)
            columns.append(_SKIP)
        # Each edge's weighted sum of the shared maps, as one product: a 1x1 convolution without mixing of channels.
        matrix = torch.kron(weights[:, columns], torch.eye(self.channels, device=x.device, dtype=x.dtype))
        total = F.linear(torch.cat(shared, dim=1).permute(0, 2, 3, 1), matrix).permute(0, 3, 1, 2)
        if self.reduction is not None:
            total += self.reduction(x, per_channel[:, _SKIP])
        side_by_side = x.repeat(1, self.edges, 1, 1)
        for (number, _), halves in zip(_CONVOLUTIONS, self.convolutions):
            assert isinstance(halves, nn.ModuleList)
            out = side_by_side
            for half in halves[:-1]:
                out = half(out, None)
            total += halves[-1](out, per_channel[:, number])
        return total


class ParallelReduce(nn.Module):
    """`FactorizedReduce` for each of several edges, side by side; batch norm is scaled as in `ParallelConv`."""

    def __init__(self, edges: int, channels: int) -> None:
        super().__init__()
        self.edges, self.width = edges, channels // 2
        self.relu = nn.ReLU()
        # The first half of an edge's outputs reads every other pixel, the second half those between.
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, edges * self.width, 1, bias=False) for _ in range(2))
        self.norm = nn.BatchNorm2d(edges * channels)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        x = self.relu(x)
        shifted = F.pad(x, [-1, x.shape[3] % 2, -1, x.shape[2] % 2])
        halves = [conv(part[:, :, ::2, ::2]) for conv, part in zip(self.convolutions, (x, shifted))]
        split = [half.unflatten(1, (self.edges, self.width)) for half in halves]
        joined = torch.cat(split, dim=2).flatten(1, 2).contiguous(memory_format=torch.channels_last)
        return scaled_norm(joined, scale, self.norm)


class SearchCell(nn.Module):
    """A cell of the supernet, with all candidates on every edge.

    Args:
        older_channels, newer_channels: Channels of its two inputs.
        channels: Width of each node; the output has four times as many channels.
        divisor: The k of partial channel connections; 2 * k divides `channels`.
        reduction, after_reduction: As in `network.Cell`.
    """

    def __init__(
        self,
        older_channels: int,
        newer_channels: int,
        channels: int,
        divisor: int,
        reduction: bool,
        after_reduction: bool,
        activation: type[nn.Module],
    ) -> None:
        super().__init__()
        self.through, self.reduction = channels // divisor, reduction
        first = FactorizedReduce if after_reduction else ConvNorm
        arguments = [older_channels, channels] + [activation] * (not after_reduction)
        self.preprocess0 = without_affine(first(*arguments))  # type: ignore[arg-type]
        self.preprocess1 = without_affine(ConvNorm(newer_channels, channels, activation))
        self.fans = nn.ModuleList(
            FanOut(len(leaving), self.through, 2 if reduction and state < 2 else 1, activation)
            for state, leaving in enumerate(LEAVING)
        )

    def forward(self, older: Tensor, newer: Tensor, operations: Tensor, edges: Tensor) -> Tensor:
        """Maps both inputs to (N, 4 * channels, H', W'); `operations` (14, 8) and `edges` (14,) weigh."""
        weights = operations * edges[:, None]
        mixtures: dict[int, Tensor] = {}
        passed: dict[int, Tensor] = {}
        states = [self.preprocess0(older), self.preprocess1(newer)]
        for state, (fan, leaving) in enumerate(zip(self.fans, LEAVING)):
            if state >= 2:
                states.append(self._shuffled(mixtures.pop(state), passed.pop(state, None)))
            x = states[state]
            through = x[:, : self.through].contiguous(memory_format=torch.channels_last)
            parts = fan(through, weights[leaving]).split(self.through, dim=1)
            for number, part in zip(leaving, parts):
                node = EDGES[number][1]
                mixtures[node] = mixtures[node] + part if node in mixtures else part
            if x.shape[1] > self.through:
                bypass = x[:, self.through :]
                if self.reduction and state < 2:
                    bypass = F.max_pool2d(bypass, 2, ceil_mode=True)  # odd maps: as large as a convolution's
                for number in leaving:
                    node = EDGES[number][1]
                    if node in passed:
                        passed[node] = torch.addcmul(passed[node], bypass, edges[number])
                    else:
                        passed[node] = bypass * edges[number]
        last = CONCAT[-1]
        states.append(self._shuffled(mixtures.pop(last), passed.pop(last, None)))
        return torch.cat(states[2:], dim=1)

    def _shuffled(self, mixture: Tensor, passed: Tensor | None) -> Tensor:
        """The mixture's and the bypass's channels, shuffled in k groups: channel m of group g becomes m * k + g."""
        if passed is None:
            return mixture
        n, _, height, width = mixture.shape
        groups = passed.permute(0, 2, 3, 1).unflatten(3, (-1, self.through)).transpose(3, 4)
        both = torch.cat([mixture.permute(0, 2, 3, 1)[..., None], groups], dim=4)
        return both.reshape(n, height, width, -1).permute(0, 3, 1, 2)


class Supernet(nn.Module):
    """The supernet: a network of search cells.

    Args:
        num_classes: Outputs of the classifier.
        init_channels: Width of the first cells' nodes; a multiple of 2 * `divisor`.
        layers: Number of cells; those at layers // 3 and 2 * layers // 3 halve the map and double the width.
        divisor: One `divisor`-th of the channels goes through the candidates.
        stem: `cifar` or `imagenet`, as in `network.CellNetwork`.
        activation: relu, swish or hswish.
    """

    def __init__(
        self,
        num_classes: int,
        init_channels: int = 16,
        layers: int = 8,
        divisor: int = 4,
        stem: str = "cifar",
        activation: str = "relu",
    ) -> None:
        super().__init__()
        act = ACTIVATIONS[activation]
        width = init_channels
        stems = build_stem(stem, 3, width, act)
        self.stem0, self.stem1 = (without_affine(part) for part in stems)
        older = newer = 3 * width if stem == "cifar" else width
        after_reduction = stem == "imagenet"
        self.cells = nn.ModuleList()
        for i in range(layers):
            reduction = i in (layers // 3, 2 * layers // 3)
            width *= 2 if reduction else 1
            self.cells.append(SearchCell(older, newer, width, divisor, reduction, after_reduction, act))
            older, newer, after_reduction = newer, len(CONCAT) * width, reduction
        self.classifier = nn.Linear(newer, num_classes)

    def forward(self, images: Tensor, mixture: Mixture) -> Tensor:
        """Maps images (N, 3, H, W), H and W at least 32, to logits (N, num_classes).

        Args:
            mixture: As `Architecture.mixture` gives it.
        """
        normal, reduce, normal_edges, reduce_edges = mixture
        older = self.stem0(images)
        newer = self.stem1(older)
        for cell in self.cells:
            assert isinstance(cell, SearchCell)
            weights = (reduce, reduce_edges) if cell.reduction else (normal, normal_edges)
            older, newer = newer, cell(older, newer, *weights)
        logits: Tensor = self.classifier(newer.mean((2, 3)))
        return logits


class Mixed(nn.Module):
    """A supernet with a fixed mixture: a module that maps images to logits."""

    def __init__(self, supernet: Supernet, mixture: Mixture) -> None:
        super().__init__()
        self.supernet, self.mixture = supernet, mixture

    def forward(self, images: Tensor) -> Tensor:
        return self.supernet.forward(images, self.mixture)


def without_affine(module: nn.Module) -> nn.Module:
    """Removes weight and bias from the batch norms in `module`, in place; returns it."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.affine = False
            norm.weight = norm.bias = None  # type: ignore[assignment]
    return module


@torch.no_grad()
def recalibrated(supernet: Supernet, mixture: Mixture, batches: Sequence[Tensor]) -> Supernet:
    """A copy whose batch-norm statistics are those of `batches`, normalised images (N, 3, H, W), under `mixture`.

    The statistics of a supernet are those of its own mixture and do not hold for another one (Yu & Huang 2019, arXiv
    1903.05134, section 3).
    """
    calibrated = copy.deepcopy(supernet).train()
    norms = [module for module in calibrated.modules() if isinstance(module, nn.BatchNorm2d)]
    for number, images in enumerate(batches, 1):
        for norm in norms:
            norm.momentum = 1 / number  # the mean over all batches so far
        calibrated.forward(images, mixture)
    for norm in norms:
        norm.momentum = 0.1
    return calibrated
