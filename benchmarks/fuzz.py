"""Damages what others may have written, at random, and looks at what becomes of it.

    python benchmarks/fuzz.py                            a minute of each part
    python benchmarks/fuzz.py kernels --seconds 600      one part, longer
    python benchmarks/fuzz.py readers --seed 7           other damage
    python benchmarks/fuzz.py readers --only MDS,table   some readers

`kernels`: the C++ code that meets bytes of image files (jpeg.cpp and colour.cpp in gaeanet/kernels/native) is compiled
with AddressSanitizer and UndefinedBehaviorSanitizer and gets damaged JPEGs. Those that take a new way through it are
damaged further. What it decodes must be what libjpeg decodes, and what it calls sound nothing that libjpeg warns of.
Exit code 2 where no compiler has the sanitizers.

`readers`: all other readers of untrusted bytes (benchmarks/fuzz_readers.py), each in a process of its own: whatever is
given to them ends in a result or in one of gaeanet's errors, within seconds and some memory.

The first failure of each kind is printed and its input kept; then the exit code is 1.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from fuzz_damage import damaged_jpeg
from fuzz_readers import fuzz_readers
from PIL import Image
from torchvision.io import ImageReadMode

from gaeanet.data.images import libjpeg
from gaeanet.data.images.decode import MAX_PIXELS
from gaeanet.data.images.jpeg import read_header
from gaeanet.kernels.build import SOURCES

HERE = Path(__file__).parent
NATIVE = HERE.parent / "gaeanet" / "kernels" / "native"
FLAGS = ("-std=c++17", "-O1", "-g", "-march=native", "-fno-exceptions", "-fno-rtti", "-DEXACT_WORKSPACE")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
MET = {"jpeg.cpp": ("-fsanitize-coverage=trace-pc",), "colour.cpp": ()}
"""The sources that meet untrusted bytes, and flags of their own; kernels on maps of floats meet none."""

DONE, DAMAGED = 0, 3
ANSWERS = {DONE: "decoded", 1: "no memory", 2: "left to libjpeg", DAMAGED: "damaged"}
MOST_SECONDS = 20
"""An input of kilobytes takes milliseconds; on a busy machine, this at most."""

Box = tuple[int, int, int, int]


class Failure(Exception):
    """Something that no input may do."""


class NoSanitizers(Exception):
    """No compiler here can build what is to be run."""


def build(folder: Path) -> Path:
    """Compiles the program that decodes under sanitizers; raises `NoSanitizers` where that cannot be done."""
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise NoSanitizers("no C++ compiler")
    program, objects = folder / "fuzz_kernels", []
    try:
        for name, own in MET.items():
            objects.append(str(folder / f"{name}.o"))
            flags = (*FLAGS, *SANITIZERS, *SOURCES[name], *own)
            _run(compiler, *flags, "-c", str(NATIVE / name), "-o", objects[-1])
        _run(compiler, *FLAGS, *SANITIZERS, str(HERE / "fuzz_kernels.cpp"), *objects, "-o", str(program))
        subprocess.run([str(program)], stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=60)
    except (subprocess.SubprocessError, OSError) as error:
        said = getattr(error, "stderr", None) or str(error).encode()
        raise NoSanitizers(f"{compiler}: {said.decode(errors='replace').strip().splitlines()[-1]}") from None
    return program


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, check=True, timeout=300)


class Answer(NamedTuple):
    """Answers of `jpeg_region` and `jpeg_soundness`, whether the way there was new, and pixels (3, height, width)."""

    region: int
    soundness: int
    news: bool
    pixels: torch.Tensor | None


class Decoder:
    """The program, which answers one request after another until one kills it."""

    def __init__(self, program: Path) -> None:
        settings = {"ASAN_OPTIONS": "allocator_may_return_null=1:detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process)
        self.process = subprocess.Popen(
            [str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            env={**os.environ, **settings},
        )

    def __call__(self, data: bytes, box: Box) -> Answer:
        """What it says of a file, and the pixels of the box."""
        height, width = box[2:]
        room = max(1, min(height * width, MAX_PIXELS)) if min(height, width) > 0 else 1
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(struct.pack("<6q", len(data), *box, room) + data)
            self.process.stdin.flush()
            region, soundness, news = struct.unpack("<3i", self.process.stdout.read(12))
            pixels = None
            if region == DONE:
                read = np.frombuffer(self.process.stdout.read(3 * room), np.uint8)
                pixels = torch.from_numpy(read.reshape(height, width, 3).copy()).permute(2, 0, 1)
        except (OSError, ValueError, struct.error):
            raise Failure(f"the decoder ended with {self.process.wait()}:\n{self.end()}") from None
        return Answer(region, soundness, bool(news), pixels)

    def end(self) -> str:
        """Ends the program; what it has said."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()
        self.said.seek(0)
        text = self.said.read().decode(errors="replace")
        self.said.close()
        return text


