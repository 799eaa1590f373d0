"""What a machine draws from the mains while it works, where it has a meter that may be read."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import threading
import time
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
_EVERY = 0.5
"""Seconds between two readings of a GPU's power."""


class PowerMeter:
    """Mean power while the block runs: of the GPU (nvidia-smi), and of the processor packages (RAPL).

    Attributes:
        watts: The mean, over both where both can be read; None without any meter.
        meters: What was read, in words.
    """

    def __init__(self, device: torch.device) -> None:
        self.watts: float | None = None
        self.meters: list[str] = []
        self._packages = _packages()
        self._query = _query(device)
        self._readings: list[float] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch_gpu, daemon=True)

    def __enter__(self) -> PowerMeter:
        self._began, self._energy = time.monotonic(), [_microjoules(package) for package in self._packages]
        if self._query:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.monotonic() - self._began
        watts = []
        if self._query:
            self._done.set()
            self._thread.join()
        if self._readings:
            watts.append(statistics.mean(self._readings))
            self.meters.append("GPU")
        used = [_since(package, before) for package, before in zip(self._packages, self._energy)]
        if used and seconds > 0:
            watts.append(sum(used) / 1e6 / seconds)
            self.meters.append("processor")
        self.watts = sum(watts) if watts else None

    def _watch_gpu(self) -> None:
        while True:
            try:
                said = subprocess.run(self._query, capture_output=True, text=True, timeout=10).stdout
                self._readings.append(float(said.strip()))
            except (OSError, ValueError, subprocess.TimeoutExpired):
                return  # "[N/A]": this GPU has no meter
            if self._done.wait(_EVERY):
                return


def _query(device: torch.device) -> list[str]:
    """The command that prints the power of `device` in watts; empty where there is none."""
    program = shutil.which("nvidia-smi") if device.type == "cuda" else None
    if program is None:
        return []
    # By its name and not by its number: CUDA_VISIBLE_DEVICES does not count for nvidia-smi.
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    which = f"GPU-{uuid}" if uuid else str(device.index or 0)
    return [program, "--query-gpu=power.draw", "--format=csv,noheader,nounits", f"--id={which}"]


def _packages() -> list[Path]:
    """RAPL's counters of whole processor packages that this user may read (cores and memory are parts of them)."""
    packages = []
    for zone in sorted(POWERCAP.glob("*-rapl:*")):
        try:
            if (zone / "name").read_text().startswith("package") and _microjoules(zone) >= 0:
                packages.append(zone)
        except (OSError, ValueError):
            continue
    return packages


def _microjoules(package: Path) -> int:
    return int((package / "energy_uj").read_text())


def _since(package: Path, before: int) -> int:
    """Microjoules since the counter stood at `before`; it begins again at 0 after a while."""
    used = _microjoules(package) - before
    return used if used >= 0 else used + int((package / "max_energy_range_uj").read_text())
