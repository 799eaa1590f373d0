"""The image formats that are read, and how their files are called: one list for decoding, training and `prepare`."""

from typing import NamedTuple

FORMATS = {
    "JPEG": (".jpeg", ".jpg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm"),
}
"""The formats that are decoded, by the names that Pillow has for them, and how such files are called.

No other is ever tried, whatever a file is called: some of Pillow's decoders start programs, and all are code that
meets bytes from anywhere.
"""

IMAGE_SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
"""Names of files that are taken for images, whatever they turn out to hold; others are skipped with a note."""


class Unreadable(NamedTuple):
    """Why an image's file cannot be read, in place of its bytes."""

    reason: str


_SIGNATURES = (
    (b"\xff\xd8", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"RIFF", ".webp"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
)


def suffix_of(data: bytes) -> str:
    """The suffix of a file with this content, for one that came without a name; `.jpg` where it is none of ours."""
    return next((suffix for signature, suffix in _SIGNATURES if data.startswith(signature)), ".jpg")
