"""Cell and CellNetwork, with timm's model interface.

The network (Liu et al. 2019, arXiv 1806.09055, section 3.2; "mobile setting"): a stem, then `layers` cells, of which
those at layers // 3 and 2 * layers // 3 halve the map and double the width, global average pooling, a classifier. A
cell reads the outputs of the two cells before it. Parameter names are those of the DARTS repositories.
"""

from typing import Any, Optional, Union  # TorchScript knows only these names

import torch
import torch.nn.functional as F
from timm.layers import create_classifier, get_device_dtype
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]

from gaeanet.cells.genotype import Edge, Genotype
from gaeanet.cells.read import read_genotype
from gaeanet.models.operations import ACTIVATIONS, ConvNorm, DropPath, FactorizedReduce, SqueezeExcite, build_operation


class Cell(nn.Module):
    """One cell of the network.

    Args:
        edges, concat: The cell's part of the genotype.
        older_channels, newer_channels: Channels of its two inputs.
        channels: Width of each of its nodes; the output has `len(concat)` times as many channels.
        reduction: Whether edges from the inputs have stride 2.
        after_reduction: Whether the older input is twice as large as the newer one and has to be halved.
        drop_path: Whether drop-path may act on the edges.
    """

    def __init__(
        self,
        edges: tuple[Edge, ...],
        concat: tuple[int, ...],
        older_channels: int,
        newer_channels: int,
        channels: int,
        reduction: bool,
        after_reduction: bool,
        activation: type[nn.Module],
        drop_path: bool,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.inputs: list[int] = [edge.input for edge in edges]
        self.concat: list[int] = list(concat)
        if after_reduction:
            self.preprocess0: nn.Module = FactorizedReduce(older_channels, channels, **factory)
        else:
            self.preprocess0 = ConvNorm(older_channels, channels, activation, **factory)
        self.preprocess1 = ConvNorm(newer_channels, channels, activation, **factory)
        self._ops = nn.ModuleList(
            build_operation(operation, channels, 2 if reduction and source < 2 else 1, activation, **factory)
            for operation, source in edges
        )
        self._drop_paths = nn.ModuleList(DropPath(drop_path and not isinstance(op, nn.Identity)) for op in self._ops)

    def forward(self, older: Tensor, newer: Tensor, drop_path_rate: Tensor) -> Tensor:
        states = [self.preprocess0(older), self.preprocess1(newer)]
        first = states[0]
        for k, (op, drop_path) in enumerate(zip(self._ops, self._drop_paths)):
            out = drop_path(op(states[self.inputs[k]]), drop_path_rate)
            if k % 2 == 0:
                first = out
            else:
                states.append(first + out)
        return torch.cat([states[state] for state in self.concat], dim=1)


def build_stem(
    stem: str, in_chans: int, width: int, activation: type[nn.Module], stride: int = 2, **factory: Any
) -> tuple[nn.Sequential, nn.Module]:
    """The stem, in two parts, whose outputs are the two inputs of the first cell.

    `imagenet` ends with `width` channels at an eighth of the image's size, the first part at a quarter; both maps are
    twice as large where the first convolution has a `stride` of 1. `cifar` ends with 3 * `width` channels at the
    image's full size, and has no stride.
    """
    if stem == "cifar":
        convolution = nn.Conv2d(in_chans, 3 * width, 3, padding=1, bias=False, **factory)
        return nn.Sequential(convolution, nn.BatchNorm2d(3 * width, **factory)), nn.Identity()
    if stem != "imagenet":
        raise ValueError(f"stem must be 'imagenet' or 'cifar', got {stem!r}")
    half = width // 2
    first = nn.Sequential(
        nn.Conv2d(in_chans, half, 3, stride, padding=1, bias=False, **factory),
        nn.BatchNorm2d(half, **factory),
        activation(),
        nn.Conv2d(half, width, 3, stride=2, padding=1, bias=False, **factory),
        nn.BatchNorm2d(width, **factory),
    )
    second = nn.Sequential(
        activation(),
        nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False, **factory),
        nn.BatchNorm2d(width, **factory),
    )
    return first, second


