"""Bytes to RGB pixels, whatever the bytes are: by content, never by name; always 3 x 8 bit.

JPEGs, nearly all there is, go through torchvision's decoder (libjpeg-turbo, the same pixels as Pillow's and more than
twice as fast); what it cannot do, and everything else, goes through Pillow.

A kernel (gaeanet/kernels/native/jpeg.cpp) decodes JPEGs of the common kinds with the same pixels, bit for bit; where
only a part of a picture is wanted, as in training, nothing else of it. It reads the coded data to their end, so that
damage is noticed whichever part is asked for. Then, and for what it does not know, the whole is decoded as above,
and what libjpeg warns of is damage, on every way alike.

The rules for what is odd:

- CMYK and YCCK become RGB as Pillow converts them; grey is repeated; palettes are looked up.
- Transparency is laid on white.
- 16 bits are scaled to 8 (divided by 257), not cut off.
- EXIF is ignored, rotation included, as in the published recipes; damage in it does not matter.
- JPEGs of more than `MAX_PIXELS` are decoded at a half, a quarter or an eighth of their size, and the kernel reads
  their coded data for damage; other images of that size, and progressive JPEGs, are refused.
- Of an image longer than `MAX_ASPECT` times its width the centre is kept: neither training nor validation looks
  further, and resizing the whole of it could take gigabytes.
- Half an image is no image, nor is one that libjpeg warns of: it is refused, never filled with grey. (A progressive
  JPEG that lost its last scans but has an end mark is a whole picture, only softer, and looks like one that was saved
  so.)
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor
from torchvision.io import ImageReadMode

from gaeanet.data.formats import FORMATS, Unreadable
from gaeanet.data.images import libjpeg
from gaeanet.data.images.jpeg import JpegHeader, is_cut_short, read_header
from gaeanet.data.images.printed import printed
from gaeanet.errors import GaeanetError
from gaeanet.kernels.build import OWN, availability

MAX_PIXELS = 90_000_000
"""270 MB of pixels; ImageNet's largest photograph has 61 million."""
MAX_ASPECT = 16

# Pillow's warnings of what does not matter here; by thousands of ImageNet's photographs, in every worker, every epoch.
_SAID_IN_VAIN = (
    r"(Possibly c|C)orrupt EXIF data|Truncated File Read|Image appears to be a malformed MPO|Palette images with"
)
warnings.filterwarnings("ignore", message=_SAID_IN_VAIN, category=UserWarning)


logging.getLogger("PIL").addHandler(logging.NullHandler())  # of what it refuses; it raises too
_LIBTIFF = re.compile(rb"^[\w.]+: .*\n", re.MULTILINE)
"""What libtiff prints of damage."""
_PIXEL_TAGS = frozenset({*range(256, 260), 262, 266, 273, 277, 278, 279, 284, 317, *range(320, 326), 338, 339, 347})
"""Tags of a TIFF from which its pixels are made; all others are metadata."""


class ImageError(GaeanetError):
    """Bytes that are not a whole image; the message says why, the caller knows which."""


