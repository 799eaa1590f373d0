"""Entire JPEGs through torchvision's decoder, and libjpeg's warnings of damage.

libjpeg fills what it cannot read with something and reports success; of the damage it prints one line to standard
error, once an image, and no function of torchvision (or of Pillow, which drops the line) hands it on.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from gaeanet.data.images.jpeg import tidied
from gaeanet.data.images.printed import printed

_WARNINGS = re.compile(
    rb"^((Corrupt JPEG data|Invalid SOS parameters|Inconsistent progression sequence|Warning: unknown JFIF).*"
    rb"|Premature end of JPEG file|Unknown Adobe color transform code .*)\n",
    re.MULTILINE,
)
"""libjpeg's own: an image's first one is printed."""

_OTHER_KIND = re.compile("not implemented|omitted at compile time|Unsupported (color|JPEG)|(C|c)olor ?space")
"""Messages for files that are intact, but of a kind that this libjpeg or torchvision does not read."""


class Damage(Exception):
    """What libjpeg found wrong with an image, briefly."""


def decode(data: bytes, mode: ImageReadMode = ImageReadMode.RGB) -> Tensor | None:
    """The pixels of a JPEG, uint8 (channels, H, W); None where torchvision does not read its kind.

    Raises:
        Damage: libjpeg warned, or gave up.
    """
    pixels, text = _decoded(bytearray(data), mode)
    if text and pixels is not None and (cleaner := tidied(data)) != data:
        # A line on what does not matter, in the header, hides those on what follows.
        pixels, text = _decoded(cleaner, mode)
    if text and (pixels is not None or not _OTHER_KIND.search(text)):
        raise Damage(text[:1].lower() + text[1:].rstrip(". "))
    return pixels


def _decoded(data: bytearray, mode: ImageReadMode) -> tuple[Tensor | None, str]:
    """Pixels, None where there are none, and libjpeg's message about them, which may be empty."""
    pixels: Tensor | None = None
    fault = ""
    with printed(_WARNINGS) as warnings:
        try:
            pixels = decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), mode)
        except RuntimeError as error:
            fault = re.sub(r"^decode_jpeg, [^,]*, ", "", str(error).splitlines()[0])
    return pixels, warnings[0] if warnings else fault
