"""Speed and memory of reading the formats of others: the index of foreign tars, `prepare` beside `cp`, training input.

    python benchmarks/sources.py index --samples 1281167 --shards 1024
    python benchmarks/sources.py prepare --samples 20000 --bytes 110000
    python benchmarks/sources.py input --samples 4000

`index` writes sparse tars (headers and labels are real, images are holes), so a data set of ImageNet's size
takes a few gigabytes. `prepare` writes random bytes as parquet, tars and class folders, on the disk of --directory, and
both ways are timed in turns, from start to end of the process and until all is on the disk. `input` compares tars of
others with our shards.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from photographs import photograph

_PART = 1000
"""Samples of a file."""

MEASURE = """
import re, sys, time
from pathlib import Path
start = time.perf_counter()
from gaeanet.data.sources.open import open_location
imported = time.perf_counter()
source = open_location(sys.argv[1])
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
print(f"{len(source.catalog.train):,} samples: import {imported - start:.1f} s, "
      f"open {time.perf_counter() - imported:.1f} s, processor {time.process_time():.1f} s, "
      f"peak {peak:.0f} MiB")
"""


PREPARE = """
import re, sys
from pathlib import Path
from gaeanet.cli.main import main
code = main(sys.argv[1:])
print("peak", re.search(r"VmHWM:\\s+(.*)", Path("/proc/self/status").read_text())[1], file=sys.stderr)
sys.exit(code)
"""


def header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT)


def sparse_tars(root: Path, samples: int, shards: int, image_bytes: int, labels: bool) -> None:
    for split, count, files in (("train", samples, shards), ("validation", samples // 25, shards // 16 or 1)):
        for shard in range(files):
            with open(root / f"imagenet1k-{split}-{shard:04d}.tar", "wb") as file:
                for k in range(shard, count, files):
                    key = f"n{k % 1000:08d}_{k}"
                    file.write(header(f"{key}.jpg", image_bytes))
                    file.seek(-(-image_bytes // 512) * 512, os.SEEK_CUR)
                    if labels:
                        label = str(k % 1000).encode()
                        file.write(header(f"{key}.cls", len(label)) + label.ljust(512, b"\0"))
                file.write(bytes(1024))


def index(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        root = Path(folder)
        sparse_tars(root, arguments.samples, arguments.shards, 4096, not arguments.no_labels)
        environment = {**os.environ, "XDG_CACHE_HOME": str(root / "cache")}
        for run in ("first", "again"):
            print(run, end=": ", flush=True)
            subprocess.run([sys.executable, "-c", MEASURE, folder], check=True, env=environment)


def prepare(arguments: argparse.Namespace) -> None:
    """To folders beside `cp -r` of the class folders of the same images, to shards beside `cp -r` of the source."""
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        root = Path(folder)
        for split in ("train", "validation"):
            for part, start in enumerate(range(0, arguments.samples, _PART)):
                write_part(root, f"{split}-{part:05d}", range(start, min(start + _PART, arguments.samples)), arguments)
        subprocess.run([sys.executable, "-m", "gaeanet.cli", "prepare", root / "tars", root / "folders"], check=True)
        print(f"{2 * arguments.samples:,} images, {2 * arguments.samples * arguments.bytes / 1e9:.3g} GB")
        for kind in ("parquet", "tars"):
            for form in ("folders", "shards"):
                copied = ["cp", "-r", root / "folders" if form == "folders" else root / kind, root / "copy"]
                taken = [sys.executable, "-c", PREPARE, "prepare", root / kind, root / "out"]
                ways = {"cp": copied, "prepare": taken + ["--shards"] * (form == "shards")}
                compare(
                    f"{kind} to {form}",
                    {way: lambda c=command: timed(c, root) for way, command in ways.items()},
                    arguments,
                )


def write_part(root: Path, name: str, numbers: range, arguments: argparse.Namespace) -> None:
    """Random bytes as a parquet file and as a tar."""
    import pyarrow
    import pyarrow.parquet

    keys = [f"n{k % 100:08d}_{k}" for k in numbers]
    rows = [{"bytes": os.urandom(arguments.bytes), "path": f"{key}.JPEG"} for key in keys]
    for kind in ("parquet", "tars"):
        (root / kind).mkdir(exist_ok=True)
    table = pyarrow.table({"image": rows, "label": [k % 100 for k in numbers]})
    pyarrow.parquet.write_table(table, root / "parquet" / f"{name}.parquet", row_group_size=100)
    write_tar(root / "tars" / f"{name}.tar", ((key, row["bytes"], k % 100) for key, row, k in zip(keys, rows, numbers)))


def write_tar(path: Path, samples: Iterable[tuple[str, bytes, int]]) -> None:
    """A shard of webdataset's layout from keys, images and labels."""
    with open(path, "wb") as file:
        for key, data, number in samples:
            label = str(number).encode()
            file.write(header(f"{key}.jpg", len(data)) + data + bytes(-len(data) % 512))
            file.write(header(f"{key}.cls", len(label)) + label.ljust(512, b"\0"))
        file.write(bytes(1024))


