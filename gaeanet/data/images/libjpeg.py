"""Entire JPEGs through torchvision's decoder, and libjpeg's warnings of damage.

libjpeg fills what it cannot read with something and reports success; of the damage it prints one line to standard
error, once an image, and no function of torchvision (or of Pillow, which drops the line) hands it on. So standard error
leads into a file in memory while an image is decoded. What else is written there meanwhile is passed on.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from gaeanet.data.images.jpeg import tidied

_WARNINGS = re.compile(
    rb"^((Corrupt JPEG data|Invalid SOS parameters|Inconsistent progression sequence|Warning: unknown JFIF).*"
    rb"|Premature end of JPEG file|Unknown Adobe color transform code .*)\n",
    re.MULTILINE,
)
"""libjpeg's own: an image's first one is printed."""

_OTHER_KIND = re.compile("not implemented|omitted at compile time|Unsupported (color|JPEG)|(C|c)olor ?space")
"""Messages for files that are intact, but of a kind that this libjpeg or torchvision does not read."""

_one_at_a_time = threading.Lock()


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
    with _one_at_a_time:
        memory = _file_in_memory()
        try:
            saved = os.dup(2)
        except OSError:  # there is no standard error
            saved = None
        os.dup2(memory, 2)
        try:
            pixels: Tensor | None = decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), mode)
            fault = ""
        except RuntimeError as error:
            pixels, fault = None, re.sub(r"^decode_jpeg, [^,]*, ", "", str(error).splitlines()[0])
        finally:
            if saved is not None:
                os.dup2(saved, 2)
                os.close(saved)
            elif memory != 2:
                os.close(2)
            length = os.lseek(memory, 0, os.SEEK_END)
            printed = os.pread(memory, length, 0) if length else b""
            os.close(memory)
    if saved is not None and (others := _WARNINGS.sub(b"", printed)):
        os.write(2, others)
    warning = _WARNINGS.search(printed)
    return pixels, warning[1].decode("ascii", "replace") if warning else fault


def _file_in_memory() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("libjpeg")
    with tempfile.TemporaryFile() as file:  # as on macOS
        return os.dup(file.fileno())
