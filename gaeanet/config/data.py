"""The `data:` block: where the images are and how they are read."""

from __future__ import annotations

import re

from pydantic import Field, field_validator, model_validator

from gaeanet.config.base import Block

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([MGT])B")


class Data(Block):
    """Data: where the images are and how they are read."""

    bucket_name: str | None = None
    """A Google Cloud Storage bucket: shorthand for location gs://<bucket_name>/imagenet."""
    location: str | None = None
    """A directory or a bucket's URL; with bucket_name null too, images are generated."""
    num_workers_train: int = Field(16, ge=0, le=1024)
    """Worker processes for training batches, at most; never more than there are cores."""
    num_workers_val: int = Field(2, ge=0, le=1024)
    """The same for validation."""
    streaming: bool = True
    """Read from the bucket each time; false keeps a local copy in data_download_dir."""
    data_download_dir: str | None = None
    """Directory of the local copy, and of a bucket's index (~/.cache/gaeanet where null)."""
    cache_size: str | None = None
    """Limit of the local copy, for example `200 GB`; null for none."""
    max_bad: int = Field(10, ge=0, le=10**9)
    """Training images that may be skipped because they do not decode; one more ends the run."""
    minival: float | None = Field(None, gt=0, lt=1)
    """Fraction of each class's training images to hold out and validate on, in place of the validation split."""
    generated_per_class: int = Field(500, ge=10, le=100_000)
    """Training images a class when images are generated; a tenth as many for validation."""

    @field_validator("bucket_name", "location")
    @classmethod
    def _names_something(cls, value: str | None) -> str | None:
        if value is not None and (not value.strip() or re.fullmatch(r"<.*>", value.strip())):
            raise ValueError(f"is {value!r}: name a location; null (and only null) asks for generated images")
        return value

    @field_validator("cache_size")
    @classmethod
    def _is_a_size(cls, value: str | None) -> str | None:
        if value is not None and not _SIZE.fullmatch(value.strip()):
            raise ValueError(f"is {value!r}: give a number with MB, GB or TB, for example 200 GB")
        return value

    @model_validator(mode="after")
    def _one_location(self) -> Data:
        if self.bucket_name is not None and self.location is not None:
            raise ValueError(
                "bucket_name and location are both set: keep one (bucket_name is short for gs://<it>/imagenet)"
            )
        return self

    @property
    def resolved_location(self) -> str | None:
        """The directory or URL to read from; None for generated images."""
        return f"gs://{self.bucket_name}/imagenet" if self.bucket_name is not None else self.location

    @property
    def cache_bytes(self) -> int | None:
        """`cache_size` in bytes."""
        match = _SIZE.fullmatch(self.cache_size.strip()) if self.cache_size else None
        return int(float(match[1]) * 10 ** {"M": 6, "G": 9, "T": 12}[match[2]]) if match else None


def describe_minival(fraction: float) -> str:
    """What is validated on where a fraction of the training images is held out."""
    return f"{100 * fraction:g} % of the training split"
