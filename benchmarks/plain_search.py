"""The plain way to search: the mixed operation of PC-DARTS as one writes it down from the paper, to measure against.

Each edge has eight modules, runs them all, adds up their weighted results, concatenates the channels that passed by and
shuffles. Eager float32 in contiguous NCHW.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gaeanet.cells.space import CANDIDATES, CONCAT, EDGES
from gaeanet.models.network import build_stem
from gaeanet.models.operations import ConvNorm, FactorizedReduce, build_operation
from gaeanet.search.supernet import LEAVING, SearchCell, Supernet, without_affine


class Nothing(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride] * 0.0


class MixedOperation(nn.Module):
    def __init__(self, channels: int, stride: int, divisor: int) -> None:
        super().__init__()
        self.through, self.divisor, self.stride = channels // divisor, divisor, stride
        self.operations = nn.ModuleList()
        for name in CANDIDATES:
            if name == "none":
                self.operations.append(Nothing(stride))
                continue
            operation = build_operation(name, self.through, stride, nn.ReLU)
            if "pool" in name:
                operation = nn.Sequential(operation, nn.BatchNorm2d(self.through))
            self.operations.append(operation)
        without_affine(self)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        part, rest = x[:, : self.through], x[:, self.through :]
        mixed = sum(w * operation(part) for w, operation in zip(weights, self.operations))
        assert isinstance(mixed, Tensor)
        if self.divisor == 1:
            return mixed
        both = torch.cat([mixed, self.pool(rest) if self.stride == 2 else rest], dim=1)
        n, channels, height, width = both.shape
        groups = both.view(n, self.divisor, channels // self.divisor, height, width)
        return groups.transpose(1, 2).contiguous().view(n, channels, height, width)


class PlainCell(nn.Module):
    def __init__(self, older: int, newer: int, channels: int, divisor: int, reduction: bool, after: bool) -> None:
        super().__init__()
        self.reduction = reduction
        self.preprocess0 = FactorizedReduce(older, channels) if after else ConvNorm(older, channels, nn.ReLU)
        self.preprocess1 = ConvNorm(newer, channels, nn.ReLU)
        without_affine(self)
        self.edges = nn.ModuleList(
            MixedOperation(channels, 2 if reduction and source < 2 else 1, divisor) for source, _ in EDGES
        )

    def forward(self, older: Tensor, newer: Tensor, operations: Tensor, edges: Tensor) -> Tensor:
        states = [self.preprocess0(older), self.preprocess1(newer)]
        for node in CONCAT:
            states.append(
                sum(
                    edges[number] * self.edges[number](states[source], operations[number])
                    for number, (source, into) in enumerate(EDGES)
                    if into == node
                )
            )
        return torch.cat(states[2:], dim=1)


class PlainSupernet(nn.Module):
    """The network of `Supernet`, with that one's weights."""

    def __init__(self, ours: Supernet, init_channels: int, layers: int, divisor: int, stem: str) -> None:
        super().__init__()
        width = init_channels
        self.stem0, self.stem1 = map(without_affine, build_stem(stem, 3, width, nn.ReLU))
        older = newer = 3 * width if stem == "cifar" else width
        after, self.cells = stem == "imagenet", nn.ModuleList()
        for i in range(layers):
            reduction = i in (layers // 3, 2 * layers // 3)
            width *= 2 if reduction else 1
            self.cells.append(PlainCell(older, newer, width, divisor, reduction, after))
            older, newer, after = newer, len(CONCAT) * width, reduction
        self.classifier = nn.Linear(newer, ours.classifier.out_features)
        with torch.no_grad():
            for name in ("stem0", "stem1", "classifier"):
                getattr(self, name).load_state_dict(getattr(ours, name).state_dict())
            for plain, cell in zip(self.cells, ours.cells):
                take_over(plain, cell)

    def forward(self, images: Tensor, mixture: list[Tensor]) -> Tensor:
        normal, reduce, normal_edges, reduce_edges = mixture
        older = self.stem0(images)
        newer = self.stem1(older)
        for cell in self.cells:
            weights = (reduce, reduce_edges) if cell.reduction else (normal, normal_edges)
            older, newer = newer, cell(older, newer, *weights)
        return self.classifier(F.adaptive_avg_pool2d(newer, 1).flatten(1))


def take_over(plain: nn.Module, ours: SearchCell) -> None:
    """Gives a plain cell the weights of ours, edge by edge."""
    plain.preprocess0.load_state_dict(ours.preprocess0.state_dict())
    plain.preprocess1.load_state_dict(ours.preprocess1.state_dict())
    c = ours.through
    for fan, leaving in zip(ours.fans, LEAVING):
        for place, number in enumerate(leaving):
            part = slice(place * c, (place + 1) * c)
            operations = plain.edges[number].operations
            skip = operations[CANDIDATES.index("skip_connect")]
            if isinstance(skip, FactorizedReduce):
                half = slice(place * c // 2, (place + 1) * c // 2)
                skip.conv_1.weight.copy_(fan.reduction.convolutions[0].weight[half])
                skip.conv_2.weight.copy_(fan.reduction.convolutions[1].weight[half])
            for operation, halves in zip(operations[4:], fan.convolutions):
                convolutions = [module for module in operation.modules() if isinstance(module, nn.Conv2d)]
                weights = [w for half in halves for w in (half.depthwise.weight, half.pointwise.weight)]
                for convolution, weight in zip(convolutions, weights):
                    convolution.weight.copy_(weight[part])
