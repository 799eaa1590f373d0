"""The kernels for 8-bit pixels and JPEGs: bit-exact with torchvision and Pillow."""

from __future__ import annotations

import torch
from torch import Tensor

from gaeanet.kernels.calls import call


def colour_jitter(pixels: Tensor, order: Tensor, factors: list[float]) -> None:
    """Brightness, contrast, saturation and hue of uint8 (H, W, 3) in place.

    Args:
        order: int64 (4,), numbers of the operations in turn, from 0; -1 for none.
        factors: Of brightness, contrast and saturation, and the hue's turn in -0.5..0.5.
    """
    brightness, contrast, saturation, turn = factors
    # As torchvision turns it: towards zero, and round the circle.
    turn = int(turn * 255) % 256
    call("colour_jitter", _one_block(pixels), pixels.numel() // 3, order, brightness, contrast, saturation, turn)


def count_levels(pixels: Tensor) -> Tensor:
    """How many pixels of uint8 (H, W, 3) have each level: int64 (3, 256)."""
    levels = torch.empty((3, 256), dtype=torch.int64)
    call("count_levels", _one_block(pixels), pixels.numel() // 3, levels)
    return levels


def map_levels(pixels: Tensor, results: Tensor) -> None:
    """Replaces each level of uint8 (H, W, 3), in place, by what `results`, uint8 (3, 256), has for it."""
    call("map_levels", _one_block(pixels), pixels.numel() // 3, results.contiguous())


def jpeg_region(data: bytes, top: int, left: int, height: int, width: int) -> Tensor | None:
    """A part of a JPEG's pixels as torchvision and Pillow have them: uint8 (3, height, width) in channels-last memory.

    None where those must decode it: the file is not of the common kinds, or it is damaged, even in another part.
    """
    pixels = torch.empty((height, width, 3), dtype=torch.uint8)
    if call("jpeg_region", data, len(data), top, left, height, width, pixels):
        return None
    return pixels.permute(2, 0, 1)


def is_sound_jpeg(data: bytes) -> bool | None:
    """Whether a JPEG's coded data are whole and make sense, which takes no memory for pixels; None where unknown.

    Unknown are progressive JPEGs, those of several scans, and what is odd without being damage.
    """
    return {0: True, 3: False}.get(call("jpeg_soundness", data, len(data)))


def _one_block(pixels: Tensor) -> Tensor:
    if not (pixels.is_contiguous() and pixels.dtype is torch.uint8 and pixels.shape[-1] == 3):
        raise ValueError(f"pixels must be uint8 (H, W, 3) in one block, not {pixels.dtype} {tuple(pixels.shape)}")
    return pixels