class AuxiliaryHead(nn.Module):
    """The auxiliary tower: a second classifier on an inner map, for training only.

    On the 7x7 and 8x8 maps of the original network this is the original head. A larger map is averaged after the last
    convolution; a smaller one is pooled to 2x2 (repeating pixels where it must), so that any size works.

    Args:
        stride: Of the first pooling: 2 in the ImageNet networks, 3 in those for CIFAR.
        second_norm: False leaves out the batch norm after the second convolution, as the DARTS and PC-DARTS scripts do.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        activation: type[nn.Module],
        stride: int,
        second_norm: bool,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.features = nn.Sequential(
            activation(),
            nn.Identity(),  # the pooling, which depends on the size of the map: see forward
            nn.Conv2d(channels, 128, 1, bias=False, **factory),
            nn.BatchNorm2d(128, **factory),
            activation(),
            nn.Conv2d(128, 768, 2, bias=False, **factory),
            nn.BatchNorm2d(768, **factory) if second_norm else nn.Identity(),
            activation(),
        )
        self.classifier = nn.Linear(768, num_classes, **factory)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features[0](x)
        if min(x.shape[2], x.shape[3]) < 5 + self.stride:
            x = F.adaptive_avg_pool2d(x, 2)
        else:
            x = F.avg_pool2d(x, 5, self.stride, count_include_pad=False)
        return self.classifier(self.features[2:](x).mean((2, 3)))


class CellNetwork(nn.Module):
    """An image classifier built of cells.

    In evaluation `forward` maps images (N, in_chans, H, W) to logits (N, num_classes); in training with
    `auxiliary=True` it returns the pair of logits and the auxiliary tower's logits. Any H, W >= 32 will do.

    Args:
        num_classes: Outputs of the classifier; 0 for none.
        in_chans: Channels of the images.
        global_pool: timm's pooling type; '' for none.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Probability that an edge is dropped for a sample in training. 0 builds the network without
            drop-path; otherwise `set_drop_path_rate` may change the rate while training.
        genotype: Whatever `cells.read.read_genotype` accepts; a name or a mapping can be saved as JSON.
        init_channels: Width of the first cells' nodes.
        layers: Number of cells.
        activation: relu, swish or hswish.
        squeeze_excite: Whether the first two thirds of the cells are followed by squeeze-and-excitation.
        auxiliary: Whether to build the auxiliary tower.
        auxiliary_second_norm: See `AuxiliaryHead`.
        stem: `imagenet` (three stride-2 convolutions) or `cifar` (one of stride 1).
        stem_stride: Stride of the ImageNet stem's first convolution: 2 as published; with 1 all maps are those of an
            image twice as large, under the same weights.

    Raises:
        RequestError: `genotype` cannot be read.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        genotype: Union[str, dict[str, Any], Genotype] = "gaea-imagenet",
        init_channels: int = 48,
        layers: int = 14,
        activation: str = "relu",
        squeeze_excite: bool = False,
        auxiliary: bool = False,
        auxiliary_second_norm: bool = True,
        stem: str = "imagenet",
        stem_stride: int = 2,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        act = ACTIVATIONS[activation]
        cells = read_genotype(genotype)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.initial_drop_path_rate = drop_path_rate
        # A tensor, so that a new rate neither recompiles a graph nor misses a wrapped copy; not part of the weights.
        self.register_buffer("drop_path_rate", torch.tensor(drop_path_rate, **factory), persistent=False)
        self.drop_path_rate: Tensor

        width = init_channels
        self.stem0, self.stem1 = build_stem(stem, in_chans, width, act, stem_stride, **factory)
        if stem == "cifar":
            newer = 3 * width
            reduction, after_reduction = 1, False
            feature_ends = [(1, newer, 1, "stem0")]
        else:
            newer = width
            reduction, after_reduction = 4 * stem_stride, True
            feature_ends = [
                (2, width // 2, stem_stride, "stem0.2"),
                (4, width, 2 * stem_stride, "stem0"),
                (5, width, 4 * stem_stride, "stem1"),
            ]

        older = newer
        self.cells = nn.ModuleList()
        self.cells_SE = nn.ModuleList()
        self.auxiliary_head: Optional[AuxiliaryHead] = None
        self.auxiliary_cell = 2 * layers // 3
        for i in range(layers):
            is_reduction = i in (layers // 3, 2 * layers // 3)
            if is_reduction:
                width *= 2
                reduction *= 2
            edges, concat = (cells.reduce, cells.reduce_concat) if is_reduction else (cells.normal, cells.normal_concat)
            cell = Cell(
                edges, concat, older, newer, width, is_reduction, after_reduction, act, drop_path_rate > 0, **factory
            )
            older, newer = newer, len(concat) * width
            after_reduction = is_reduction
            self.cells.append(cell)
            # Hidden width as in Determined's example: a quarter of the node width first, an eighth after a reduction.
            gated = squeeze_excite and i <= layers * 2 / 3
            hidden = max(1, width // (4 if width == init_channels else 8))
            self.cells_SE.append(SqueezeExcite(newer, hidden, act, **factory) if gated else nn.Identity())
            feature_ends.append(
                (len(self._POSITIONS) + i, newer, reduction, f"cells_SE.{i}" if gated else f"cells.{i}")
            )
            if auxiliary and i == self.auxiliary_cell:
                stride = 3 if stem == "cifar" else 2
                self.auxiliary_head = AuxiliaryHead(newer, num_classes, act, stride, auxiliary_second_norm, **factory)

        # Taps: the last map of each size. A position counts the stem's layers one by one, then the cells.
        last = {entry[2]: entry for entry in feature_ends}
        self.feature_info = [dict(num_chs=c, reduction=r, module=name) for _, c, r, name in last.values()]
        self.feature_ends: list[int] = [position for position, _, _, _ in last.values()]
        self.num_features = self.head_hidden_size = newer
        self.global_pool, self.classifier = create_classifier(newer, num_classes, pool_type=global_pool, **factory)

    _POSITIONS = ("stem0.0", "stem0.1", "stem0.2", "stem0.3", "stem0.4", "stem1")

    def set_operation_gamma(self, gamma: float) -> None:
        """Gives the last batch norm of each operation with weights this weight; skip connections keep theirs.

        With a small one a cell starts as little more than its skip connections (Goyal et al. 2017, arXiv 1706.02677,
        section 5.1, for residual networks), so that a deep network learns from the first step.
        """
        for cell in self.cells:
            assert isinstance(cell, Cell)
            for operation in cell._ops:
                norms = [module for module in operation.modules() if isinstance(module, nn.BatchNorm2d)]
                if norms and not isinstance(operation, FactorizedReduce):
                    nn.init.constant_(norms[-1].weight, gamma)

    def set_drop_path_rate(self, rate: float) -> None:
        """Sets the probability of drop-path for the steps that follow."""
        self.drop_path_rate.fill_(rate)

    def init_weights(self) -> None:
        """Initialises all parameters and buffers again, as after `to_empty`."""
        for module in self.modules():
            if module is not self and hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]
        self.set_drop_path_rate(self.initial_drop_path_rate)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return dict(stem=r"^stem[01]", blocks=r"^cells(?:_SE)?\.(\d+)")

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Replaces the classifier; `global_pool=None` keeps the pooling."""
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        self.num_classes = num_classes
        self.global_pool, self.classifier = create_classifier(
            self.num_features, num_classes, pool_type=pool_type, **get_device_dtype(self)
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.global_pool.train(self.training)
        self.classifier.train(self.training)

    def forward_cells(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The last feature map and the one that the auxiliary tower reads."""
        older = self.stem0(x)
        newer = self.stem1(older)
        inner = newer
        for i, (cell, squeeze_excite) in enumerate(zip(self.cells, self.cells_SE)):
            if self.grad_checkpointing and not is_scripting():
                out = checkpoint(cell, older, newer, self.drop_path_rate)
            else:
                out = cell(older, newer, self.drop_path_rate)
            older, newer = newer, squeeze_excite(out)
            if i == self.auxiliary_cell:
                inner = newer
        return newer, inner

    def forward_features(self, x: Tensor) -> Tensor:
        return self.forward_cells(x)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(x)
        if self.drop_rate > 0.0:
            x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.classifier(x)

    def forward(self, x: Tensor) -> Union[Tensor, tuple[Tensor, Tensor]]:
        features, inner = self.forward_cells(x)
        logits = self.forward_head(features)
        if self.auxiliary_head is not None:
            if self.training:
                return logits, self.auxiliary_head(inner)
        return logits

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Optional[Union[int, list[int]]] = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Union[list[Tensor], tuple[Tensor, list[Tensor]]]:
        """Maps (N, C, H, W) at `feature_info`'s taps, and the last map; see timm's documentation."""
        assert output_fmt in ("NCHW",), "Output format must be NCHW."
        take_indices, max_index = feature_take_indices(len(self.feature_ends), indices)
        wanted = [self.feature_ends[i] for i in take_indices]
        last = self.feature_ends[max_index]
        taps: list[Tensor] = []
        for position, layer in enumerate(self.stem0):
            if not stop_early or position <= last:
                x = layer(x)
                if position in wanted:
                    taps.append(x)
        older = x
        newer = x
        if not stop_early or last >= 5:
            newer = self.stem1(older)
            if 5 in wanted:
                taps.append(newer)
        for i, (cell, squeeze_excite) in enumerate(zip(self.cells, self.cells_SE)):
            if not stop_early or i + 6 <= last:
                if self.grad_checkpointing and not is_scripting():
                    out = checkpoint(cell, older, newer, self.drop_path_rate)
                else:
                    out = cell(older, newer, self.drop_path_rate)
                older, newer = newer, squeeze_excite(out)
                if i + 6 in wanted:
                    taps.append(newer)
        if intermediates_only:
            return taps
        return newer, taps

    def prune_intermediate_layers(
        self,
        indices: Union[int, list[int]] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drops what the taps `indices` do not need; returns them as absolute indices."""
        take_indices, max_index = feature_take_indices(len(self.feature_ends), indices)
        last = self.feature_ends[max_index]
        self.stem0 = self.stem0[: last + 1]
        if last < 5:
            self.stem1 = nn.Identity()
        self.cells = self.cells[: max(0, last - 5)]
        self.cells_SE = self.cells_SE[: max(0, last - 5)]
        if len(self.cells) <= self.auxiliary_cell:
            self.auxiliary_head = None
        self.num_features = self.feature_info[max_index]["num_chs"]
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        if prune_head:
            self.reset_classifier(0, "")
        elif max_index < len(self.feature_info) - 1:
            self.reset_classifier(self.num_classes)
        return take_indices
