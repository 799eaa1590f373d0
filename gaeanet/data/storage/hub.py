"""Data sets on the Hugging Face Hub: their files, downloaded one by one into huggingface_hub's cache.

Endpoint, token and cache are those of `huggingface_hub` (`HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`).
"""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gaeanet.errors import RequestError, RunError, reason
from gaeanet.runtime.files import digest_of
from gaeanet.runtime.names import inside, shortened, shown

_LOCATION = re.compile(r"hf://datasets/([\w.-]+(?:/[\w.-]+)?)(?:@([\w.-]+))?(?:/([\w./-]+?))?/?")
_TRIES = 5
_WAIT = 0.5
"""Seconds before the second try; each further wait is twice as long."""

Result = TypeVar("Result")


class HubFile(NamedTuple):
    """A file of a data set: its path, bytes, and SHA-256 where the Hub has one."""

    path: str
    size: int
    sha256: str | None


class HubDataset:
    """A data set at `hf://datasets/NAME`, with a revision (`@main`) and a folder below it where they are given.

    Raises:
        RequestError: `location` is none of the Hub.
    """

    def __init__(self, location: str) -> None:
        match = _LOCATION.fullmatch(location)
        if not match:
            raise RequestError(f"{shown(location)}: must be hf://datasets/NAME or a folder in it")
        self.location = location
        self._name, self._revision, self._folder = match[1], match[2] or "main", match[3]
        self._endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        self._hub: Any = importlib.import_module(
            "huggingface_hub"
        )  # a dependency of timm; importing it takes half a second
        self._errors: Any = importlib.import_module("huggingface_hub.errors")
        importlib.import_module("huggingface_hub.utils").disable_progress_bars()

    def files(self) -> list[HubFile]:
        """All files, sorted by path.

        Raises:
            RequestError: There is no such data set, or it may not be read.
            RunError: The Hub does not answer.
        """
        entries = self._tried(
            "listing",
            lambda: list(
                self._hub.HfApi(endpoint=self._endpoint).list_repo_tree(
                    self._name, self._folder, recursive=True, revision=self._revision, repo_type="dataset"
                )
            ),
        )
        files = [entry for entry in entries if hasattr(entry, "size")]
        return sorted(HubFile(str(f.path), int(f.size), f.lfs.sha256 if f.lfs else None) for f in files)

    def fetch(self, file: HubFile) -> Path:
        """The directory that the file now lies in, under its path; one that is there already is not fetched again.

        Raises:
            RunError: It cannot be downloaded, or has another digest than on the Hub.
        """
        inside(Path(), file.path)
        options: dict[str, Any] = {"repo_type": "dataset", "revision": self._revision}
        cached = self._hub.try_to_load_from_cache(self._name, file.path, **options)
        path = Path(
            self._tried(
                file.path, lambda: self._hub.hf_hub_download(self._name, file.path, endpoint=self._endpoint, **options)
            )
        )
        if path.stat().st_size != file.size or (str(path) != cached and file.sha256 not in (None, digest_of(path))):
            os.unlink(path.resolve())
            raise RunError(
                f"{self.location}/{shown(file.path)}: downloaded with another digest than on the Hub: run again"
            )
        return path.parents[file.path.count("/")]

    def _tried(self, what: str, call: Callable[[], Result]) -> Result:
        errors = self._errors
        for number in range(_TRIES):
            if number:
                time.sleep(_WAIT * 2 ** (number - 1))
            try:
                return call()
            except errors.GatedRepoError:
                raise RequestError(
                    f"{self.location}: asks for consent to its terms: accept them at {self._endpoint}/datasets/"
                    f"{self._name}, and set HF_TOKEN"
                ) from None
            except errors.RepositoryNotFoundError:
                raise RequestError(
                    f"{self.location}: not found, or not to be read without HF_TOKEN: check the name and the token"
                ) from None
            except errors.HFValidationError:
                raise RequestError(f"{shown(self.location)}: {shown(self._name)} is no data set's name") from None
            except (errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError):
                raise RequestError(f"{self.location}: has no {shown(self._folder or self._revision)}") from None
            except Exception as error:  # httpx's, requests' in older versions, the file system's
                last = error
        raise RunError(
            f"{self.location}: {shown(what)}: gave up after {_TRIES} tries: {shortened(reason(last), 160)}; run again, "
            "it continues"
        ) from None