class Picture(Protocol):
    """An image of which any part can be had, as `to_pixels` has the whole."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...

    def region(self, top: int, left: int, height: int, width: int) -> Tensor:
        """The pixels of a part, uint8 (3, height, width).

        Raises:
            ImageError: See `to_pixels`.
        """
        ...


@dataclass(frozen=True)
class Pixels:
    """A picture that is decoded, uint8 (3, H, W)."""

    pixels: Tensor

    @property
    def height(self) -> int:
        return self.pixels.shape[1]

    @property
    def width(self) -> int:
        return self.pixels.shape[2]

    def region(self, top: int, left: int, height: int, width: int) -> Tensor:
        return self.pixels[:, top : top + height, left : left + width]


class Photograph:
    """A JPEG, not decoded yet. Whether it is damaged is only known with its first part."""

    def __init__(self, data: bytes, height: int, width: int) -> None:
        self._data = data
        self._top, self._left, self.height, self.width = _central(height, width)

    def region(self, top: int, left: int, height: int, width: int) -> Tensor:
        from gaeanet.kernels.pixels import jpeg_region

        pixels = jpeg_region(self._data, self._top + top, self._left + left, height, width)
        return Pixels(to_pixels(self._data)).region(top, left, height, width) if pixels is None else pixels


def opened(data: bytes | NDArray[np.uint8] | Unreadable) -> Picture:
    """The picture of an image file's bytes or of an array (H, W, 3): decoded in parts where that can be done.

    Raises:
        ImageError: See `to_pixels`; of some files it is raised by `region`.
    """
    if isinstance(data, bytes) and availability() == OWN:
        header = read_header(data)
        if header and _is_plain(header, data):
            return Photograph(data, header.height, header.width)
    return Pixels(to_pixels(data))


def to_pixels(data: bytes | NDArray[np.uint8] | Unreadable) -> Tensor:
    """RGB pixels, uint8 (3, H, W), of an image file's bytes or of an array (H, W, 3).

    Raises:
        ImageError: There are no bytes, or the bytes hold no image, or only a part of one, or a larger one than is safe.
    """
    if isinstance(data, np.ndarray):
        return torch.from_numpy(data).permute(2, 0, 1)
    if isinstance(data, Unreadable):
        raise ImageError(data.reason)
    header = read_header(data)
    if header is None:
        return _through_pillow(data)
    plain, fault, pixels = _is_plain(header, data), None, None
    if plain and availability() == OWN:
        from gaeanet.kernels.pixels import jpeg_region

        pixels = jpeg_region(data, *_central(header.height, header.width))
        if pixels is not None:
            return pixels
    if header.width * header.height <= MAX_PIXELS:
        try:
            pixels = libjpeg.decode(data, ImageReadMode.RGB if plain else ImageReadMode.UNCHANGED)
        except libjpeg.Damage as error:
            fault = f"damaged image: {error}"
    if plain and pixels is not None:
        return _centre(pixels)
    pixels = _through_pillow(data)  # which knows some kinds more, and of some damage what it is
    if fault:
        raise ImageError(fault)
    return pixels


def _is_plain(header: JpegHeader, data: bytes) -> bool:
    """Whether torchvision may have it: grey or YCbCr of bounded size, and ending as a JPEG does."""
    if header.components not in (1, 3) or header.width * header.height > MAX_PIXELS:
        return False
    return data.rfind(b"\xff\xd9", max(0, len(data) - 64)) >= 0


def _centre(pixels: Tensor) -> Tensor:
    _, height, width = pixels.shape
    top, left, rows, columns = _central(height, width)
    if (rows, columns) == (height, width):
        return pixels
    return pixels[:, top : top + rows, left : left + columns].clone()


def _central(height: int, width: int) -> tuple[int, int, int, int]:
    """The part that is kept of an image: top, left, height, width."""
    rows, columns = min(height, MAX_ASPECT * width), min(width, MAX_ASPECT * height)
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _through_pillow(data: bytes) -> Tensor:
    is_tiff = data.startswith((b"II", b"MM"))
    listening: AbstractContextManager[list[str]] = printed(_LIBTIFF) if is_tiff else nullcontext([])
    try:
        with warnings.catch_warnings(record=True) as caught, listening as complaints:
            warnings.simplefilter("always")
            with _opened(data) as image:
                _bound(image)
                _transparent_level(image, data)
                pixels = torch.from_numpy(np.asarray(_rgb(image)).copy()).permute(2, 0, 1)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("not an image" if data else "empty file") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"too large: {str(error).splitlines()[0]}") from None
    except Exception as error:  # Pillow's plug-ins meet damage with whatever exception is at hand
        raise ImageError(f"damaged image: {(str(error) or type(error).__name__).splitlines()[0]}") from None
    if is_tiff:
        complaints += [str(warning.message) for warning in caught if _is_of_pixels(str(warning.message))]
    if complaints:
        raise ImageError(f"damaged image: {complaints[0].rstrip('.')}")
    header = read_header(data)
    if header and header.width * header.height > MAX_PIXELS:
        _check_large(data, header, pixels)
    return _centre(pixels)


def _is_of_pixels(warning: str) -> bool:
    """Whether Pillow warns of a TIFF's tag that its pixels depend on, or of a list of tags that ends too early."""
    tag = re.search(r"tag (\d+)", warning)
    return int(tag[1]) in _PIXEL_TAGS if tag else "EXIF" in warning


def _check_large(data: bytes, header: JpegHeader, pixels: Tensor) -> None:
    """Refuses a damaged JPEG that Pillow decoded at a smaller scale, without a word on what libjpeg warned of."""
    sound = None
    if availability() == OWN:
        from gaeanet.kernels.pixels import is_sound_jpeg

        sound = is_sound_jpeg(data)
    if sound is False:
        raise ImageError("damaged image: its coded data are corrupt, or end before the last row")
    if sound is None and is_cut_short(data, header, pixels.numpy()):
        raise ImageError("damaged image: its data end before the last row")


