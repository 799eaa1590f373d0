"""The `hyperparameters.search` block of an experiment file. Nothing here needs torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gaeanet.config.base import MOST_EPOCHS, Block, Positive

PATH = 2000.0
"""Rate times steps of the architecture in the search on CIFAR-10 (Li et al. 2020): 0.1 over 50 epochs of 390 steps."""

Fraction = Annotated[float, Field(gt=0, le=1)]


class Search(Block):
    """Search: how a cell is searched for. Null values are the method's own."""

    method: Literal["gaea", "pc-darts", "darts"] = "gaea"
    """What moves the architecture: exponentiated gradient on simplices, or Adam behind a softmax."""
    level: Literal["bilevel", "single"] = "bilevel"
    """Whether weights and architecture learn from different images (first order) or from the same."""
    architecture_learning_rate: Positive | Literal["scaled"] | None = None
    """Null: 0.1 for gaea, 6e-4 for the others. scaled: what makes gaea's path, rate times steps, as long as the
    paper's on CIFAR-10, 2,000."""
    channel_divisor: int | None = Field(None, ge=1, le=4096)
    """One k-th of the channels goes through the candidates, the rest passes by; null: 4, and 1 for darts."""
    weights_share: Fraction | None = None
    """Fraction of each class's training images that train weights; null: 0.5, and 1 where level is single."""
    architecture_share: Fraction | None = None
    """Fraction that trains the architecture, other images than those; null: 0.5. Null only where level is single."""
    architecture_warmup_epochs: int | None = Field(None, ge=0, le=MOST_EPOCHS)
    """Epochs before the architecture moves; null: three tenths of all for pc-darts, 0 for the others."""
    multiply_adds_limit: Positive | None = None
    """Millions that the found cell's ImageNet network (48 channels, 14 cells, 224 px) may take; null for no limit."""
    settled_epochs: int | None = Field(None, ge=1, le=MOST_EPOCHS)
    """Ends the search once the genotype has not changed for so many epochs; null: never."""

    @model_validator(mode="after")
    def _scales(self) -> Search:
        if self.architecture_learning_rate == "scaled" and self.method != "gaea":
            raise ValueError(f"architecture_learning_rate scaled goes with method gaea, not with {self.method}")
        return self

    @model_validator(mode="after")
    def _fractions_fit(self) -> Search:
        if self.level == "single" and self.architecture_share is not None:
            raise ValueError("architecture_share goes with level bilevel: with single, the weights' images serve both")
        if self.level == "bilevel" and sum(self.fractions) > 1 + 1e-9:
            weights, architecture = self.fractions
            raise ValueError(f"weights_share {weights:g} and architecture_share {architecture:g} exceed 1 together")
        return self

    @property
    def fractions(self) -> tuple[float, float]:
        """Fractions of the images for weights and for the architecture; with level single the second is 0."""
        if self.level == "single":
            return (1.0 if self.weights_share is None else self.weights_share), 0.0
        return (
            0.5 if self.weights_share is None else self.weights_share,
            0.5 if self.architecture_share is None else self.architecture_share,
        )

    @property
    def divisor(self) -> int:
        """The k of partial channel connections; 1 sends everything through the candidates."""
        return self.channel_divisor or (1 if self.method == "darts" else 4)

    def rate(self, steps: int) -> float:
        """The architecture's learning rate in a search in which it takes so many steps."""
        if self.architecture_learning_rate == "scaled":
            return PATH / steps
        return self.architecture_learning_rate or (0.1 if self.method == "gaea" else 6e-4)

    def warmup(self, epochs: int) -> int:
        """Epochs of `epochs` before the architecture moves."""
        if self.architecture_warmup_epochs is not None:
            return self.architecture_warmup_epochs
        return 3 * epochs // 10 if self.method == "pc-darts" else 0