def timed(command: list[object], root: Path) -> float:
    """Seconds of a command, with what it wrote on the disk."""
    os.sync()
    start = time.perf_counter()
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    os.sync()
    seconds = time.perf_counter() - start
    for name in ("out", "copy"):
        shutil.rmtree(root / name, ignore_errors=True)
    return seconds


def training_input(arguments: argparse.Namespace) -> None:
    """Batches of 64 made by this process from tars of others, and from our shards of the same images."""
    import torch

    from gaeanet.config.experiment import Experiment
    from gaeanet.data.images.transforms import TrainingTransform
    from gaeanet.data.loading.loader import training_batches
    from gaeanet.data.sources.open import open_location

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        root = Path(folder)
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")
        (root / "tars").mkdir()
        data = photograph()
        for split in ("train", "validation"):
            for part, start in enumerate(range(0, arguments.samples, _PART)):
                numbers = range(start, min(start + _PART, arguments.samples))
                samples = ((f"n{k % 100:08d}_{k}", data, k % 100) for k in numbers)
                write_tar(root / "tars" / f"{split}-{part:05d}.tar", samples)
        subprocess.run(
            [sys.executable, "-m", "gaeanet.cli", "prepare", root / "tars", root / "s", "--shards"], check=True
        )
        batches = {}
        for name, place in (("our shards", root / "s"), ("tars of others", root / "tars")):
            transform = TrainingTransform(Experiment().hyperparameters)
            source = open_location(str(place))
            batches[name] = iter(training_batches(source, transform, global_batch=64, epochs=1000, seed=0))

        def some(name: str) -> float:
            start = time.perf_counter()
            for _ in range(4):
                next(batches[name])
            return time.perf_counter() - start

        compare("training input", {name: lambda n=name: some(n) for name in batches}, arguments)


def compare(what: str, ways: dict[str, Callable[[], float]], arguments: argparse.Namespace) -> None:
    """Two ways in turns; how fast the second is beside the first, by their medians."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(arguments.rounds + 1):
        for way, measure in ways.items():
            seconds[way].append(measure())
            if not turn:  # reads files that are not in the page cache, and imports
                seconds[way].clear()
    first, second = (statistics.median(seconds[way]) for way in ways)
    each = "; ".join(f"{way} {' '.join(f'{s:.2f}' for s in found)} s" for way, found in seconds.items())
    print(f"{what}: {first / second:.2f} of the speed of {next(iter(ways))} ({each})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("index", "prepare", "input"))
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--bytes", type=int, default=110_000)
    parser.add_argument("--rounds", type=int, default=5, help="prepare, input: turns of each way")
    parser.add_argument("--no-labels", action="store_true", help="index: keys alone tell the classes")
    parser.add_argument("--directory", type=Path, default=None)
    arguments = parser.parse_args()
    {"index": index, "prepare": prepare, "input": training_input}[arguments.what](arguments)


if __name__ == "__main__":
    main()
