"""The files of a data set on the Hugging Face Hub that `gaeanet prepare` reads, on this machine's disk."""

from __future__ import annotations

from pathlib import Path

from gaeanet.data.sources.split_files import split_of
from gaeanet.data.storage.hub import HubDataset, HubFile
from gaeanet.errors import RequestError
from gaeanet.runtime.names import shown
from gaeanet.runtime.progress import WorkProgress

_KINDS = (".parquet", ".tar", ".arrow")


def hub_copy(location: str) -> Path:
    """Downloads the training and validation files of a data set, one by one, and returns their directory.

    Complete files stay in huggingface_hub's cache, so that a second call starts with what is missing.

    Raises:
        RequestError: There is no such data set, it may not be read, or it has no such files.
        RunError: A file cannot be downloaded, or is damaged on the way.
    """
    dataset = HubDataset(location)
    files = dataset.files()
    chosen = _chosen(files)
    if not chosen:
        some = ", ".join(shown(file.path) for file in files[:4]) + (", ..." if len(files) > 4 else "")
        raise RequestError(
            f"{location}: has no parquet files or tars with train in their names, it has {len(files)} files ({some})"
        )
    total = sum(file.size for file in chosen)
    print(shown(f"{location}: {len(chosen)} files, {total / 1e9:.3g} GB, kept in huggingface_hub's cache (HF_HOME)"))
    with WorkProgress(total) as progress:
        for file in chosen:
            root = dataset.fetch(file)
            progress.add(file.size)
    return root


def _chosen(files: list[HubFile]) -> list[HubFile]:
    for kind in _KINDS:
        of_kind = [file for file in files if file.path.endswith(kind)]
        of_split = {
            split: [file for file in of_kind if split_of(file.path) == split] for split in ("train", "val", "test")
        }
        if of_split["train"]:
            beside = [file for file in files if kind == ".tar" and file.path.endswith(".json")]
            return of_split["train"] + (of_split["val"] or of_split["test"]) + beside
    return []
