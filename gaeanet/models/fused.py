"""Cells that train with our GPU kernels, and their exchange for plain ones in a network.

A cell becomes a fused one by a change of its class: parameters, names, state dicts, copies and the hooks at the cell's
border stay. A fused cell uses the kernels in plain training, in bf16 under autocast on a GPU that suits them, and falls
back to its parent class otherwise. Hooks on the modules inside a fused cell are not called.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]
from torch.nn.modules.batchnorm import _BatchNorm

from gaeanet.kernels.gpu.availability import obstacle
from gaeanet.models.network import Cell
from gaeanet.models.operations import (
    ACTIVATIONS,
    ConvNorm,
    DilatedConv,
    DropPath,
    FactorizedReduce,
    SeparableConv,
    SqueezeExcite,
)


class FusedCell(Cell):
    """A cell."""

    def forward(self, older: Tensor, newer: Tensor, drop_path_rate: Tensor) -> Tensor:
        dtype = _dtype(self, newer)
        if dtype is None or type(older) is not Tensor or not _fits(self, older, newer):
            return super().forward(older, newer, drop_path_rate)
        from gaeanet.models.cell_function import CellFunction  # imports Triton

        counts = (m.num_batches_tracked for m in self.modules() if isinstance(m, nn.BatchNorm2d))
        torch._foreach_add_([count for count in counts if count is not None], 1)
        factors = self._drop_path_factors(newer, drop_path_rate)
        out: Tensor = CellFunction.apply(older.to(dtype), newer.to(dtype), factors, self, *self.parameters())
        return out

    def _drop_path_factors(self, x: Tensor, rate: Tensor) -> Tensor | None:
        """Drop-path's factors (edges, N), drawn as `operations.drop_path` draws them; None without drop-path."""
        active = [drop_path.active for drop_path in self._drop_paths]
        if not any(active):
            return None
        shape = (x.shape[0], 1, 1, 1)
        draws = [
            torch.rand(shape, device=x.device, dtype=torch.float32) if draw else torch.zeros(shape, device=x.device)
            for draw in active
        ]
        keep = 1.0 - rate
        return (torch.stack(draws).flatten(1) < keep) / keep


class FusedSqueezeExcite(SqueezeExcite):
    """A gate for each channel."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = _dtype(self, x)
        if dtype is None or x.numel() >= 2**31:
            return super().forward(x)
        from gaeanet.models.cell_function import GatedFunction  # imports Triton

        out: Tensor = GatedFunction.apply(x.to(dtype), self, *self.parameters())
        return out


_FUSED: dict[type[nn.Module], type[nn.Module]] = {Cell: FusedCell, SqueezeExcite: FusedSqueezeExcite}


def fuse(network: nn.Module) -> None:
    """Replaces the network's cells and squeeze-and-excitations by fused ones, in place."""
    for module in network.modules():
        module.__class__ = _FUSED.get(type(module), type(module))


def unfuse(network: nn.Module) -> None:
    """Undoes `fuse`."""
    plain = {fused: module for module, fused in _FUSED.items()}
    for module in network.modules():
        module.__class__ = plain.get(type(module), type(module))


def _dtype(module: nn.Module, x: Tensor) -> torch.dtype | None:
    """The dtype of the maps in which the kernels compute this module, None where PyTorch is to compute it.

    While a graph is captured `x` is a proxy, not a tensor.
    """
    if not module.training or type(x) is not Tensor or torch.compiler.is_compiling() or is_tracing():
        return None
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    if device == "cuda" and (not torch.is_autocast_enabled(device) or x.device.index != torch.cuda.current_device()):
        return None
    usual = all(p.dtype is torch.float32 and p.device == x.device for p in module.parameters())
    return dtype if usual and obstacle(x.device, dtype) is None else None


_PLAIN = (ConvNorm, FactorizedReduce, SeparableConv, DilatedConv, nn.Sequential, nn.ModuleList, DropPath, nn.Identity)


def _fits(cell: Cell, older: Tensor, newer: Tensor) -> bool:
    """Whether the kernels support all of a cell and its inputs; what PyTorch would refuse is left to it to refuse."""
    halved = isinstance(cell.preprocess0, FactorizedReduce)
    sizes = [tuple(-(-side // 2) if halved else side for side in older.shape[2:]), tuple(newer.shape[2:])]
    channels = [_inputs(cell.preprocess0), _inputs(cell.preprocess1)]
    if sizes[0] != sizes[1] or len(older) != len(newer) or channels != [older.shape[1], newer.shape[1]]:
        return False
    pixels = newer.shape[0] * newer.shape[2] * newer.shape[3]
    reduced = newer.shape[0] * -(-newer.shape[2] // 2) * -(-newer.shape[3] // 2)
    width = next(m.num_features for m in cell.preprocess1.modules() if isinstance(m, _BatchNorm))
    parts = [part for part in (cell.preprocess0, cell.preprocess1, *cell._ops) if type(part) is not FactorizedReduce]
    activations = {type(m) for part in parts for m in part.modules() if type(m) in ACTIVATIONS.values()}
    return (
        reduced > 1  # the values of a channel, which batch norm needs two of
        and width > 1
        and max(older.numel(), newer.numel(), pixels * width * len(cell.concat)) < 2**31
        and len(activations) == 1
        and all(p.requires_grad for p in cell.parameters())
        and all(m is cell or _is_ordinary(m) for m in cell.modules())
    )


def _inputs(preprocess: nn.Module) -> int:
    return next(m.in_channels for m in preprocess.modules() if isinstance(m, nn.Conv2d))


def _is_ordinary(module: nn.Module) -> bool:
    """Whether a module in a cell is as it was built, and batch norm in training with running statistics."""
    if type(module) is nn.BatchNorm2d:
        statistics = module.running_mean
        return module.training and module.affine and statistics is not None and module.momentum is not None
    if type(module) is nn.Conv2d:
        return module.bias is None
    if type(module) is nn.MaxPool2d:
        return module.dilation == 1 and not module.ceil_mode
    if type(module) is nn.AvgPool2d:
        return not module.count_include_pad and not module.ceil_mode
    return type(module) in _PLAIN or type(module) in ACTIVATIONS.values()
