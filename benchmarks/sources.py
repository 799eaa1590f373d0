"""Speed and memory of reading the formats of others: the index of foreign tars, and `prepare` beside `cp`.

    python benchmarks/sources.py index --samples 1281167 --shards 1024
    python benchmarks/sources.py prepare --samples 4000 --bytes 110000

`index` writes sparse tars (headers and labels are real, images are holes), so a data set of ImageNet's size
takes a few gigabytes. `prepare` writes random bytes as parquet, tars and class folders, on the disk of --directory.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

MEASURE = """
import resource, sys, time
start = time.perf_counter()
from gaeanet.data.sources.open import open_location
imported = time.perf_counter()
source = open_location(sys.argv[1])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
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
    import pyarrow
    import pyarrow.parquet

    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        root = Path(folder)
        images = [os.urandom(arguments.bytes) for _ in range(arguments.samples)]
        names = [f"n{k % 100:08d}_{k}" for k in range(arguments.samples)]
        for kind in ("parquet", "tars"):
            (root / kind).mkdir()
        for split in ("train", "validation"):
            rows = [{"bytes": data, "path": f"{name}.JPEG"} for name, data in zip(names, images)]
            columns = {"image": rows, "label": [k % 100 for k in range(arguments.samples)]}
            table = pyarrow.table(columns)
            pyarrow.parquet.write_table(table, root / "parquet" / f"{split}.parquet", row_group_size=100)
            with open(root / "tars" / f"{split}-0.tar", "wb") as file:
                for k, (name, data) in enumerate(zip(names, images)):
                    label = str(k % 100).encode()
                    file.write(header(f"{name}.jpg", len(data)) + data + bytes(-len(data) % 512))
                    file.write(header(f"{name}.cls", len(label)) + label.ljust(512, b"\0"))
                file.write(bytes(1024))
        del images, rows, columns, table
        subprocess.run([sys.executable, "-m", "gaeanet.cli", "prepare", root / "tars", root / "folders"], check=True)
        megabytes = 2 * arguments.samples * arguments.bytes / 1e6
        for kind in ("parquet", "tars"):
            for form in ("folders", "shards"):
                out = root / "out"
                command = [sys.executable, "-c", PREPARE, "prepare", root / kind, out]
                copied = timed(["cp", "-r", root / "folders" if form == "folders" else root / kind, root / "copy"])
                taken = timed(command + ["--shards"] * (form == "shards"))
                print(
                    f"{kind} to {form}: {megabytes / taken:.0f} MB/s, cp {megabytes / copied:.0f} MB/s: "
                    f"{copied / taken:.2f} of its speed",
                    flush=True,
                )
                for path in (out, root / "copy"):
                    shutil.rmtree(path)


def timed(command: list[object]) -> float:
    """Seconds of a command, with what it wrote on the disk."""
    os.sync()
    start = time.perf_counter()
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    os.sync()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("index", "prepare"))
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--bytes", type=int, default=110_000)
    parser.add_argument("--no-labels", action="store_true", help="index: keys alone tell the classes")
    parser.add_argument("--directory", type=Path, default=None)
    arguments = parser.parse_args()
    (index if arguments.what == "index" else prepare)(arguments)


if __name__ == "__main__":
    main()
