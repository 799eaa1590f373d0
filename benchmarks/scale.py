"""What a data set of ImageNet's size costs before the first step: start-up, memory of each process, first batch.

And how long `gaeanet train` takes from its start until the first step is made and saved, beside a plain script's time.

    python benchmarks/scale.py                    folder, shards and bucket
    python benchmarks/scale.py shards --workers 4

1,281,167 + 50,000 made-up entries. The folder holds empty files but for those that are read, the shards are links to
one file, and the bucket is on loopback: it is the catalog that is measured, not disks or networks. PSS counts a page
shared by n processes as 1/n, USS counts only pages of a process's own. PyTorch itself is in both; what the catalog adds
is the difference to the small set that is measured before. Steps are those of a tiny network. Takes a few minutes;
--dir chooses the disk.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import itertools
import multiprocessing
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml
from object_server import objects
from photographs import photograph

from gaeanet.artifacts.directory import CHECKPOINTS
from gaeanet.config.data import Data
from gaeanet.config.experiment import Hyperparameters
from gaeanet.data.images.transforms import TrainingTransform
from gaeanet.data.loading.loader import training_batches
from gaeanet.data.sources import order
from gaeanet.data.sources.catalog import Catalog, Split
from gaeanet.data.sources.index import catalog_arrays, write_index
from gaeanet.data.sources.layout import INDEX
from gaeanet.data.sources.open import open_location

CLASSES = 1000
BATCH = 64
READ = 200 * BATCH
"""Images that the loader may come to read, in batches and ahead of them."""
KINDS = ("folder", "shards", "bucket")


def names(split: str, count: int) -> Iterator[tuple[str, int]]:
    """(name, label) of each sample, sorted, in equal classes."""
    for label in range(CLASSES):
        for k in range(count * label // CLASSES, count * (label + 1) // CLASSES):
            yield f"n{label:08d}/n{label:08d}_{split}_{k:07d}.JPEG", label


def make_folder(root: Path, train: int, val: int) -> str:
    read = {"train": set(order.epoch_order(train, 0, 0)[:READ].tolist()), "val": set[int]()}
    for split, count in (("train", train), ("val", val)):
        for label in range(CLASSES):
            (root / split / f"n{label:08d}").mkdir(parents=True)
        for index, (name, _) in enumerate(names(split, count)):
            if index in read[split]:
                (root / split / name).write_bytes(photograph_once())
            else:
                os.close(os.open(root / split / name, os.O_CREAT | os.O_WRONLY))
    return str(root)


def make_shards(root: Path, train: int, val: int) -> str:
    root.mkdir()
    each = 1164  # 128 MB
    data, digest = photograph_once(), hashlib.md5(photograph_once()).digest()
    offsets = []
    with tarfile.open(root / "one.tar", "w") as tar:
        for k in range(each):
            member = tarfile.TarInfo(f"{k}.jpg")
            member.size = len(data)
            offsets.append(tar.offset + tarfile.BLOCKSIZE)  # type: ignore[attr-defined]
            tar.addfile(member, io.BytesIO(data))
    size = (root / "one.tar").stat().st_size
    splits, arrays, shards = {}, {}, {}
    for split, count in (("train", train), ("val", val)):
        splits[split] = Split.of(names(split, count))
        place = np.random.default_rng(0).permutation(count)
        arrays[f"{split}.shard"] = (place // each).astype(np.int32)
        arrays[f"{split}.offset"] = np.array(offsets, np.int64)[place % each]
        arrays[f"{split}.size"] = np.full(count, len(data), np.int64)
        arrays[f"{split}.digest"] = np.tile(np.frombuffer(digest, np.uint8), (count, 1))
        shards[split] = [(f"{split}-{k:06d}.tar", size, "") for k in range(-(-count // each))]
        for name, _, _ in shards[split]:
            (root / name).symlink_to("one.tar")
    classes = [f"n{label:08d}" for label in range(CLASSES)]
    catalog = Catalog(tuple(classes), splits["train"], splits["val"])
    write_index(root / INDEX, {**catalog_arrays(catalog), **arrays}, {"classes": classes, "shards": shards})
    return str(root)


_photograph: list[bytes] = []


def photograph_once() -> bytes:
    if not _photograph:
        _photograph.append(photograph())
    return _photograph[0]


@contextlib.contextmanager
def made(kind: str, root: Path, train: int, val: int) -> Iterator[str]:
    if kind == "bucket":
        keys = [f"{split}/{name}" for split, n in (("train", train), ("val", val)) for name, _ in names(split, n)]
        with objects(keys, photograph_once(), 0.0) as location:
            del keys
            yield location
    elif kind == "shards":
        yield make_shards(root / "shards", train, val)
    else:
        yield make_folder(root / "folder", train, val)


def memory(pid: int) -> tuple[float, float]:
    """PSS and USS of a process in MB."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
    sizes = {line[0]: int(line[1]) / 1000 for line in lines if len(line) > 2 and line[2] == "kB"}
    return sizes["Pss:"], sizes["Private_Clean:"] + sizes["Private_Dirty:"]


warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores are asked for


