"""The images of class folders in other tools' formats, written by those tools."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import datasets
import webdataset

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
