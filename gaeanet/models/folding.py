"""Batch norm folded into the convolutions before it: the same outputs with fewer layers, for use after training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gaeanet.models.operations import FactorizedReduce


@torch.no_grad()
def fold_batch_norm(network: nn.Module) -> int:
    """Folds every batch norm that follows a convolution, in place, in evaluation mode; returns how many.

    y = g (Wx - m) / sqrt(v + eps) + b is a convolution with weights W g / sqrt(v + eps) and a bias. What is left in
    the batch norm's place is an identity.
    """
    folded = 0
    for module in network.modules():
        if isinstance(module, FactorizedReduce) and isinstance(module.bn, nn.BatchNorm2d):
            scale, shift = _affine(module.bn)
            half = module.conv_1.out_channels
            module.conv_1 = _scaled(module.conv_1, scale[:half], shift[:half])
            module.conv_2 = _scaled(module.conv_2, scale[half:], shift[half:])
            module.bn = nn.Identity()  # type: ignore[assignment]
            folded += 1
        elif isinstance(module, nn.Sequential):
            for place in range(len(module) - 1):
                convolution, norm = module[place], module[place + 1]
                if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    module[place] = _scaled(convolution, *_affine(norm))
                    module[place + 1] = nn.Identity()
                    folded += 1
    return folded


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Factor and summand that batch norm with fixed statistics is, (channels,) each, in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _scaled(convolution: nn.Conv2d, scale: Tensor, shift: Tensor) -> nn.Conv2d:
    new = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,  # type: ignore[arg-type]
        convolution.stride,  # type: ignore[arg-type]
        convolution.padding,  # type: ignore[arg-type]
        convolution.dilation,  # type: ignore[arg-type]
        convolution.groups,
        device=convolution.weight.device,
        dtype=convolution.weight.dtype,
    )
    new.weight.copy_(convolution.weight.double() * scale[:, None, None, None])
    assert new.bias is not None
    old = 0.0 if convolution.bias is None else convolution.bias.double() * scale
    new.bias.copy_(shift + old)
    return new.train(convolution.training)
