"""The mirror of a run in a bucket, from which another machine resumes when the first one is lost.

Below the location lie `metrics.jsonl` and `checkpoints/step-.../`, as in a run directory. A checkpoint's manifest is
written last and removed first, so one that has a manifest is complete. Uploads run in the background, one at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from gaeanet.artifacts.checkpoint import NAME
from gaeanet.artifacts.directory import CHECKPOINTS, MANIFEST, METRICS
from gaeanet.data.storage.bucket import BucketClient, Patience
from gaeanet.errors import RunError
from gaeanet.runtime.files import exists
from gaeanet.runtime.names import stays_inside

_PATIENCE = Patience(timeout=300.0)
"""A checkpoint's file takes longer than a photograph."""


class Mirror:
    """A run's copy at `location`; only one process may write it.

    Raises:
        RequestError: The location is not a bucket's, or the bucket cannot be reached.
    """

    def __init__(self, location: str, patience: Patience = _PATIENCE) -> None:
        self._client = BucketClient(location, patience)
        self._client.connect()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mirror")
        self._copying: Future[None] | None = None

    @property
    def location(self) -> str:
        return self._client.location

    def checkpoints(self) -> dict[str, list[str]]:
        """The complete checkpoints in the bucket, oldest first: name to file names."""
        files_of: dict[str, list[str]] = {}
        for entry in self._client.list(CHECKPOINTS):
            _, _, below = entry.key.partition("/")
            name, slash, file = below.partition("/")
            if slash and NAME.fullmatch(name) and "/" not in file and stays_inside(file):  # nothing else is ours
                files_of.setdefault(name, []).append(file)
        return {name: files for name, files in sorted(files_of.items()) if MANIFEST in files}

    def copy(self, checkpoint: Path, log: Path, keep: Iterable[str]) -> None:
        """Starts to upload a checkpoint directory and the log, then to remove all checkpoints but it and `keep`.

        Call `wait` first: an upload still running may need files that the caller is about to remove.
        """
        assert self._copying is None
        self._copying = self._thread.submit(self._copy, checkpoint, log, {checkpoint.name, *keep})

    def wait(self) -> str | None:
        """Waits for the upload that is running; returns the message of its failure, None for success."""
        copying, self._copying = self._copying, None
        if copying is None:
            return None
        try:
            copying.result()
        except RunError as error:
            return str(error)
        return None

    def fetch(self, run_dir: Path) -> list[str]:
        """Downloads checkpoints that the run directory lacks, and the log where they are newer; returns their names.

        Raises:
            RunError: An object cannot be read, or the directory cannot be written.
        """
        folder = run_dir / CHECKPOINTS
        mirrored = self.checkpoints()
        missing = [name for name in mirrored if not exists(folder / name)]
        if not missing:
            return []
        newest = max((path.name for path in folder.glob("step-*")), default="")
        for name in missing:
            draft = folder / f".{name}.fetched"
            draft.mkdir(parents=True, exist_ok=True)
            for file in mirrored[name]:
                (draft / file).write_bytes(self._client.get(f"{CHECKPOINTS}/{name}/{file}", lambda _: None))
            draft.rename(folder / name)
        if missing[-1] > newest and self._client.head(METRICS):
            (run_dir / METRICS).write_bytes(self._client.get(METRICS, lambda _: None))
        return missing

    def _copy(self, checkpoint: Path, log: Path, keep: set[str]) -> None:
        files = sorted(checkpoint.iterdir(), key=lambda file: file.name == MANIFEST)
        if exists(log) and log.stat().st_size:
            self._client.put(METRICS, log.read_bytes())
        for file in files:
            self._client.put(f"{CHECKPOINTS}/{checkpoint.name}/{file.name}", file.read_bytes())
        for name, names in self.checkpoints().items():
            if name not in keep:
                for file_name in sorted(names, key=lambda name: name != MANIFEST):
                    self._client.delete(f"{CHECKPOINTS}/{name}/{file_name}")