def _opened(data: bytes) -> ImageFile.ImageFile:
    # Image.open refuses JPEGs of a size that draft() makes harmless.
    if read_header(data):
        return JpegImageFile(io.BytesIO(data))
    return Image.open(io.BytesIO(_without_text(data)), formats=list(FORMATS))


def _bound(image: ImageFile.ImageFile) -> None:
    width, height = image.size
    if width * height <= MAX_PIXELS:
        return
    shrink = next((n for n in (2, 4, 8) if width * height <= MAX_PIXELS * n * n), None)
    progressive = "progressive" in image.info  # libjpeg holds all of its coefficients in memory, at any scale
    if image.format != "JPEG" or progressive or shrink is None:
        raise ImageError(f"too large: {width} x {height} pixels, at most {MAX_PIXELS:,} are decoded")
    image.draft(None, (-(-width // shrink), -(-height // shrink)))  # libjpeg decodes directly at that scale


def _without_text(data: bytes) -> bytes:
    """A PNG without its texts and colour profile: no pixel depends on them, and Pillow reads a megabyte at most."""
    if not data.startswith(_PNG):
        return data
    chunks, at = bytearray(_PNG), len(_PNG)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            chunks += data[at:end]
        at = end
    return bytes(chunks + data[at:])


_PNG = b"\x89PNG\r\n\x1a\n"


def _transparent_level(image: Image.Image, data: bytes) -> None:
    """Scales a PNG's transparent grey or colour as Pillow has scaled its pixels."""
    level = image.info.get("transparency")
    if image.format != "PNG" or level is None or isinstance(level, bytes):
        return
    depth = data[24]
    if depth < 8:
        image.info["transparency"] = level * 255 // (2**depth - 1)
    elif depth == 16 and isinstance(level, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in level)


def _rgb(image: Image.Image) -> Image.Image:
    """RGB by the table of modes in docs/data.md."""
    if image.mode.startswith(("I", "F")):
        level = image.info.get("transparency")
        values = np.asarray(image, dtype=np.float64)
        image = Image.fromarray((values * (255.0 / _top(values, image.mode)) + 0.5).astype(np.uint8))
        if isinstance(level, int):
            image.putalpha(Image.fromarray(np.where(values == level, 0, 255).astype(np.uint8)))
    if image.mode not in _MODES:
        raise ImageError(f"{image.mode} pixels are not read: save it as RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        if image.mode == "1":
            level, image = image.info["transparency"], image.convert("L")
            image.info["transparency"] = level
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})


def _top(values: NDArray[np.float64], mode: str) -> float:
    """The value of white among pixels of more than 8 bits; raises `ImageError` where that cannot be known."""
    least, most = values.min(initial=0.0), values.max(initial=0.0)
    kind = "floating-point" if mode.startswith("F") else "integer"
    if not np.isfinite(values).all():
        raise ImageError(f"{kind} pixels that are not finite: save it with 8 or 16 bits a channel")
    if least < 0 or most > (65535 if kind == "integer" else 255):
        known = "0 to 65535" if kind == "integer" else "0 to 1 or 0 to 255"
        raise ImageError(
            f"{kind} pixels from {least:g} to {most:g}, not {known}: scale them, or save it with 8 or 16 bits a channel"
        )
    return 65535.0 if kind == "integer" else 1.0 if most <= 1 else 255.0


def oddities(data: bytes) -> list[str]:
    """What is unusual about an image that decodes: its format, colours, EXIF; for the report of `gaeanet prepare`."""
    odd = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with _opened(data) as image:
            width, height = image.size
            if image.format not in ("JPEG", "MPO"):
                odd.append(f"{image.format}, not JPEG")
            if image.mode in ("CMYK", "L", "1", "P") or image.mode.startswith(("I", "F")):
                odd.append({"L": "grey", "1": "grey", "P": "palette", "CMYK": "CMYK"}.get(image.mode, "16-bit"))
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                odd.append("transparent")
            try:
                rotated = image.getexif().get(0x0112, 1) not in (0, 1)
            except Exception:  # whatever a damaged block makes the parser raise
                odd.append("damaged EXIF")
            else:
                odd += ["EXIF rotation (ignored)"] * rotated
            if width * height > MAX_PIXELS:
                odd.append("huge (decoded smaller)")
            if max(width, height) > MAX_ASPECT * min(width, height):
                odd.append(f"longer than {MAX_ASPECT}:1 (centre kept)")
    if "damaged EXIF" not in odd and any("EXIF" in str(warning.message) for warning in caught):
        odd.append("damaged EXIF")
    return odd
