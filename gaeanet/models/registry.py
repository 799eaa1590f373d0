"""The published ImageNet networks by name: importing this module registers them with timm.

Scripts call `gaeanet.register_networks()`; a program that takes the name of a module imports this one.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from gaeanet.models.network import AuxiliaryHead, Cell, CellNetwork

__all__ = ["AuxiliaryHead", "Cell", "CellNetwork"]


def _cfg(**changes: Any) -> dict[str, Any]:
    return dict(
        url="",
        num_classes=1000,
        input_size=(3, 224, 224),
        pool_size=(7, 7),
        crop_pct=0.875,
        interpolation="bilinear",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        first_conv="stem0.0",
        classifier="classifier",
        license="apache-2.0",
        **changes,
    )


_NAMES = (
    "gaea_c48",
    "gaea_c48_se_swish",
    "gaea_tiny",
    "pc_darts_c48",
    "pc_darts_cifar10_c48",
    "p_darts_c48",
    "darts_v1_c48",
    "darts_v2_c48",
    "nasnet_a_c48",
    "amoebanet_a_c48",
)

default_cfgs = generate_default_cfgs({f"{name}.untrained": _cfg() for name in _NAMES})


def register_networks() -> tuple[str, ...]:
    """Registers the published networks with timm, for `timm.create_model(NAME)`.

    Returns:
        Their names.
    """
    return _NAMES  # timm's decorators below have registered them when this module was imported


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> CellNetwork:
    # A cell has two inputs, so features are taken by hooks, never by running the children in a row.
    feature_cfg = dict(feature_cls="hook", no_rewrite=True)
    network: CellNetwork = build_model_with_cfg(CellNetwork, variant, pretrained, feature_cfg=feature_cfg, **kwargs)
    return network


@register_model
def gaea_c48(pretrained: bool = False, **kwargs: Any) -> CellNetwork:
    """The network of the GAEA paper: the cell found on ImageNet, 48 channels, 14 cells."""
    return _create("gaea_c48", pretrained, **dict(dict(genotype="gaea-imagenet"), **kwargs))


@register_model
def gaea_c48_se_swish(pretrained: bool = False, **kwargs: Any) -> CellNetwork:
    """The same with swish and squeeze-and-excitation, as in Determined's example."""
    arguments = dict(genotype="gaea-imagenet", activation="swish", squeeze_excite=True)
    return _create("gaea_c48_se_swish", pretrained, **dict(arguments, **kwargs))


@register_model
def gaea_tiny(pretrained: bool = False, **kwargs: Any) -> CellNetwork:
    """A GAEA network for tests and trials: 16 channels, 6 cells, swish, squeeze-and-excitation."""
    arguments = dict(genotype="gaea-imagenet", init_channels=16, layers=6, activation="swish", squeeze_excite=True)
    return _create("gaea_tiny", pretrained, **dict(arguments, **kwargs))


@register_model
def pc_darts_c48(pretrained: bool = False, **kwargs: Any) -> CellNetwork:
    """PC-DARTS, the cell found on ImageNet (Xu et al. 2020)."""
    return _create("pc_darts_c48", pretrained, **dict(dict(genotype="pc-darts-imagenet"), **kwargs))


@register_model
def pc_darts_cifar10_c48(pretrained: bool = False, **kwargs: Any) -> CellNetwork:
    """PC-DARTS, the cell found on CIFAR-10 (Xu et al. 2020)."""
    return _create("pc_darts_cifar10_c48", pretrained, **dict(dict(genotype="pc-darts-cifar10"), **kwargs))


@register_model
def p_darts_c48(pretrained: bool = False, **kwargs: Any) -> CellNetwork:
    """P-DARTS, the cell found on CIFAR-10 (Chen et al. 2019)."""
    return _create("p_darts_c48", pretrained, **dict(dict(genotype="p-darts-cifar10"), **kwargs))


@register_model
def darts_v1_c48(pretrained: bool = False, **kwargs: Any) -> CellNetwork:
    """DARTS, first order (Liu et al. 2019)."""
    return _create("darts_v1_c48", pretrained, **dict(dict(genotype="darts-v1"), **kwargs))


@register_model
def darts_v2_c48(pretrained: bool = False, **kwargs: Any) -> CellNetwork:
    """DARTS, second order (Liu et al. 2019)."""
    return _create("darts_v2_c48", pretrained, **dict(dict(genotype="darts-v2"), **kwargs))


@register_model
def nasnet_a_c48(pretrained: bool = False, **kwargs: Any) -> CellNetwork:
    """NASNet-A's cells (Zoph et al. 2018) in the frame of DARTS."""
    return _create("nasnet_a_c48", pretrained, **dict(dict(genotype="nasnet-a"), **kwargs))


@register_model
def amoebanet_a_c48(pretrained: bool = False, **kwargs: Any) -> CellNetwork:
    """AmoebaNet-A's cells (Real et al. 2019) in the frame of DARTS."""
    return _create("amoebanet_a_c48", pretrained, **dict(dict(genotype="amoebanet-a"), **kwargs))
