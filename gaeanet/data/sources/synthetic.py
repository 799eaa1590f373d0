"""Generated images that can be learnt: shapes filled with a texture, under noise, at random positions.

A class is a combination of shape, texture and colour order, all of which survive flips, crops and colour jitter. Every
image is drawn on the fly from (seed, split, index), so the set is the same everywhere and takes no disk space.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gaeanet.data.sources.catalog import Catalog, Split
from gaeanet.data.sources.source import Source

Grid = NDArray[np.float32]

SHAPES = ("disc", "square", "ring", "cross", "triangle", "frame", "bar", "diamond", "dots", "crescent")
TEXTURES = ("plain", "stripes", "checks", "rings", "grain")
LIGHTS = ("light on dark", "dark on light")


class SyntheticSource(Source):
    """`num_classes` classes of generated images, `per_class` of each for training and a tenth of that for validation.

    Args:
        size: Side of the images in pixels, before the crop.
        seed: Of the whole set; the run's seed is used.
    """

    generated = True
    location = "generated images"

    def __init__(self, num_classes: int, per_class: int, size: int, seed: int) -> None:
        self.notes: list[str] = []
        self._size = size
        self._seed = seed
        digits = len(str(num_classes - 1))
        names = tuple(f"generated-{number:0{digits}d}" for number in range(num_classes))
        self.catalog = Catalog(names, self._split(names, per_class), self._split(names, per_class // 10))

    @staticmethod
    def _split(names: tuple[str, ...], per_class: int) -> Split:
        return Split.of((f"{name}/{k}", label) for label, name in enumerate(names) for k in range(per_class))

    def read(self, split: str, index: int) -> NDArray[np.uint8]:
        """The pixels of a sample, uint8 (size, size, 3)."""
        rng = np.random.default_rng([self._seed, split == "val", index])
        return _draw(int(self.catalog.split(split).labels[index]), self._size, rng)

    def path(self, split: str, index: int) -> str:
        """What a sample is called, for messages."""
        return f"generated image {split}/{self.catalog.split(split).name(index)}"


def _draw(label: int, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    shape = label % len(SHAPES)
    texture = (label // len(SHAPES) + shape) % len(TEXTURES)
    light = (label // (len(SHAPES) * len(TEXTURES))) % len(LIGHTS)
    step = label // (len(SHAPES) * len(TEXTURES) * len(LIGHTS))  # beyond a hundred classes: finer textures

    axis = np.linspace(-1, 1, size, dtype=np.float32)
    angle = rng.uniform(-0.25, 0.25)
    centre = rng.uniform(-0.2, 0.2, 2)
    scale = rng.uniform(0.6, 0.8)
    x, y = axis[None, :] - centre[0], axis[:, None] - centre[1]
    u = ((np.cos(angle) * x + np.sin(angle) * y) / scale).astype(np.float32)
    v = ((np.cos(angle) * y - np.sin(angle) * x) / scale).astype(np.float32)

    figure = _SHAPES[SHAPES[shape]](u, v)
    pattern = _texture(TEXTURES[texture], u, v, 9.0 * 1.25**step, rng)
    hue, other = rng.uniform(0, 1, (2, 3)).astype(np.float32)
    bright, dark = 0.65 + 0.35 * hue, 0.35 * other
    inside, outside = (bright, dark) if LIGHTS[light] == LIGHTS[0] else (dark, bright)
    paint = (figure * (0.55 + 0.45 * pattern))[..., None]
    image = outside + paint * (inside - outside)
    noise = rng.standard_normal((size, size), dtype=np.float32)[..., None]
    return np.clip((image + 0.06 * noise) * 255, 0, 255).astype(np.uint8)


def _filled(signed: Grid) -> Grid:
    """1 inside (where `signed` is negative), 0 outside, with a soft edge."""
    return np.clip(0.5 - 12 * signed, 0, 1)


_SHAPES = {
    "disc": lambda u, v: _filled(np.hypot(u, v) - 0.8),
    "square": lambda u, v: _filled(np.maximum(abs(u), abs(v)) - 0.7),
    "ring": lambda u, v: _filled(abs(np.hypot(u, v) - 0.65) - 0.2),
    "cross": lambda u, v: _filled(np.maximum(np.minimum(abs(u), abs(v)) - 0.2, np.maximum(abs(u), abs(v)) - 0.9)),
    "triangle": lambda u, v: _filled(np.maximum(abs(u) * 1.7 + v - 0.7, -v - 0.7)),
    "frame": lambda u, v: _filled(abs(np.maximum(abs(u), abs(v)) - 0.65) - 0.15),
    "bar": lambda u, v: _filled(np.maximum(abs(u) - 0.95, abs(v) - 0.25)),
    "diamond": lambda u, v: _filled(abs(u) + abs(v) - 0.9),
    "dots": lambda u, v: _filled(np.hypot(abs(u) - 0.45, abs(v) - 0.45) - 0.28),
    "crescent": lambda u, v: _filled(np.maximum(np.hypot(u, v) - 0.8, 0.6 - np.hypot(u, v - 0.4))),
}


def _texture(kind: str, u: Grid, v: Grid, frequency: float, rng: np.random.Generator) -> Grid | float:
    """A pattern between -1 and 1 in the figure's own coordinates."""
    phase = rng.uniform(0, 2 * np.pi)
    if kind == "plain":
        return 1.0
    if kind == "stripes":
        return np.sign(np.sin(frequency * 1.2 * v + phase))
    if kind == "checks":
        return np.sign(np.sin(frequency * u + phase) * np.sin(frequency * v + phase))
    if kind == "rings":
        return np.sin(frequency * 1.5 * np.hypot(u, v) + phase)
    return np.sign(rng.standard_normal(v.shape, dtype=np.float32) * np.ones_like(u * v))  # grain: row noise
