"""One picture of a photograph's size, for benchmarks that need the same one a million times."""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image


@functools.cache
def photograph() -> bytes:
    """A JPEG of 500 x 375 pixels and about 110 kB, ImageNet's mean."""
    rng = np.random.default_rng(0)
    soft = Image.fromarray(rng.integers(0, 255, (38, 50, 3), dtype=np.uint8)).resize((500, 375))
    pixels = np.clip(np.asarray(soft).astype(int) + rng.integers(-22, 23, (375, 500, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
