"""The zoo: published cells by name."""

from __future__ import annotations

from dataclasses import dataclass, field

from gaeanet.cells.genotype import Edge, Genotype


@dataclass(frozen=True)
class PublishedCell:
    """A cell as its authors published it: all that the package knows of it.

    Attributes:
        genotype: The cell.
        source: Where it was found and published.
        architecture: The name under which its ImageNet network (48 channels, 14 cells) is registered with timm.
        errors: Published test errors in percent, keyed `imagenet_top1`, `imagenet_top5`, `cifar10`.
        multiply_adds: Of the authors' own ImageNet network at 224 pixels, by the authors' own counter; None where
            they give none.
    """

    genotype: Genotype
    source: str
    architecture: str
    errors: dict[str, float] = field(default_factory=dict)
    multiply_adds: str | None = None


def _cell(edges: str, concat: tuple[int, ...]) -> tuple[tuple[Edge, ...], tuple[int, ...]]:
    """Reads the zoo's notation: `operation input operation input | ...`, a node between bars."""
    tokens = edges.replace("|", " ").split()
    return tuple(Edge(operation, int(source)) for operation, source in zip(tokens[::2], tokens[1::2])), concat


def _genotype(
    normal: str,
    reduce: str,
    normal_concat: tuple[int, ...] = (2, 3, 4, 5),
    reduce_concat: tuple[int, ...] = (2, 3, 4, 5),
) -> Genotype:
    return Genotype(*_cell(normal, normal_concat), *_cell(reduce, reduce_concat))