def measure(kind: str, location: str, root: Path, workers: int) -> None:
    """Opens the source and waits for its first batch; in a process that has done nothing else."""
    data = Data(data_download_dir=str(root / "cache"))
    begin = time.monotonic()
    source = open_location(location, data)
    opened = time.monotonic() - begin
    line = f"{kind:7s} {len(source.catalog.train):9,d} + {len(source.catalog.val):6,d} images: start-up {opened:5.1f} s"
    if kind == "bucket":
        begin = time.monotonic()
        source = open_location(location, data)
        line += f" (again {time.monotonic() - begin:.1f} s)"
    before = {child.pid for child in multiprocessing.active_children()}
    begin = time.monotonic()
    hp = Hyperparameters(color_jitter=False)
    batches = iter(
        training_batches(source, TrainingTransform(hp), global_batch=BATCH, epochs=1, seed=0, workers=workers)
    )
    next(batches)
    first = time.monotonic() - begin
    pids = [child.pid for child in multiprocessing.active_children() if child.pid not in before and child.pid]
    (pss, uss), each = memory(os.getpid()), [memory(pid) for pid in pids]
    proportional, own = (float(np.mean([one[k] for one in each])) for k in (0, 1))
    line += f", first batch of {BATCH} after {first:4.1f} s with {len(each)} workers"
    print(
        f"{line}; memory PSS / USS: main {pss:.0f} / {uss:.0f} MB, a worker {proportional:.0f} / {own:.0f} MB",
        flush=True,
    )


NETWORK = {"num_classes": CLASSES, "init_channels": 4, "layers": 3, "global_batch_size": BATCH, "epochs": 1}
LIMIT = 600
"""Seconds that a first step may take."""


def first_steps(kind: str, location: str, root: Path, workers: int) -> None:
    """Prints the seconds from the start of each program to its first step; of the plain one where it reads the data."""
    print(f"{kind:7s} first step of gaeanet train after {first_step_of_train(location, root, workers):.1f} s", end="")
    if kind == "folder":
        began = time.monotonic()
        command = [sys.executable, __file__, "--workers", str(workers), "--plain", location]
        subprocess.run(command, check=True, timeout=LIMIT)
        print(f", of the plain way after {time.monotonic() - began:.1f} s", end="")
    print(flush=True)


def first_step_of_train(location: str, root: Path, workers: int) -> float:
    """Seconds until a run that has just been started has made its first step, which it saves at once."""
    tree = {
        "data": {"num_workers_train": workers, "data_download_dir": str(root / "cache"), "streaming": True},
        "hyperparameters": NETWORK,
    }
    (root / "experiment.yaml").write_text(yaml.safe_dump(tree))
    program = str(Path(sys.executable).with_name("gaeanet"))
    command = [program, "train", str(root / "experiment.yaml"), "--data", location, "--run-dir", str(root / "run")]
    began = time.monotonic()
    with (root / "said.txt").open("w+") as said:
        run = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        try:
            while not (root / "run" / CHECKPOINTS / "latest").exists():
                if run.poll() is not None or time.monotonic() - began > LIMIT:
                    said.seek(0)
                    sys.exit(f"no first step of {' '.join(command)}:\n{said.read()}")
                time.sleep(0.02)
            return time.monotonic() - began
        finally:
            run.terminate()
            run.wait()


def plain_first_step(location: str, workers: int) -> None:
    """The same in the plain way, in a process that has done nothing else; in an order that finds files with images."""
    import plain
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    from gaeanet.models.build import build_network

    images = ImageFolder(f"{location}/train", plain.training_transform(224))
    shuffled = order.epoch_order(len(images), 0, 0).tolist()
    batches = DataLoader(images, BATCH, sampler=shuffled, num_workers=workers, drop_last=True)
    step = plain.Step(plain.plain(build_network(Hyperparameters(**NETWORK))), 5.0, 0.1)
    step(*next(iter(batches)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="of folder, shards, bucket (default: all)")
    parser.add_argument("--train", type=int, default=1_281_167)
    parser.add_argument("--val", type=int, default=50_000)
    parser.add_argument("--small", type=int, default=READ, help="training images of the set to compare with, or 0")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--dir", type=Path, help="where the files are made, for as long as it takes")
    parser.add_argument("--measure", nargs=3, metavar=("KIND", "LOCATION", "DIR"), help=argparse.SUPPRESS)
    parser.add_argument("--plain", metavar="LOCATION", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        kind, location, root = arguments.measure
        measure(kind, location, Path(root), arguments.workers)
        return
    if arguments.plain:
        plain_first_step(arguments.plain, arguments.workers)
        return
    sizes = [(arguments.small, CLASSES)] * (arguments.small > 0) + [(arguments.train, arguments.val)]
    for kind, size in itertools.product(arguments.kinds or KINDS, sizes):
        with (
            tempfile.TemporaryDirectory(dir=arguments.dir) as root,
            made(kind, Path(root), *size) as location,
        ):
            command = [sys.executable, __file__, "--workers", str(arguments.workers), "--measure", kind, location, root]
            subprocess.run(command, check=True)
            first_steps(kind, location, Path(root), arguments.workers)


if __name__ == "__main__":
    main()