def seeds(chance: random.Random) -> Iterator[bytes]:
    """Small JPEGs of all kinds, those that the decoder does not know among them."""
    rng = np.random.default_rng(chance.randrange(2**32))
    kinds: list[dict[str, object]] = [
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2},
        {"subsampling": 2, "restart_marker_blocks": 2},
        {"subsampling": 1, "restart_marker_rows": 1, "optimize": True},
        {"quality": 1},
        {"quality": 100, "subsampling": 0, "optimize": True},
        {"progressive": True},
        {"keep_rgb": True},
        {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0", "comment": b"\xff\xd9\xff\xda"},
    ]
    for size in ((1, 1), (5, 40), (33, 17), (48, 48), (70, 24)):
        for mode in ("RGB", "L", "CMYK"):
            for options in kinds:
                soft = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
                pixels = np.asarray(Image.fromarray(soft).resize(size), dtype=int)
                pixels = (pixels + rng.integers(-40, 41, pixels.shape)).clip(0, 255).astype(np.uint8)
                buffer = io.BytesIO()
                Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **options)
                yield buffer.getvalue()


def boxes(data: bytes, chance: random.Random) -> Box:
    """The whole, a part, or what lies outside."""
    header = read_header(data)
    height, width = (header.height, header.width) if header else (8, 8)
    way = chance.random()
    if way < 0.05:
        odd = (-(2**63), -1, 0, 1, height, width, 2**31, 2**62, 2**63 - 1)
        return chance.choice(odd), chance.choice(odd), chance.choice(odd), chance.choice(odd)
    if not height or not width:
        return 0, 0, 1, 1
    if way < 0.6 and height * width < 1_000_000:
        return 0, 0, height, width
    top, left = chance.randrange(height), chance.randrange(width)
    most = max(1, 1_000_000 // height)
    return top, left, 1 + chance.randrange(height - top), 1 + chance.randrange(min(most, width - left))


def fuzz_kernels(seconds: float, seed: int) -> int:
    """Damages JPEGs for so long; returns how many failures there were."""
    chance, began = random.Random(seed), time.monotonic()
    outcomes: Counter[str] = Counter()
    failures = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        program = build(Path(folder))
        print(f"kernels: built with {' '.join(SANITIZERS)}", flush=True)
        decoder, corpus, fresh = Decoder(program), list(seeds(chance)), 0
        queue = list(corpus)
        while queue or time.monotonic() < began + seconds:
            whole = bool(queue)
            data = queue.pop() if whole else damaged_jpeg(chance.choice(corpus), corpus, chance)
            box = boxes(data, chance)
            started = time.monotonic()
            try:
                answer = decoder(data, box)
                if time.monotonic() - started > MOST_SECONDS:
                    raise Failure(f"took {time.monotonic() - started:.0f} s for {len(data):,} bytes")
                outcomes[ANSWERS[answer.region]] += 1
                if whole and answer.soundness == DAMAGED:
                    raise Failure("found damage in a sound file")
                compare(data, box, answer)
            except Failure as failure:
                failures += 1
                kept = Path(tempfile.gettempdir()) / f"fuzz-kernels-{seed}-{failures}.jpg"
                kept.write_bytes(data)
                print(f"kernels: {kept}, box {box}: {failure}", flush=True)
                if failures >= 5:
                    break
                decoder.end()
                decoder = Decoder(program)
                continue
            if answer.news and len(data) < 20_000:
                corpus.append(data)
                fresh += 1
        decoder.end()
    total = ", ".join(f"{count:,} {name}" for name, count in sorted(outcomes.items()))
    print(f"kernels: {total}; {fresh:,} took a new way; {failures} failures", flush=True)
    return failures


def compare(data: bytes, box: Box, answer: Answer) -> None:
    """Raises `Failure` unless libjpeg decodes the same pixels, and complains of nothing that was taken for sound."""
    header = read_header(data)
    if answer.soundness != DONE or header is None or header.width * header.height > MAX_PIXELS:
        return
    try:
        plain = header.components in (1, 3)
        whole = libjpeg.decode(data, ImageReadMode.RGB if plain else ImageReadMode.UNCHANGED)
    except libjpeg.Damage as damage:
        raise Failure(f"found nothing wrong with what libjpeg says of: {damage}") from None
    if answer.pixels is None:
        return
    top, left, height, width = box
    if whole is None or not torch.equal(whole[:, top : top + height, left : left + width], answer.pixels):
        raise Failure("other pixels than libjpeg's")


def main() -> int:
    parser = argparse.ArgumentParser(description="Damages untrusted input at random and looks at what becomes of it.")
    parser.add_argument("parts", nargs="*", metavar="PART", help="kernels, readers (default: both)")
    parser.add_argument("--seconds", type=float, default=60, help="of each part (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="which damage (default: 0)")
    parser.add_argument("--only", metavar="READERS", help="names of readers, with commas between them")
    arguments = parser.parse_args()
    parts = arguments.parts or ["kernels", "readers"]
    if unknown := set(parts) - {"kernels", "readers"}:
        parser.error(f"{', '.join(sorted(unknown))}: the parts are kernels and readers")
    torch.set_num_threads(1)
    failures = 0
    try:
        if "kernels" in parts:
            failures += fuzz_kernels(arguments.seconds, arguments.seed)
    except NoSanitizers as error:
        print(f"kernels: not run: {error}")
        return 2
    if "readers" in parts:
        failures += fuzz_readers(arguments.seconds, arguments.seed, arguments.only)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
