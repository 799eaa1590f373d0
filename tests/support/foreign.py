"""The images of class folders in other tools' formats, written by those tools."""

from __future__ import annotations

import json
import random
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import webdataset
from tfrecord.writer import TFRecordWriter

HF = {"train": "train", "val": "validation"}


def samples(folder: Path, split: str) -> Iterator[tuple[str, int, Path]]:
    """WordNet id, label and file of each image, in an order of chance as data sets are shuffled."""
    files = sorted((folder / split).glob("*/*"))
    classes = sorted({file.parent.name for file in files})
    random.Random(7).shuffle(files)
    for file in files:
        yield file.parent.name, classes.index(file.parent.name), file


def parquet(folder: Path, root: Path, shards: int = 3, names: bool = True) -> Path:
    """Hugging Face's layout of ImageNet, written by `datasets`: `data/train-00000-of-00003-<hash>.parquet`, ..."""
    (root / "data").mkdir(parents=True)
    classes = sorted(path.name for path in (folder / "train").iterdir())
    label = datasets.ClassLabel(names=[f"thing {k}" for k in range(len(classes))]) if names else datasets.Value("int64")
    features = datasets.Features({"image": datasets.Image(), "label": label})
    for split in ("train", "val"):
        rows = [
            {"image": {"bytes": file.read_bytes(), "path": f"{file.stem}_{wnid}{file.suffix}"}, "label": number}
            for wnid, number, file in samples(folder, split)
        ]
        data = datasets.Dataset.from_list(rows, features=features)
        for k in range(shards):
            part = data.shard(shards, k, contiguous=True)
            part.to_parquet(root / "data" / f"{HF[split]}-{k:05d}-of-{shards:05d}-abc{k}.parquet", batch_size=4)
    test = [{"image": {"bytes": b"x", "path": "t.JPEG"}, "label": -1 if names else 0}]
    datasets.Dataset.from_list(test, features=features).to_parquet(root / "data" / "test-00000-of-00001.parquet")
    return root


def tars(folder: Path, root: Path, per_shard: int = 7, keys: str = "name") -> Path:
    """timm's layout, written by `webdataset`: `imagenet1k-train-0000.tar`, ...

    Args:
        keys: `name` for keys like `n01440764_3778`, `number` for numbers and the name in the .json.
    """
    root.mkdir(parents=True)
    splits = {}
    for split in ("train", "val"):
        pattern = str(root / f"imagenet1k-{HF[split]}-%04d.tar")
        count = 0
        with webdataset.ShardWriter(pattern, maxcount=per_shard, verbose=0) as sink:
            for wnid, label, file in samples(folder, split):
                key = f"{wnid}/{file.stem}" if keys == "name" else f"{count:08d}"
                sample = {"__key__": key, "jpg": file.read_bytes(), "cls": label}
                if keys == "number":
                    sample["json"] = {"label": label, "filename": f"{wnid}/{file.name}"}
                sink.write(sample)
                count += 1
        files = sorted(path.name for path in root.glob(f"imagenet1k-{HF[split]}-*.tar"))
        lengths = [per_shard] * (count // per_shard) + [count % per_shard] * (count % per_shard > 0)
        splits[HF[split]] = {
            "name": HF[split],
            "num_samples": count,
            "filenames": files,
            "shard_lengths": lengths,
        }
    (root / "_info.json").write_text(json.dumps({"splits": splits}))
    return root


def arrow(folder: Path, root: Path) -> Path:
    """What `datasets` writes by `save_to_disk`."""
    splits = {}
    classes = sorted(path.name for path in (folder / "train").iterdir())
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)})
    for split in ("train", "val"):
        rows = [
            {"image": {"bytes": file.read_bytes(), "path": file.name}, "label": number}
            for _, number, file in samples(folder, split)
        ]
        splits[HF[split]] = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict(splits).save_to_disk(root, num_shards={"train": 3, "validation": 1})
    return root


