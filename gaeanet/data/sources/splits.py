"""A fraction of the training split to validate on, so that no choice is made on the validation split; torch-free."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from gaeanet.config.experiment import Hyperparameters
from gaeanet.data.sources.catalog import Split
from gaeanet.data.sources.order import class_fractions, fractions_by_key
from gaeanet.data.sources.source import Source
from gaeanet.data.sources.subset import Subset
from gaeanet.errors import RequestError, counted


def with_minival(source: Source, fraction: float) -> Source:
    """`source` with `fraction` of each class's training images as its validation split, and the others to train on.

    Which images these are follows from their names alone (see `split_by_name`): the same in every run, whatever its
    seed, and in every kind of source.

    Raises:
        RequestError: A class has too few images for one on either side.
    """
    train, classes = source.catalog.train, source.catalog.classes
    held_out, rest = split_by_name(train, len(classes), fraction)
    for part, what in ((held_out, "holds none of them out: raise it"), (rest, "leaves none to train on: lower it")):
        counts = np.bincount(train.labels[part], minlength=len(classes))
        if not counts.all():
            label = int(counts.argmin())
            count = int(train.counts(len(classes))[label])
            what = "leaves nothing on one side: add images" if count < 2 else what
            raise RequestError(
                f"data.minival is {fraction:g}, but class {classes[label]} of {source.location} has "
                f"{counted(count, 'training image')}, and that {what}, or set it to null"
            )
    divided = Subset(source, rest, held_out)
    divided.minival = fraction
    return divided


def split_by_name(split: Split, classes: int, fraction: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The samples to hold out and the others, numbers in ascending order, int64.

    Of a class's n images those are held out that come first by a digest of their names (`<class>/<file>`), n times
    `fraction` of them, rounded. An image that is added to a data set, or goes, moves one other image of its own class
    at most, and none where the number held out stays the same and it was not among them.
    """
    names = split.names.tobytes()
    ends = split.ends.tolist()
    digests = (blake2b(names[a:b], digest_size=8).digest() for a, b in zip([0, *ends], ends))
    keys = np.frombuffer(b"".join(digests), "<u8")
    (held_out,) = fractions_by_key(split.labels, classes, keys, [fraction])
    return held_out, np.setdiff1d(np.arange(len(split)), held_out, assume_unique=True)


def search_splits(source: Source, hp: Hyperparameters) -> tuple[Subset, Subset | None]:
    """The images for the weights and those for the architecture, which are others; None for a single-level search.

    Of each class the fractions are those that `search` asks for, and which images they are follows from the seed.

    Raises:
        RequestError: A part has no image of a class, or fewer images than a batch.
    """
    assert hp.search is not None
    fractions = hp.search.fractions
    parts = class_fractions(source.catalog.train.labels, len(source.catalog.classes), hp.seed, fractions)
    made = []
    for key, fraction, indices in zip(("weights_share", "architecture_share"), fractions, parts):
        if not fraction:
            continue
        part = Subset(source, indices)
        counts = part.catalog.train.counts(len(source.catalog.classes))
        if not counts.all():
            raise RequestError(
                f"hyperparameters.search.{key} {fraction:g} leaves no image of class "
                f"{source.catalog.classes[int(counts.argmin())]} of {source.location}: raise it"
            )
        if len(part.catalog.train) < hp.global_batch_size:
            raise RequestError(
                f"hyperparameters.search.{key} {fraction:g} of {source.location} are {len(part.catalog.train)} images, "
                f"fewer than global_batch_size {hp.global_batch_size}: lower that or raise the fraction"
            )
        made.append(part)
    return made[0], made[1] if len(made) == 2 else None
