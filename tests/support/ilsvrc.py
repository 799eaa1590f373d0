"""Tiny archives of ILSVRC2012, with a devkit."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import scipy.io
from tiny import COLOURS, jpeg

DEVKIT_ORDER = ["n00000002", "n00000000", "n00000001"]


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def devkit(classes: list[str], mat: bool) -> dict[str, bytes]:
    """The two files of a devkit for validation images of these classes, in the order of their names."""
    numbers = [DEVKIT_ORDER.index(name) + 1 for name in classes]
    files = {"data/ILSVRC2012_validation_ground_truth.txt": "".join(f"{n}\n" for n in numbers).encode()}
    if mat:
        kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
        table = np.array([(n, wnid, "a thing", 0) for n, wnid in enumerate(DEVKIT_ORDER, 1)], dtype=kinds)
        buffer = io.BytesIO()
        scipy.io.savemat(buffer, {"synsets": table.reshape(-1, 1)}, do_compression=True)
        files["data/meta.mat"] = buffer.getvalue()
    else:
        lines = [f"{wnid} {n} thing_{n}" for n, wnid in enumerate(DEVKIT_ORDER, 1)]
        files["data/map_clsloc.txt"] = "\n".join(lines).encode()
    return files


def archives(root: Path, train: int = 20, val: int = 3, mat: bool = True) -> list[str]:
    """Tiny ILSVRC2012 archives of three classes, with the devkit; returns the class of each validation image."""
    root.mkdir(parents=True)
    inner = {}
    for label in range(3):
        images = {f"n{label:08d}_{k}.JPEG": jpeg(COLOURS[label], (40, 48), 100 * label + k) for k in range(train)}
        inner[f"n{label:08d}.tar"] = tar_of(images)
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))
    labels = [k % 3 for k in range(3 * val)]
    names = [f"ILSVRC2012_val_{k + 1:08d}.JPEG" for k in range(3 * val)]
    images = {name: jpeg(COLOURS[label], (48, 40), 1000 + k) for k, (name, label) in enumerate(zip(names, labels))}
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_of(dict(reversed(images.items()))))
    classes = [f"n{label:08d}" for label in labels]
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        for name, data in devkit(classes, mat).items():
            member = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return classes