def gunzipped(folder: Path, root: Path) -> Path:
    """Hugging Face's older archives, without their compression: flat names that end in the WordNet id."""
    root.mkdir(parents=True)
    for split, count in (("train", 3), ("val", 1)):
        found = list(samples(folder, split))
        for k in range(count):
            name = "val_images.tar" if split == "val" else f"train_images_{k}.tar"
            with tarfile.open(root / name, "w") as tar:
                for wnid, _, file in found[k::count]:
                    tar.add(file, f"{file.stem}_{wnid}{file.suffix}")
    return root


def tfrecords(folder: Path, root: Path, form: str, shards: int = 3) -> Path:
    """TFRecords, written by the package `tfrecord`.

    Args:
        form: `google` for Google's script (labels from 1, synsets), `tfds` for TensorFlow Datasets (labels from 0).
    """
    root.mkdir(parents=True)
    lengths = {}
    for split in ("train", "val"):
        prefix = HF[split] if form == "google" else f"imagenet2012-{HF[split]}.tfrecord"
        found = list(samples(folder, split))
        lengths[HF[split]] = [len(found[k::shards]) for k in range(shards)]
        for k in range(shards):
            writer = TFRecordWriter(str(root / f"{prefix}-{k:05d}-of-{shards:05d}"))
            for wnid, label, file in found[k::shards]:
                if form == "google":
                    features = {
                        "image/encoded": (file.read_bytes(), "byte"),
                        "image/class/label": (label + 1, "int"),
                        "image/class/synset": (wnid.encode(), "byte"),
                        "image/filename": (file.name.encode(), "byte"),
                        "image/object/bbox/xmin": ([0.25, 0.5], "float"),
                    }
                else:
                    names = {"image": (file.read_bytes(), "byte"), "file_name": (file.name.encode(), "byte")}
                    features = {**names, "label": (label, "int")}
                writer.write(features)
            writer.close()
    if form == "tfds":
        (root / "label.labels.txt").write_text("n00000000\nn00000001\nn00000002\n")
        splits = [{"name": name, "shardLengths": list(map(str, counts))} for name, counts in lengths.items()]
        (root / "dataset_info.json").write_text(json.dumps({"name": "imagenet2012", "splits": splits}))
    return root


def mds(folder: Path, root: Path, per_shard: int = 7) -> Path:
    """An MDS directory by a writer of our own: mosaicml-streaming's needs a NumPy older than ours."""
    for split in ("train", "val"):
        directory = root / split
        directory.mkdir(parents=True)
        found, shards = list(samples(folder, split)), []
        for number, start in enumerate(range(0, len(found), per_shard)):
            bodies = []
            for wnid, label, file in found[start : start + per_shard]:
                name, image = f"{wnid}/{file.name}".encode(), file.read_bytes()
                sizes = struct.pack("<II", len(name), len(image))
                bodies.append(sizes + name + image + struct.pack("<q", label))
            config = json.dumps({"version": 2, "format": "mds"}).encode()
            begin = 4 * (len(bodies) + 2) + len(config)
            ends = np.cumsum([begin, *map(len, bodies)]).astype("<u4")
            data = struct.pack("<I", len(bodies)) + ends.tobytes() + config + b"".join(bodies)
            basename = f"shard.{number:05d}.mds"
            (directory / basename).write_bytes(data)
            shards.append(
                {
                    "column_names": ["filename", "image", "label"],
                    "column_encodings": ["str", "jpeg", "int"],
                    "column_sizes": [None, None, 8],
                    "compression": None,
                    "format": "mds",
                    "hashes": [],
                    "raw_data": {"basename": basename, "bytes": len(data), "hashes": {}},
                    "samples": len(bodies),
                    "size_limit": 1 << 26,
                    "version": 2,
                    "zip_data": None,
                }
            )
        (directory / "index.json").write_text(json.dumps({"shards": shards, "version": 2}))
    return root
