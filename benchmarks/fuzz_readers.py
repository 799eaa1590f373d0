"""The readers of untrusted bytes, sound files for each, and what happens when those are damaged.

The formats of others are written as the tests write them (tests/support), by those formats' own tools.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from fuzz_damage import damaged, damaged_jpeg
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import foreign
import ilsvrc
import tiny

from gaeanet.artifacts import find
from gaeanet.cells import read as cells
from gaeanet.cli.main import main
from gaeanet.config.experiment import load_experiment
from gaeanet.data.images.decode import ImageError, oddities, to_pixels
from gaeanet.data.prepare.prepare import open_material, prepare
from gaeanet.errors import GaeanetError
from gaeanet.kernels.build import availability
from gaeanet.report.describe import describe
from gaeanet.report.gather import gather, write_page

MOST_SECONDS = 30
MOST_MEMORY = 3 << 30
"""Beyond what the process has before: an image of 90 megapixels takes 1 GB as floating-point numbers."""


class Reader(NamedTuple):
    """What writes sound files below a directory, and what reads them again."""

    write: Callable[[Path], object]
    read: Callable[[Path], object]
    damaged: str = "*"
    """Which files are damaged."""


def _photos(root: Path) -> Path:
    return tiny.make_folder(root / "photos", train=2, val=1)


def _from_photos(write: Callable[[Path, Path], object]) -> Callable[[Path], object]:
    def make(root: Path) -> None:
        with tempfile.TemporaryDirectory() as photos:
            write(_photos(Path(photos)), root / "data")

    return make


def _all_images(root: Path) -> None:
    source = open_material(str(root / "data"))
    for split in ("train", "val"):
        order = source.reading_order(split).tolist()
        for data in source.fetch(split, order):
            assert isinstance(data, bytes) or hasattr(data, "reason"), type(data)
        if not source.sequential:
            for number in order:
                source.read(split, number)
                source.size(split, number)


def _odd_images(root: Path) -> None:
    rng = np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    for mode in ("RGB", "L", "RGBA", "P", "CMYK", "I;16", "1", "LA"):
        shape = (20, 24, {"RGB": 3, "CMYK": 4, "RGBA": 4}.get(mode, 1))
        levels = rng.integers(0, 256, shape, dtype=np.uint8).squeeze()
        image = Image.fromarray(levels, {4: mode, 3: "RGB"}.get(shape[2], "L"))
        image = Image.fromarray(levels.astype(np.uint16) * 200) if mode == "I;16" else image.convert(mode)
        for suffix in ("png", "webp", "bmp", "gif", "tiff", "ppm", "jpg"):
            with contextlib.suppress(OSError, ValueError):  # not all formats have all modes
                image.save(root / f"{mode.replace(';', '-')}.{suffix}")
    image = Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8))
    image.save(root / "progressive.jpg", progressive=True)
    image.save(root / "lossless.webp", lossless=True)
    for compression in ("tiff_lzw", "jpeg", "tiff_deflate", "packbits"):
        image.save(root / f"{compression}.tiff", compression=compression)
    image.save(root / "text.png", pnginfo=None, transparency=(1, 2, 3))


def _decode(path: Path) -> None:
    try:
        pixels = to_pixels(path.read_bytes())
    except ImageError:
        return
    assert pixels.dtype is torch.uint8
    assert pixels.ndim == 3
    assert pixels.shape[0] == 3
    assert pixels.numel()
    oddities(path.read_bytes())


def _table(suffix: str) -> Callable[[Path], object]:
    def make(root: Path) -> None:
        with tempfile.TemporaryDirectory() as place:
            photos, data = _photos(Path(place)), root / "data"
            data.mkdir(parents=True)
            rows = []
            for number, file in enumerate(sorted(photos.glob("*/*/*"))):
                shutil.copy(file, data / f"{number}.jpg")
                rows.append({"path": f"{number}.jpg", "label": file.parts[-2], "split": file.parts[-3]})
        path = data / f"table.{suffix}"
        if suffix == "parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        elif suffix == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            path.write_text("path,label,split\n" + "".join(",".join(row.values()) + "\n" for row in rows))

    return make


def _flat(root: Path) -> None:
    """Validation images in one folder, with Kaggle's table and a devkit."""
    photos = _photos(root)
    photos.rename(root / "data")
    rows = ["ImageId,PredictionString"]
    for number, file in enumerate(sorted((root / "data" / "val").glob("*/*")), 1):
        rows.append(f"ILSVRC2012_val_{number:08d},{file.parent.name} 1 2 3 4")
        file.rename(root / "data" / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
        file.parent.rmdir()
    (root / "data" / "LOC_val_solution.csv").write_text("\n".join(rows) + "\n")


def _devkit(root: Path) -> None:
    _flat(root)
    (root / "data" / "LOC_val_solution.csv").unlink()
    for name, content in ilsvrc.devkit([f"n{k:08d}" for k in range(3)], mat=True).items():
        path = root / "data" / "ILSVRC2012_devkit_t12" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _run(root: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        photos = _photos(Path(place))
        values = {**tiny.NET, "global_batch_size": 3, "epochs": 1, "auxiliary": True}
        block = {"num_workers_train": 0, "num_workers_val": 0}
        config = Path(place) / "tiny.yaml"
        config.write_text(yaml.safe_dump({"name": "tiny", "data": block, "hyperparameters": values}))
        _command("train", config, "--data", photos, "--run-dir", root / "run")


def _command(*words: object) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = main([str(word) for word in words])
    assert code in (0, 1, 2), said.getvalue()
    assert code == 0 or said.getvalue().count("\n") == 1, said.getvalue()


def _trained(path: Path) -> None:
    trained = find.find(path)
    for kind in trained.kinds:
        trained.network(kind)
    assert trained.display_names
    describe(str(path))


def _page(root: Path) -> None:
    write_page([gather(root / "run", "run", images=False)], root / "page.html")


def _export(root: Path) -> None:
    _run(root)
    _command("export", root / "run", root / "network")
    shutil.rmtree(root / "run")


def _weights(root: Path) -> None:
    _run(root)
    weights = find.find(root / "run").tensors("raw")
    shutil.rmtree(root / "run")
    torch.save({"state_dict": weights, "epoch": 3}, root / "weights.pt")


def _genotypes(root: Path) -> None:
    from gaeanet.cells.zoo import ZOO

    genotype = next(iter(ZOO.values())).genotype
    root.mkdir(exist_ok=True)
    (root / "cell.json").write_text(json.dumps(genotype.to_dict()))
    (root / "cell.yaml").write_text(yaml.safe_dump(genotype.to_dict()))
    (root / "cell.txt").write_text(f"found: {genotype!r}\n")


def _experiments(root: Path) -> None:
    root.mkdir(exist_ok=True)
    for path in (Path(__file__).parents[1] / "gaeanet" / "recipes").glob("*.yaml"):
        shutil.copy(path, root)


def _each(read: Callable[[Path], object]) -> Callable[[Path], object]:
    """Reads the file that was damaged last, alone."""

    def newest(root: Path) -> None:
        read(max(root.iterdir(), key=lambda path: path.stat().st_mtime_ns))

    return newest


READERS: dict[str, Reader] = {
    "images": Reader(_odd_images, _each(_decode)),
    "shards": Reader(_from_photos(lambda a, b: prepare(str(a), b, shards=True, shard_bytes=5000)), _all_images),
    "folders": Reader(_from_photos(lambda a, b: prepare(str(a), b, shards=False)), _all_images, "dataset.json"),
    "archives": Reader(_from_photos(lambda _, b: ilsvrc.archives(b, train=2, val=1)), _all_images),
    "tars": Reader(_from_photos(foreign.tars), _all_images),
    "numbered tars": Reader(_from_photos(lambda a, b: foreign.tars(a, b, keys="number")), _all_images),
    "plain tars": Reader(_from_photos(foreign.gunzipped), _all_images),
    "TFRecords": Reader(_from_photos(lambda a, b: foreign.tfrecords(a, b, "google")), _all_images),
    "TFDS": Reader(_from_photos(lambda a, b: foreign.tfrecords(a, b, "tfds")), _all_images),
    "MDS": Reader(_from_photos(foreign.mds), _all_images),
    "Arrow": Reader(_from_photos(foreign.arrow), _all_images),
    "parquet": Reader(_from_photos(foreign.parquet), _all_images),
    "CSV": Reader(_table("csv"), _all_images, "table.*"),
    "JSON lines": Reader(_table("jsonl"), _all_images, "table.*"),
    "table in parquet": Reader(_table("parquet"), _all_images, "table.*"),
    "class table": Reader(_flat, _all_images, "*.csv"),
    "devkit": Reader(_devkit, _all_images, "ILSVRC2012_devkit_t12/data/*"),
    "checkpoints": Reader(_run, lambda root: _trained(root / "run"), "run/checkpoints/*/*"),
    "logs": Reader(_run, _page, "run/*.*"),
    "exports": Reader(_export, lambda root: _trained(root / "network"), "network/*"),
    "weights": Reader(_weights, lambda root: _trained(root / "weights.pt")),
    "genotypes": Reader(_genotypes, _each(lambda path: cells.read_genotype(str(path)))),
    "experiments": Reader(_experiments, _each(lambda path: load_experiment(path))),
}


def fuzz_readers(seconds: float, seed: int, only: str | None = None) -> int:
    """Damages the files of each reader in turn, its part of the time; returns how many failures there were."""
    names = only.split(",") if only else list(READERS)
    if unknown := [name for name in names if name not in READERS]:
        raise SystemExit(f"{', '.join(unknown)}: not a reader; they are {', '.join(READERS)}")
    availability()  # compiled here once, not in a cache directory of each reader
    return sum(_watched(name, seconds / len(names), seed) for name in names)


def _watched(name: str, seconds: float, seed: int) -> int:
    """One reader in a process of its own; returns how many failures there were."""
    sys.stdout.flush()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        kept = Path(tempfile.gettempdir()) / f"fuzz-{name.replace(' ', '-')}-{seed}"
        pid = os.fork()
        if not pid:
            failures = 255
            try:
                failures = min(_fuzz(name, READERS[name], Path(place), seconds, seed, kept), 100)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(failures)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code < 0:
            shutil.copytree(Path(place) / "files", kept, symlinks=True, dirs_exist_ok=True)
            why = f"took {MOST_SECONDS} s" if -code == signal.SIGALRM else f"died of {signal.Signals(-code).name}"
            print(f"{name}: {why}: {kept}", flush=True)
        return 1 if code < 0 else code


def _fuzz(name: str, reader: Reader, place: Path, seconds: float, seed: int, kept: Path) -> int:
    os.environ["XDG_CACHE_HOME"] = str(place / "cache")
    chance, root = random.Random(f"{name} {seed}"), place / "files"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        reader.write(root)
    files = sorted(path for path in root.rglob(reader.damaged) if path.is_file() and not path.is_symlink())
    sound = [path.read_bytes() for path in files]
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MOST_MEMORY, resource.RLIM_INFINITY))
    outcomes, places = Counter[str](), set[str]()
    end = time.monotonic() + seconds
    while not outcomes or time.monotonic() < end:
        number = chance.randrange(len(files))
        way = damaged_jpeg if sound[number].startswith(b"\xff\xd8") else damaged
        data = way(sound[number], sound, chance)
        files[number].write_bytes(data)
        signal.alarm(MOST_SECONDS)
        try:
            reader.read(root)
            outcomes["read"] += 1
        except GaeanetError:
            outcomes["refused"] += 1
        except Exception as error:
            outcomes["failures"] += 1
            last = traceback.extract_tb(error.__traceback__)[-1]
            if f"{last.filename}:{last.lineno}" not in places:
                places.add(f"{last.filename}:{last.lineno}")
                copy = Path(f"{kept}-{len(places)}")
                shutil.copytree(root, copy, symlinks=True, dirs_exist_ok=True)
                print(f"{name}: {copy}, {files[number].relative_to(root)}:\n{traceback.format_exc()}", flush=True)
        finally:
            signal.alarm(0)
            files[number].write_bytes(sound[number])
    print(f"{name}: {', '.join(f'{count:,} {what}' for what, count in sorted(outcomes.items()))}", flush=True)
    return len(places)
