"""From the `data:` block to the source it names. A location that cannot be read is refused before torch is loaded."""

from __future__ import annotations

from gaeanet.config.data import Data
from gaeanet.config.experiment import Experiment
from gaeanet.config.schedule import Batches
from gaeanet.data.sources.archives import ArchiveSource
from gaeanet.data.sources.catalog import check_class_count
from gaeanet.data.sources.folder import FolderSource
from gaeanet.data.sources.foreign import open_foreign
from gaeanet.data.sources.layout import ARCHIVES, INDEX, UNFINISHED
from gaeanet.data.sources.shards import BucketShardSource, ShardSource
from gaeanet.data.sources.source import Source
from gaeanet.data.sources.splits import with_minival
from gaeanet.data.sources.synthetic import SyntheticSource
from gaeanet.errors import RequestError
from gaeanet.runtime.files import exists, expanded
from gaeanet.runtime.ranks import ranks

GENERATED_MARGIN = 1.15
"""Generated images are this much larger than the network's input, as photographs are before the crop."""

MOST_GENERATED = 10_000_000
"""Training images, whose names are held in memory: eight times ImageNet's."""


def open_source(experiment: Experiment) -> Source:
    """The source of images, checked against the network's classes and the batch size.

    Raises:
        RequestError: The location cannot be read, or does not fit the hyperparameters, or is too small for a minival.
    """
    data, hp = experiment.data, experiment.hyperparameters
    location = data.resolved_location
    source: Source
    if location is None:
        if (images := hp.num_classes * data.generated_per_class) > MOST_GENERATED:
            raise RequestError(
                f"data.generated_per_class: {data.generated_per_class:,} images of each of {hp.num_classes:,} classes "
                f"are {images:,}, at most {MOST_GENERATED:,} are generated: lower it, or hyperparameters.num_classes"
            )
        source = SyntheticSource(
            hp.num_classes, data.generated_per_class, round(hp.image_size * GENERATED_MARGIN), hp.seed
        )
    else:
        source = open_location(location, data)
    if source.sequential:
        raise RequestError(
            f"{location}: parquet files cannot be read in random order: gaeanet prepare {location} DESTINATION first, "
            f"which writes {source.total_bytes / 1e9:.3g} GB"
        )
    check_class_count(source.catalog, hp.num_classes, source.location)
    if data.minival is not None:
        source = with_minival(source, data.minival)
    _check_batches(hp)
    if hp.global_batch_size > len(source.catalog.train):
        most, repeats = len(source.catalog.train), hp.repeated_augmentation
        lower = f"make it {most // repeats * repeats} or less" if most >= _smallest_batch(hp) else "there are too few"
        raise RequestError(
            f"hyperparameters.global_batch_size is {hp.global_batch_size}, more than the {most} training images of "
            f"{source.location}{' beside data.minival' * (data.minival is not None)}: {lower}"
        )
    return source


def _smallest_batch(batches: Batches) -> int:
    """The smallest global batch of two images a process that the repetitions divide."""
    repeats = batches.repeated_augmentation
    return -(-2 * ranks().world_size // repeats) * repeats


def _check_batches(batches: Batches) -> None:
    """Refuses shards or micro-batches of one image: batch norm needs at least two."""
    processes = ranks().world_size
    images = batches.global_batch_size
    smallest, largest = images // processes, -(-images // processes)
    if smallest < 2:
        raise RequestError(
            f"hyperparameters.global_batch_size is {images} for {processes} processes, which need at least "
            f"two images each for batch norm: make it {_smallest_batch(batches)} or more, or start fewer processes"
        )
    micro_batches, most = batches.micro_batches(largest), batches.max_batch_per_slot
    if most and smallest // micro_batches < 2:
        enough = next(count for count in range(most + 1, largest + 1) if smallest // -(-largest // count) >= 2)
        raise RequestError(
            f"hyperparameters.max_batch_per_slot {most} makes micro-batches of one image from shards of {smallest}: "
            f"batch norm needs two, make it {enough}"
        )


def open_location(location: str, data: Data | None = None) -> Source:
    """The images at a directory or bucket URL, whatever their layout: shards, class folders or archives.

    Raises:
        RequestError: There are none, or they are not whole.
    """
    data = data or Data()
    if location.startswith("hf://"):
        raise RequestError(
            f"{location}: the Hub is not read in random order: gaeanet prepare {location} DESTINATION first"
        )
    if "://" in location:
        return _open_bucket(location, data)
    root = expanded(location)
    if exists(root / INDEX) and not exists(root / UNFINISHED):
        return ShardSource(location)
    if any(exists(root / name) for name in ARCHIVES.values()):
        return ArchiveSource(location)
    if not exists(root / UNFINISHED) and (source := open_foreign(location)):
        return source
    return FolderSource(location)


def _open_bucket(location: str, data: Data) -> Source:
    from gaeanet.data.sources.bucket_folder import BucketFolderSource
    from gaeanet.data.storage.bucket import BucketClient
    from gaeanet.data.storage.bucket_index import cache_directory

    folder = None if data.data_download_dir is None else expanded(data.data_download_dir)
    if not data.streaming and folder is None:
        raise RequestError("data.streaming is false: data.data_download_dir must say where the local copy goes")
    client = BucketClient(location)
    client.connect()
    cache = folder or cache_directory()
    copy = None if data.streaming else folder
    kind = BucketShardSource if client.head(INDEX) else BucketFolderSource
    return kind(client, cache=cache, copy=copy, copy_limit=data.cache_bytes)
