"""The operations that an edge may carry: one table, from which networks, drawings, texts and costs are derived.

A new operation of a known kind is a line in `OPERATIONS`. A new kind is a line in `KINDS` and a builder in
`models/operations.py`. Nothing here needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """What operations of one kind have in common. In `label` and `description`, {k} is the kernel's side in pixels.

    Attributes:
        title: The kind in the legend of a drawing.
        label: An operation in a drawing; at most 12 characters.
        description: What an operation does to the state that it reads; {span} is the side of a dilated kernel.
        colour, background: Of lines and text in a drawing, and behind them.
    """

    title: str
    label: str
    description: str
    colour: str
    background: str


@dataclass(frozen=True)
class Operation:
    """An operation: its kind (a key of `KINDS`) and the side of its kernel in pixels, 0 where it has none."""

    kind: str
    kernel: int = 0

    @property
    def label(self) -> str:
        """The text in a drawing."""
        return KINDS[self.kind].label.format(k=self.kernel)

    @property
    def description(self) -> str:
        """What it does to the state that it reads."""
        return KINDS[self.kind].description.format(k=self.kernel, span=2 * self.kernel - 1)


KINDS: dict[str, Kind] = {
    "skip": Kind(
        "skip connection",
        "skip",
        "the state as it is; with stride 2, two 1x1 convolutions, one of them a pixel further on",
        "#4d5963",
        "#eceff1",
    ),
    "max_pool": Kind(
        "max pooling", "max pool {k}\u00d7{k}", "the largest value in each {k}x{k} window", "#b3470f", "#fdeee4"
    ),
    "avg_pool": Kind(
        "average pooling",
        "avg pool {k}\u00d7{k}",
        "the mean of each {k}x{k} window, padding not counted",
        "#8a6400",
        "#fbf3d9",
    ),
    "separable": Kind(
        "separable convolution (twice)",
        "sep conv {k}\u00d7{k}",
        "a {k}x{k} convolution in each channel, then a 1x1 convolution across channels, and both once more",
        "#1a569c",
        "#e6f0fb",
    ),
    "dilated": Kind(
        "dilated separable convolution",
        "dil conv {k}\u00d7{k}",
        "a {k}x{k} convolution with gaps (it spans {span}x{span}) in each channel, then a 1x1 across channels",
        "#743f9e",
        "#f3eafa",
    ),
    "factorized": Kind(
        "1\u00d7k and k\u00d71 convolution",
        "conv 1\u00d7{k} {k}\u00d71",
        "a 1x{k} convolution, then a {k}x1 convolution, both across channels",
        "#14766a",
        "#e2f5f2",
    ),
}
"""Kinds of operations; `models/operations.py` has a builder for each."""

OPERATIONS: dict[str, Operation] = {
    "skip_connect": Operation("skip"),
    "max_pool_3x3": Operation("max_pool", 3),
    "avg_pool_3x3": Operation("avg_pool", 3),
    "sep_conv_3x3": Operation("separable", 3),
    "sep_conv_5x5": Operation("separable", 5),
    "sep_conv_7x7": Operation("separable", 7),
    "dil_conv_3x3": Operation("dilated", 3),
    "dil_conv_5x5": Operation("dilated", 5),
    "conv_7x1_1x7": Operation("factorized", 7),
}
"""The operations that an edge may carry, by their names in the DARTS family."""