ZOO: dict[str, PublishedCell] = {
    "gaea-imagenet": PublishedCell(
        _genotype(
            "skip_connect 1 skip_connect 0 | sep_conv_3x3 2 sep_conv_3x3 1"
            " | sep_conv_5x5 2 sep_conv_3x3 0 | sep_conv_5x5 3 sep_conv_5x5 2",
            "max_pool_3x3 1 sep_conv_3x3 0 | sep_conv_5x5 1 dil_conv_5x5 2"
            " | sep_conv_3x3 1 sep_conv_3x3 3 | sep_conv_5x5 1 max_pool_3x3 2",
        ),
        "GAEA PC-DARTS searched on ImageNet; Li et al. 2020, arXiv 2004.07802",
        "gaea_c48",
        {"imagenet_top1": 24.0, "imagenet_top5": 7.3},
        multiply_adds="< 600 M",
    ),
    "gaea-cifar10-a": PublishedCell(
        _genotype(
            "sep_conv_3x3 1 skip_connect 0 | sep_conv_3x3 1 skip_connect 2"
            " | sep_conv_3x3 1 sep_conv_3x3 2 | sep_conv_3x3 0 dil_conv_3x3 4",
            "max_pool_3x3 0 max_pool_3x3 1 | sep_conv_5x5 0 sep_conv_5x5 2"
            " | dil_conv_3x3 3 sep_conv_5x5 2 | sep_conv_5x5 4 sep_conv_3x3 1",
        ),
        "GAEA PC-DARTS searched on CIFAR-10 (one of two cells in Determined's GAEA example); arXiv 2004.07802",
        "gaea_cifar10_a_c48",
    ),
    "gaea-cifar10-b": PublishedCell(
        _genotype(
            "sep_conv_3x3 1 skip_connect 0 | sep_conv_3x3 0 sep_conv_3x3 2"
            " | sep_conv_3x3 2 sep_conv_5x5 1 | sep_conv_3x3 1 sep_conv_5x5 0",
            "max_pool_3x3 0 sep_conv_5x5 1 | dil_conv_5x5 2 max_pool_3x3 0"
            " | sep_conv_3x3 2 skip_connect 0 | dil_conv_3x3 4 max_pool_3x3 0",
        ),
        "GAEA PC-DARTS searched on CIFAR-10 (the other one); arXiv 2004.07802",
        "gaea_cifar10_b_c48",
    ),
    "pc-darts-imagenet": PublishedCell(
        _genotype(
            "skip_connect 1 sep_conv_3x3 0 | sep_conv_3x3 0 skip_connect 1"
            " | sep_conv_3x3 1 sep_conv_3x3 3 | sep_conv_3x3 1 dil_conv_5x5 4",
            "sep_conv_3x3 0 skip_connect 1 | dil_conv_5x5 2 max_pool_3x3 1"
            " | sep_conv_3x3 2 sep_conv_3x3 1 | sep_conv_5x5 0 sep_conv_3x3 3",
        ),
        "PC-DARTS searched on ImageNet; Xu et al. 2020, arXiv 1907.05737",
        "pc_darts_c48",
        {"imagenet_top1": 24.2, "imagenet_top5": 7.3},
        multiply_adds="597 M",
    ),
    "pc-darts-cifar10": PublishedCell(
        _genotype(
            "sep_conv_3x3 1 skip_connect 0 | sep_conv_3x3 0 dil_conv_3x3 1"
            " | sep_conv_5x5 0 sep_conv_3x3 1 | avg_pool_3x3 0 dil_conv_3x3 1",
            "sep_conv_5x5 1 max_pool_3x3 0 | sep_conv_5x5 1 sep_conv_5x5 2"
            " | sep_conv_3x3 0 sep_conv_3x3 3 | sep_conv_3x3 1 sep_conv_3x3 2",
        ),
        "PC-DARTS searched on CIFAR-10; Xu et al. 2020, arXiv 1907.05737",
        "pc_darts_cifar10_c48",
        {"cifar10": 2.57, "imagenet_top1": 25.1, "imagenet_top5": 7.8},
        multiply_adds="586 M",
    ),
    "p-darts-cifar10": PublishedCell(
        _genotype(
            "skip_connect 0 dil_conv_3x3 1 | skip_connect 0 sep_conv_3x3 1"
            " | sep_conv_3x3 1 sep_conv_3x3 3 | sep_conv_3x3 0 dil_conv_5x5 4",
            "avg_pool_3x3 0 sep_conv_5x5 1 | sep_conv_3x3 0 dil_conv_5x5 2"
            " | max_pool_3x3 0 dil_conv_3x3 1 | dil_conv_3x3 1 dil_conv_5x5 3",
        ),
        "P-DARTS searched on CIFAR-10; Chen et al. 2019, arXiv 1904.12760",
        "p_darts_c48",
        {"cifar10": 2.5, "imagenet_top1": 24.4, "imagenet_top5": 7.4},
        multiply_adds="557 M",
    ),
    "darts-v2": PublishedCell(
        _genotype(
            "sep_conv_3x3 0 sep_conv_3x3 1 | sep_conv_3x3 0 sep_conv_3x3 1"
            " | sep_conv_3x3 1 skip_connect 0 | skip_connect 0 dil_conv_3x3 2",
            "max_pool_3x3 0 max_pool_3x3 1 | skip_connect 2 max_pool_3x3 1"
            " | max_pool_3x3 0 skip_connect 2 | skip_connect 2 max_pool_3x3 1",
        ),
        "DARTS second order; Liu et al. 2019, arXiv 1806.09055",
        "darts_v2_c48",
        {"cifar10": 2.76, "imagenet_top1": 26.7, "imagenet_top5": 8.7},
        multiply_adds="574 M",
    ),
    "darts-v1": PublishedCell(
        _genotype(
            "sep_conv_3x3 1 sep_conv_3x3 0 | skip_connect 0 sep_conv_3x3 1"
            " | skip_connect 0 sep_conv_3x3 1 | sep_conv_3x3 0 skip_connect 2",
            "max_pool_3x3 0 max_pool_3x3 1 | skip_connect 2 max_pool_3x3 0"
            " | max_pool_3x3 0 skip_connect 2 | skip_connect 2 avg_pool_3x3 0",
        ),
        "DARTS first order; Liu et al. 2019, arXiv 1806.09055",
        "darts_v1_c48",
        {"cifar10": 3.0},
    ),
    "nasnet-a": PublishedCell(
        _genotype(
            "sep_conv_5x5 1 sep_conv_3x3 0 | sep_conv_5x5 0 sep_conv_3x3 0 | avg_pool_3x3 1 skip_connect 0"
            " | avg_pool_3x3 0 avg_pool_3x3 0 | sep_conv_3x3 1 skip_connect 1",
            "sep_conv_5x5 1 sep_conv_7x7 0 | max_pool_3x3 1 sep_conv_7x7 0 | avg_pool_3x3 1 sep_conv_5x5 0"
            " | skip_connect 3 avg_pool_3x3 2 | sep_conv_3x3 2 max_pool_3x3 1",
            normal_concat=(2, 3, 4, 5, 6),
            reduce_concat=(4, 5, 6),
        ),
        "NASNet-A as written in the DARTS code; Zoph et al. 2018, arXiv 1707.07012",
        "nasnet_a_c48",
        {"imagenet_top1": 26.0, "imagenet_top5": 8.4},
        multiply_adds="564 M",
    ),
    "amoebanet-a": PublishedCell(
        _genotype(
            "avg_pool_3x3 0 max_pool_3x3 1 | sep_conv_3x3 0 sep_conv_5x5 2 | sep_conv_3x3 0 avg_pool_3x3 3"
            " | sep_conv_3x3 1 skip_connect 1 | skip_connect 0 avg_pool_3x3 1",
            "avg_pool_3x3 0 sep_conv_3x3 1 | max_pool_3x3 0 sep_conv_7x7 2 | sep_conv_7x7 0 avg_pool_3x3 1"
            " | max_pool_3x3 0 max_pool_3x3 1 | conv_7x1_1x7 0 sep_conv_3x3 5",
            normal_concat=(4, 5, 6),
            reduce_concat=(3, 4, 6),
        ),
        "AmoebaNet-A as written in the DARTS code; Real et al. 2019, arXiv 1802.01548",
        "amoebanet_a_c48",
        {"imagenet_top1": 25.5, "imagenet_top5": 8.0},
        multiply_adds="555 M",
    ),
}
"""Published cells by name. A new cell is an entry here and nowhere else."""


def name_of(genotype: Genotype) -> str | None:
    """The cell's name in the zoo, None where it is not there."""
    return next((name for name, cell in ZOO.items() if cell.genotype == genotype), None)
