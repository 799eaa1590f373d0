"""Which images the weights learn from, and which the architecture. Nothing here needs torch."""

from __future__ import annotations

from gaeanet.config import Hyperparameters
from gaeanet.data.order import class_shares
from gaeanet.data.source import Source
from gaeanet.data.subset import Subset
from gaeanet.errors import RequestError


def image_shares(source: Source, hp: Hyperparameters) -> tuple[Subset, Subset | None]:
    """The images for the weights and those for the architecture, which are others; None for a single-level search.

    Of each class the shares are those that `search` asks for, and which images they are follows from the seed.

    Raises:
        RequestError: A class has no image in a share, or a share is smaller than a batch.
    """
    assert hp.search is not None
    shares = hp.search.shares
    parts = class_shares(source.catalog.train.labels, len(source.catalog.classes), hp.seed, shares)
    made = []
    for key, share, indices in zip(("weights_share", "architecture_share"), shares, parts):
        if not share:
            continue
        part = Subset(source, indices)
        counts = part.catalog.train.counts(len(source.catalog.classes))
        if not counts.all():
            raise RequestError(
                f"hyperparameters.search.{key} {share:g} leaves no image of class "
                f"{source.catalog.classes[int(counts.argmin())]} of {source.location}: raise it"
            )
        if len(part.catalog.train) < hp.global_batch_size:
            raise RequestError(
                f"hyperparameters.search.{key} {share:g} of {source.location} are {len(part.catalog.train)} images, "
                f"fewer than global_batch_size {hp.global_batch_size}: lower that or raise the share"
            )
        made.append(part)
    return made[0], made[1] if len(made) == 2 else None
