"""A share of the training split to validate on, so that no choice is made on the validation split. Needs no torch."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from gaeanet.data.catalog import Split
from gaeanet.data.order import shares_by_key
from gaeanet.data.source import Source
from gaeanet.data.subset import Subset
from gaeanet.errors import RequestError


def in_words(share: float) -> str:
    """What is validated on."""
    return f"{100 * share:g} % of the training split"


def with_minival(source: Source, share: float) -> Source:
    """`source` with `share` of each class's training images as its validation split, and the others to train on.

    Which images these are follows from their names alone (see `split_by_name`): the same in every run, whatever its
    seed, and in every kind of source.

    Raises:
        RequestError: A class has too few images for one on either side.
    """
    train, classes = source.catalog.train, source.catalog.classes
    held_out, rest = split_by_name(train, len(classes), share)
    for part, what in ((held_out, "holds none of them out: raise it"), (rest, "leaves none to train on: lower it")):
        counts = np.bincount(train.labels[part], minlength=len(classes))
        if not counts.all():
            label = int(counts.argmin())
            count = int(train.counts(len(classes))[label])
            raise RequestError(
                f"data.minival is {share:g}, but class {classes[label]} of {source.location} has {count} training "
                f"image{'s' * (count != 1)}, and that {what}, or set it to null"
            )
    found = Subset(source, rest, held_out)
    found.minival = share
    return found


def split_by_name(split: Split, classes: int, share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The samples to hold out and the others, numbers in ascending order, int64.

    Of a class's n images those are held out that come first by a digest of their names (`<class>/<file>`), n times
    `share` of them, rounded. So an image that is added to a data set, or goes, moves one other image of its own class
    at most, and none where the number held out stays the same and it was not among them.
    """
    names = split.names.tobytes()
    ends = split.ends.tolist()
    digests = (blake2b(names[a:b], digest_size=8).digest() for a, b in zip([0, *ends], ends))
    keys = np.frombuffer(b"".join(digests), "<u8")
    (held_out,) = shares_by_key(split.labels, classes, keys, [share])
    return held_out, np.setdiff1d(np.arange(len(split)), held_out, assume_unique=True)
