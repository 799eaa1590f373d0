"""Images to evaluate a trained network on: the data it was trained with, or others with the same classes.

Unlike training, this takes a directory that holds validation images only, and one that lacks some classes: a class's
number comes from the checkpoint's table, never from the directory. Nothing here needs torch.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gaeanet.config.data import Data, describe_minival
from gaeanet.config.experiment import Hyperparameters, experiment_from
from gaeanet.data.sources.catalog import Catalog, Split, check_table, imagenet_wnids
from gaeanet.data.sources.entries import identity, images_under, is_hidden, leads_to_directory
from gaeanet.data.sources.folder import Files, listing
from gaeanet.data.sources.layout import SPLIT_FOLDERS, images_root
from gaeanet.data.sources.open import GENERATED_MARGIN, open_location
from gaeanet.data.sources.source import Source
from gaeanet.data.sources.splits import with_minival
from gaeanet.data.sources.synthetic import SyntheticSource
from gaeanet.errors import RequestError, counted, did_you_mean
from gaeanet.runtime.files import expanded, is_directory


class EvaluationFolder(Files):
    """Class folders in `root`, numbered by a given table; folders for some of its classes will do.

    Raises:
        RequestError: A folder is not in the table, or none holds an image.
    """

    def __init__(self, location: str, root: Path, classes: Sequence[str]) -> None:
        self.location, self._root = location, root
        self.notes: list[str] = []
        numbers = {name: label for label, name in enumerate(classes)}
        with listing(root) as entries:
            folders = sorted(entry.name for entry in entries if leads_to_directory(entry) and not is_hidden(entry.name))
        images = {name: sorted(images_under(root / name, entered={identity(root)})) for name in folders}
        with_images = [name for name in folders if images[name]]
        if unknown := [name for name in with_images if name not in numbers]:
            raise RequestError(
                f"{root}: {unknown[0]} is not in the checkpoint's table of {len(classes)} classes "
                f"({len(unknown)} of {len(with_images)} folders are not): {did_you_mean(unknown[0], classes[:8])}"
            )
        if not with_images:
            raise RequestError(f"{root}: no images in class folders: one folder per class, images in it")
        if len(with_images) < len(classes):
            self.notes.append(f"{root}: images of {len(with_images)} of the {len(classes)} classes")
        samples = [(f"{name}/{image}", numbers[name]) for name in with_images for image in images[name]]
        self.catalog = Catalog(tuple(classes), Split.of([]), Split.of(samples))

    def path(self, split: str, index: int) -> str:
        return str(self._root / self.catalog.split(split).name(index))


def open_evaluation_data(
    state: Mapping[str, Any],
    hyperparameters: Hyperparameters,
    location: str | None,
    assume_classes: bool = False,
    minival: bool = False,
) -> tuple[Source, list[str]]:
    """The images to evaluate, and notes about them, one sentence each.

    Args:
        state: Of the trained network: its class table and the data it was trained with.
        location: Another location than the run's.
        assume_classes: For weights without a class table: whether the data's sorted classes are taken for it.
        minival: Evaluate what the run held out of its training split and validated on, not the validation split.

    Raises:
        RequestError: They cannot be read, or their classes are not the network's.
    """
    classes, known = state.get("classes"), state.get("data") or {}
    settings = dict(known.get("settings") or {"location": known.get("location")})
    fraction: float | None = settings.get("minival")
    if minival and fraction is None:
        raise RequestError("--minival: the run held nothing out of its training split, data.minival is null: leave it")
    if location is not None:
        if not location.strip():
            raise RequestError("--data is empty: give a directory or a bucket's URL")
        settings |= {"location": location, "bucket_name": None}
    elif known.get("generated"):
        per_class = _data({**settings, "location": None}).generated_per_class
        size = round(hyperparameters.image_size * GENERATED_MARGIN)
        made = SyntheticSource(hyperparameters.num_classes, per_class, size, hyperparameters.seed)
        return _counted(made, fraction, minival)
    elif not settings.get("location") and not settings.get("bucket_name"):
        raise RequestError("these weights came without data: name images with --data")
    data = _data(settings)
    where = data.resolved_location
    assert where is not None
    source = _open(where, data, classes)
    notes = list(source.notes)
    if classes is None:
        notes.append(_without_table(source.catalog, hyperparameters.num_classes, where, assume_classes))
    else:
        check_table(source.catalog, classes, f"{where}, against the checkpoint's classes")
    if fingerprint := known.get("fingerprint"):
        if source.fingerprint == fingerprint:
            notes.append(f"the data are those of the run (fingerprint {fingerprint})")
        elif location is None:
            notes.append(f"the data have changed since the run: fingerprint {source.fingerprint}, then {fingerprint}")
    source, more = _counted(source, fraction, minival)
    return source, notes + more


def _counted(source: Source, fraction: float | None, minival: bool) -> tuple[Source, list[str]]:
    """What is evaluated of a run that held out `fraction` of its training split: that, or its validation split."""
    if fraction is None:
        return source, []
    if minival:
        if not len(source.catalog.train):
            raise RequestError(f"{source.location}: no training split there to hold anything out of")
        return with_minival(source, fraction), []
    held_out = describe_minival(fraction)
    return source, [f"the run validated on {held_out} (--minival evaluates that); this is the validation split"]


def _data(settings: dict[str, Any]) -> Data:
    return experiment_from({"data": settings}, "the checkpoint").data


def _open(location: str, data: Data, classes: Sequence[str] | None) -> Source:
    root = expanded(location)
    if "://" not in location and is_directory(root):
        root = images_root(root)
        validation = next((root / name for name in SPLIT_FOLDERS["val"] if is_directory(root / name)), None)
        has_shards = any(root.glob("*.safetensors")) or any(root.glob("*.tar*"))
        if classes is not None and not is_directory(root / "train") and not has_shards:
            return EvaluationFolder(location, validation or root, classes)
    return open_location(location, data)


def _without_table(catalog: Catalog, num_classes: int, location: str, assume: bool) -> str:
    """Refuses data whose classes need not be those that the weights know, in that order."""
    if len(catalog.classes) != num_classes:
        raise RequestError(
            f"{location}: {counted(len(catalog.classes), 'class')}, the network has {num_classes} outputs"
        )
    if catalog.classes == imagenet_wnids():
        return "the weights came without a class table: ImageNet's, sorted by WordNet id, is taken"
    if not assume:
        raise RequestError(
            f"{location}: the weights came without a class table, so nothing says which output is which class: "
            "--assume-classes takes the data's, sorted"
        )
    return "the weights came without a class table: the data's, sorted, is taken as asked"


def real_labels(catalog: Catalog) -> list[list[int]] | None:
    """The ReaL labels (Beyer et al. 2020, arXiv 2006.07159) of each validation image, as timm carries them.

    An image may have several, or none. None where the images are not those of ImageNet's validation set.
    """
    if catalog.classes != imagenet_wnids():
        return None
    numbers = []
    for index in range(len(catalog.val)):
        match = re.search(r"ILSVRC2012_val_(\d{8})\.\w+$", catalog.val.name(index))
        if not match:
            return None
        numbers.append(int(match[1]))
    spec = importlib.util.find_spec("timm")
    assert spec is not None
    assert spec.origin is not None
    table = Path(spec.origin).parent / "data" / "_info" / "imagenet_real_labels.json"
    known = json.loads(table.read_text(encoding="utf-8"))
    return [known[number - 1] for number in numbers] if max(numbers, default=0) <= len(known) else None
