"""The network's keys of `hyperparameters:`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from gaeanet.cells.genotype import Genotype
from gaeanet.cells.read import read_genotype
from gaeanet.config.base import Probability, Seeded
from gaeanet.errors import RequestError

MOST_PARAMETERS = 10_000_000_000
"""Two thousand times the published network's."""

Activation = Literal["relu", "swish", "hswish"]


class Network(Seeded):
    """Network: its cell, its size, and how it is regularised."""

    genotype: str | dict[str, Any] = "gaea-imagenet"
    """The cell: a name from the zoo, a file, a Genotype(...) text or its four lists."""
    num_classes: int = Field(1000, ge=2, le=1_000_000)
    """Classes that it distinguishes: those of the data."""
    init_channels: int = Field(48, ge=2, le=4096, multiple_of=2)
    """Width of the first cells' nodes."""
    layers: int = Field(14, ge=1, le=200)
    """Number of cells."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """Three stride-2 convolutions before the cells, or one of stride 1 for small images."""
    stem_stride: Literal[1, 2] = 2
    """Stride of the ImageNet stem's first convolution: 2 as published; 1 for images of about 128 pixels, whose maps
    are then those of an image twice as large. The weights fit either."""
    activation: Activation = "swish"
    """The nonlinearity; the paper's networks have relu."""
    do_SE: bool = True
    """Squeeze-and-excitation after the first two thirds of the cells."""
    initial_gamma: float = Field(1.0, ge=0, le=1)
    """Weight that the last batch norm of each operation starts with; 1 as published. A small one, 0.1, speeds up the
    first epochs: cells start as their skip connections."""
    auxiliary: bool = False
    """Auxiliary tower in training."""
    auxiliary_weight: float = Field(0.4, ge=0)
    """Weight of the tower's loss; 0 builds no tower."""
    auxiliary_second_norm: bool = True
    """False leaves out the tower's second batch norm, as the DARTS and PC-DARTS scripts do."""
    drop_path_prob: Probability = 0.0
    """Drop-path; grows linearly from 0 to this over the run."""
    drop_prob: Probability = 0.0
    """Dropout before the classifier."""

    @field_validator("genotype")
    @classmethod
    def _genotype_reads(cls, value: str | dict[str, Any]) -> str | dict[str, Any]:
        try:
            read_genotype(value)
        except RequestError as error:
            raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _can_be_built(self) -> Network:
        # The two convolutions that each of the last third of the cells begins with; the others are as many again.
        least = self.layers // 3 * 8 * (4 * self.init_channels) ** 2
        if least > MOST_PARAMETERS:
            raise ValueError(
                f"layers {self.layers} of init_channels {self.init_channels} have more than {least / 1e9:,.0f} billion "
                f"parameters, and at most {MOST_PARAMETERS / 1e9:.0f} billion are built: lower either"
            )
        return self

    @model_validator(mode="after")
    def _stem_fits(self) -> Network:
        if self.stem == "cifar" and self.stem_stride != 2:
            raise ValueError("stem_stride 1 is for the imagenet stem, the cifar stem has no stride: leave one out")
        return self

    @property
    def cell(self) -> Genotype:
        """The genotype that `genotype` stands for."""
        return read_genotype(self.genotype)

    @property
    def architecture(self) -> dict[str, Any]:
        """The arguments of `CellNetwork` but for classes, regularisation and tower."""
        return {
            "genotype": self.cell,
            "init_channels": self.init_channels,
            "layers": self.layers,
            "activation": self.activation,
            "squeeze_excite": self.do_SE,
            "stem": self.stem,
            "stem_stride": self.stem_stride,
        }
