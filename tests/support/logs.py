"""Logs as runs write them, without a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_run(folder: Path, rows: int = 5, data: str = "photographs", **values: Any) -> Path:
    folder.mkdir()
    lines = []
    for epoch in range(1, rows + 1):
        where = {"data": data, "epoch": float(epoch), "batches": 10 * epoch, "images": 100 * epoch}
        metrics = {"loss": 3 / epoch, "top1_accuracy": 10.0 * epoch, "top5_accuracy": 15.0 * epoch, **values}
        lines.append({"kind": "train", **where, **metrics, "learning_rate": 0.1, "images_per_second": 100})
        averaged = {f"ema_{name}": value for name, value in metrics.items()}
        lines.append({"kind": "validation", **where, "count": 9, **metrics, **averaged})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
