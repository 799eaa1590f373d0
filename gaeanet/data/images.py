"""Bytes to RGB pixels, whatever the bytes are: by content, never by name; always 3 x 8 bit.

JPEGs, nearly all there is, go through torchvision's decoder (libjpeg-turbo, the same pixels as Pillow's and more than
twice as fast); what it refuses, and everything else, goes through Pillow. EXIF rotation is ignored, as in the published
recipes. A transparent image is laid on black's complement, white; 16-bit images are scaled to 8.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from gaeanet.errors import GaeanetError


class ImageError(GaeanetError):
    """Bytes that are not a whole image; the message says why, the caller knows which."""


def to_pixels(data: bytes | NDArray[np.uint8]) -> Tensor:
    """RGB pixels, uint8 (3, H, W), of an image file's bytes or of an array (H, W, 3).

    Raises:
        ImageError: The bytes hold no image, or only a part of one.
    """
    if isinstance(data, np.ndarray):
        return torch.from_numpy(data).permute(2, 0, 1)
    if _is_whole_jpeg(data):
        try:
            pixels: Tensor = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
            return pixels
        except RuntimeError:
            pass  # CMYK and other rarities, or damage: Pillow knows which
    return _through_pillow(data)


def _is_whole_jpeg(data: bytes) -> bool:
    """Whether these bytes begin and end as a JPEG does: libjpeg would fill a missing end with grey."""
    return data[:3] == b"\xff\xd8\xff" and data.rfind(b"\xff\xd9", max(0, len(data) - 64)) >= 0


def _through_pillow(data: bytes) -> Tensor:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged EXIF blocks say so once an image, and do not matter here
            with Image.open(io.BytesIO(data)) as image:
                pixels = np.asarray(_rgb(image))
    except UnidentifiedImageError:
        raise ImageError("not an image" if data else "empty file") from None
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        raise ImageError(f"damaged image: {(str(error) or type(error).__name__).splitlines()[0]}") from None
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        depth = 65535.0 if values.max(initial=0.0) > 255 else 255.0
        image = Image.fromarray((values * (255.0 / depth)).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
