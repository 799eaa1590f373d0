"""From the `data:` block to the source it names. Nothing here imports torch: what cannot be read is refused at once."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from gaeanet.config import Experiment
from gaeanet.data.catalog import check_class_count
from gaeanet.data.folder import FolderSource
from gaeanet.data.synthetic import SyntheticSource
from gaeanet.errors import RequestError

if TYPE_CHECKING:
    from gaeanet.data.loader import Source

GENERATED_MARGIN = 1.15
"""Generated images are this much larger than the network's input, as photographs are before the crop."""


def open_source(experiment: Experiment) -> Source:
    """The source of images, checked against the network's classes and the batch size.

    Raises:
        RequestError: The location cannot be read, or does not fit the hyperparameters.
    """
    data, hp = experiment.data, experiment.hyperparameters
    location = data.resolved_location
    source: Source
    if location is None:
        source = SyntheticSource(
            hp.num_classes, data.generated_per_class, round(hp.image_size * GENERATED_MARGIN), hp.seed
        )
    elif match := re.match(r"(\w+)://", location):
        raise RequestError(
            f"data.location: {location}: this version reads directories, not {match[1]}:// locations; "
            "copy the data to a directory and give that"
        )
    else:
        source = FolderSource(location)
    check_class_count(source.catalog, hp.num_classes, source.location)
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) * 2 > hp.global_batch_size:
        raise RequestError(
            f"hyperparameters.global_batch_size is {hp.global_batch_size} for {processes} processes, which need at "
            f"least two images each for batch norm: make it {2 * processes} or more, or start fewer processes"
        )
    if hp.global_batch_size > len(source.catalog.train):
        raise RequestError(
            f"hyperparameters.global_batch_size is {hp.global_batch_size}, more than the {len(source.catalog.train)} "
            f"training images of {source.location}: lower it"
        )
    return source
