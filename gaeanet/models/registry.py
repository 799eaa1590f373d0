"""The published ImageNet networks by name: importing this module registers them with timm.

Scripts call `gaeanet.register_networks()`; a program that takes the name of a module imports this one.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from gaeanet.cells.zoo import ZOO, PublishedCell
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


_VARIANTS = ("gaea_c48_se_swish", "gaea_tiny")

_NAMES = (*(cell.architecture for cell in ZOO.values()), *_VARIANTS)

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


def _register(name: str, cell: PublishedCell) -> None:
    """Registers the ImageNet network of one cell of the zoo; timm takes name and module from the function."""

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> CellNetwork:
        return _create(cell.architecture, pretrained, **dict(dict(genotype=name), **kwargs))

    entrypoint.__name__ = entrypoint.__qualname__ = cell.architecture
    entrypoint.__doc__ = f"{cell.source}; 48 channels, 14 cells."
    globals()[cell.architecture] = register_model(entrypoint)


for _name, _published in ZOO.items():
    _register(_name, _published)


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
