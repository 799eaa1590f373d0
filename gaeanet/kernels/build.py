"""Compiles the kernels with the system's C++ compiler when they are first needed, and loads them.

The library is in the user's cache directory under a hash of all that it depends on: sources, compiler, flags,
processor, and the OpenMP runtime. Concurrent builds are safe: each compiles into its own file and renames it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch  # its OpenMP runtime has to be there before `_openmp_runtime` looks for it

SOURCES: dict[str, tuple[str, ...]] = {
    "depthwise.cpp": (),
    "pointwise.cpp": (),
    "batch_norm.cpp": (),
    "gate.cpp": (),
    "colour.cpp": ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
    "jpeg.cpp": ("-fwrapv",),
}
"""Each with flags of its own."""
HEADERS = ("vectors.hpp", "batch_norm.hpp", "jpeg_frame.hpp", "jpeg_huffman.hpp", "jpeg_samples.hpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-fno-exceptions", "-fno-rtti")
_HERE = Path(__file__).parent / "native"


class Unavailable(Exception):
    """The kernels are not available here; the message gives the reason."""


@cache
def library() -> ctypes.CDLL:
    """The kernels, compiled now (some seconds) if this machine has not compiled them before.

    Raises:
        Unavailable: There is no compiler, or the library does not compile or load.
    """
    compiler = _compiler()
    runtime = _openmp_runtime()
    directory = cache_directory()
    path = directory / f"kernels-{_fingerprint(compiler, runtime)}.so"
    try:
        if not path.exists():
            _build(compiler, runtime, path)
        return ctypes.CDLL(str(path))
    except subprocess.TimeoutExpired:
        raise Unavailable("the C++ compiler took too long") from None
    except subprocess.CalledProcessError as error:
        complaint = next((line for line in error.stderr.splitlines() if "error" in line), "it gave no reason")
        raise Unavailable(f"the C++ compiler failed: {complaint.strip()}") from None
    except OSError as error:
        path.unlink(missing_ok=True)  # a damaged file is rebuilt next time
        raise Unavailable(f"they do not load: {error}") from None


OWN = "own kernels"
"""The message of `availability` and `accelerate` where the kernels are available."""


@cache
def availability() -> str:
    """A message on whether the kernels are available here; the first call on a machine compiles them."""
    try:
        library()
    except Unavailable as error:
        return f"PyTorch's kernels ({error})"
    return OWN


def _compiler() -> str:
    requested = os.environ.get("CXX")
    compiler = next(filter(None, map(shutil.which, [requested] if requested else ["c++", "g++", "clang++"])), None)
    if compiler is None:
        raise Unavailable("no C++ compiler")
    return compiler


def _openmp_runtime() -> str:
    """The OpenMP runtime that torch has loaded: a second one would double the number of threads."""
    try:
        mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "omp" in line}
    except OSError:
        raise Unavailable("only on Linux") from None
    runtimes = sorted(path for path in mapped if Path(path).name.startswith(("libgomp", "libomp", "libiomp")))
    if len(runtimes) != 1:
        raise Unavailable(f"{len(runtimes)} OpenMP runtimes in torch {torch.__version__}, not one")
    return runtimes[0]


def cache_directory() -> Path:
    """A directory that only this user can write, since its files are run as code."""
    try:
        directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gaeanet"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=directory):
            return directory
    except (OSError, RuntimeError):  # not to be written, or no home at all
        return _temporary_cache()


def _temporary_cache() -> Path:
    """A directory of this user's in the temporary directory, the same for all processes: compiled once a machine."""
    directory = Path(tempfile.gettempdir()) / f"gaeanet-{os.getuid()}"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        state = directory.lstat()
    except OSError as error:
        raise Unavailable(f"no directory to compile them in: {error.strerror}") from None
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise Unavailable(f"{directory} is not this user's alone")  # what lies there would be run as code
    return directory


def _fingerprint(compiler: str, runtime: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = [
            line for line in dict.fromkeys(lines) if line.startswith(("model name", "flags", "Features", "CPU part"))
        ]
    except OSError:
        cpu = []
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    parts = [compiler, version, runtime, platform.machine(), *FLAGS, *cpu, str(SOURCES)]
    parts += [(_HERE / name).read_text() for name in (*SOURCES, *HEADERS)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _build(compiler: str, runtime: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as scratch:
        objects = [f"{scratch}/{Path(name).stem}.o" for name in SOURCES]
        for (name, own), built in zip(SOURCES.items(), objects):
            _run(compiler, *FLAGS, *own, "-c", str(_HERE / name), "-o", built)
        # Linked without -fopenmp, which would link the compiler's own runtime.
        _run(compiler, "-shared", "-Wl,--no-undefined", *objects, runtime, "-lm", "-o", f"{scratch}/kernels.so")
        os.replace(f"{scratch}/kernels.so", path)


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
