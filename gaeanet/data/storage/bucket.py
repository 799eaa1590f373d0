"""Objects in a bucket of Google Cloud Storage, S3 or Azure: `gs://`, `s3://`, `az://`. Only this file knows obstore.

The client is opened by each process when it first reads. It must not be used before a fork (its threads would not exist
in the child, which would wait for them for ever); sources that read from it ask the loader for fresh processes instead.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import from_url

from gaeanet.data.storage.credentials import TOLD_BY, endpoint_of, has_credentials, settings_of
from gaeanet.errors import RequestError, RunError, reason

REQUESTS_IN_FLIGHT = 32
"""Of each process that reads; see docs/data.md for how speed depends on it."""

_SCHEMES = {"gs": "Google Cloud Storage", "s3": "S3", "az": "Azure"}

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Patience:
    """How long a failing request is tried again: at most `tries` times, `timeout` seconds each, with waits between them
    that double from `first_wait` to `longest_wait` and are shortened by chance, so that many readers do not
    come back at the same moment.
    """

    tries: int = 8
    timeout: float = 30.0
    first_wait: float = 0.5
    longest_wait: float = 20.0

    def wait(self, attempt: int) -> float:
        """Seconds to wait after failure number `attempt`, counted from 0."""
        return min(self.longest_wait, self.first_wait * 2.0**attempt) * random.uniform(0.5, 1.0)


class Entry(NamedTuple):
    """An object as a listing shows it: key below the location, size in bytes, entity tag without quotes."""

    key: str
    size: int
    etag: str


class _Permanent(Exception):
    """An answer that asking again would not change."""


class BucketClient:
    """The objects below one location.

    Args:
        location: `scheme://bucket/prefix`.
        patience: How long failing requests are tried again.
        requests_in_flight: Requests that `map` has under way at a time.

    Attributes:
        location: `scheme://bucket/prefix`, without a slash at the end.
        retries: Requests that this process has had to repeat.
        anonymous: Whether it reads without credentials.

    Raises:
        RequestError: The location is not a bucket's.
    """

    def __init__(
        self, location: str, patience: Patience = Patience(), requests_in_flight: int = REQUESTS_IN_FLIGHT
    ) -> None:
        match = re.fullmatch(r"(gs|s3|az)://([^/]+)(/.*)?", location)
        if not match:
            raise RequestError(
                f"data.location: {location}: give a directory, or gs://, s3:// or az:// with a bucket's name"
            )
        self.scheme, self.bucket = match[1], match[2]
        self.location = location.rstrip("/")
        self.retries = 0
        self.anonymous = False
        self._patience, self._requests_in_flight = patience, requests_in_flight
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._opened: tuple[int, Any] | None = None
        self._pool: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A worker is started from a server process whose environment may be older than this one's.
        environment = {key: value for key, value in os.environ.items() if key.startswith(TOLD_BY)}
        state = {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_opened", "_pool")}
        return {**state, "retries": 0, "environment": environment}

    def __setstate__(self, state: dict[str, Any]) -> None:
        os.environ.update(state.pop("environment"))
        self.__dict__.update(state)
        self._forget()

    def url(self, key: str = "") -> str:
        """An object's full name, for messages."""
        return f"{self.location}/{key}" if key else self.location

    def connect(self) -> None:
        """Finds out how the bucket lets itself be read: with this machine's credentials, or without any.

        Raises:
            RequestError: It cannot be read either way.
        """
        named = has_credentials(self.scheme)
        try:
            # Where none are named, the cloud's own machines ask a server for theirs; elsewhere nobody answers.
            self._look(self._patience.tries if named else 2)
        except RunError as error:
            if named:
                raise RequestError(str(error)) from None
            self.anonymous, self._opened = True, None
            try:
                self._look(self._patience.tries)
            except RunError as error:
                raise RequestError(f"{error} (no {_SCHEMES[self.scheme]} credentials were found here)") from None

    def _look(self, tries: int) -> None:
        self._request(lambda: next(iter(obstore.list(self._store(), chunk_size=1)), None), "", tries=tries)

    def get(self, key: str, check: Callable[[bytes], str | None]) -> bytes:
        """A whole object; `check` returns what is wrong with the bytes, which are then asked for again.

        Raises:
            RunError: It is not there or may not be read, or every try failed; the message has the full name.
        """
        return self._request(lambda: bytes(obstore.get(self._store(), key).bytes()), key, check)

    def get_range(self, key: str, start: int, length: int, check: Callable[[bytes], str | None]) -> bytes:
        """`length` bytes of an object from `start`; otherwise as `get`."""

        def read() -> bytes:
            data = bytes(obstore.get_range(self._store(), key, start=start, length=length))
            if len(data) != length:
                raise OSError(f"{len(data)} bytes came instead of {length}")
            return data

        return self._request(read, key, check)

    def head(self, key: str) -> Entry | None:
        """What is known about an object; None where there is none."""
        try:
            meta = self._request(lambda: obstore.head(self._store(), key), key)
        except RunError as error:
            if "not found" in str(error):
                return None
            raise
        return _entry(meta)

    def put(self, key: str, data: bytes) -> None:
        """Writes an object, in place of one that is there; otherwise as `get`."""
        self._request(lambda: obstore.put(self._store(), key, data, use_multipart=False), key)

    def delete(self, key: str) -> None:
        """Removes an object; otherwise as `get`."""
        self._request(lambda: obstore.delete(self._store(), key), key)

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders directly below `prefix`, sorted."""
        return self._directly_below(prefix)[0]

    def names(self, prefix: str) -> set[str]:
        """Names of the folders and objects directly below `prefix`."""
        folders, objects = self._directly_below(prefix)
        return {*folders, *objects}

    def _directly_below(self, prefix: str) -> tuple[list[str], list[str]]:
        answer = self._request(lambda: obstore.list_with_delimiter(self._store(), prefix or None), prefix)
        objects = [meta["path"].rsplit("/", 1)[-1] for meta in answer["objects"]]
        return sorted(name.rsplit("/", 1)[-1] for name in answer["common_prefixes"]), sorted(objects)

    def list(self, prefix: str) -> list[Entry]:
        """Every object below the folder `prefix`, sorted by key."""

        def read() -> list[Entry]:
            stream = obstore.list(self._store(), prefix or None, chunk_size=1000)
            return sorted(_entry(meta) for chunk in stream for meta in chunk)

        return self._request(read, prefix)

    def map(self, work: Callable[[U], T], items: Iterable[U]) -> Iterator[T]:
        """`work` on every item, many at a time; results in the items' order."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._requests_in_flight, thread_name_prefix="bucket")
        return self._pool.map(work, items)

    def _store(self) -> Any:
        with self._lock:
            if self._opened is None:
                self._opened = os.getpid(), self._open()
            if self._opened[0] != os.getpid():
                raise RunError(f"{self.location}: the bucket's client was opened before this process was forked")
            return self._opened[1]

    def _open(self) -> Any:
        config: Any = settings_of(self.scheme)
        if self.anonymous:
            config = {**config, "skip_signature": "true"}
        endpoint = endpoint_of(self.scheme)
        options: Any = {
            "timeout": timedelta(seconds=self._patience.timeout),
            "connect_timeout": timedelta(seconds=min(5.0, self._patience.timeout)),
            "allow_http": endpoint.startswith("http://"),  # only where the environment itself names such a server
        }
        # Retries are made here and not by the library, so that they can be counted.
        try:
            return from_url(self.location, config=config, client_options=options, retry_config={"max_retries": 0})
        except (BaseError, ValueError) as error:
            raise RunError(f"{self.location}: {_unopened(self.scheme, error)}") from None

    def _request(
        self,
        ask: Callable[[], T],
        key: str,
        check: Callable[[T], str | None] = lambda _: None,
        tries: int | None = None,
    ) -> T:
        fault, tries = "", tries or self._patience.tries
        for attempt in range(tries):
            if attempt:
                with self._lock:
                    self.retries += 1
                time.sleep(self._patience.wait(attempt - 1))
            try:
                answer = ask()
            except (BaseError, OSError, ValueError) as error:
                try:
                    fault = _fault_of(error)
                except _Permanent as permanent:
                    raise RunError(f"{self.url(key)}: {permanent}") from None
                continue
            if not (wrong := check(answer)):
                return answer
            fault = wrong
        raise RunError(f"{self.url(key)}: gave up after {tries} tries: {fault}")


def _entry(meta: Any) -> Entry:
    return Entry(meta["path"], meta["size"], (meta["e_tag"] or "").strip('"'))


def _fault_of(error: Exception) -> str:
    """Why a request failed, briefly; raises `_Permanent` with that where trying again is of no use."""
    text = str(error).split("\n", 1)[0]
    status = re.search(r"status code: (\d{3})( [A-Z][A-Za-z ]*[a-z])?", text)
    if isinstance(error, FileNotFoundError) or (status and status[1] == "404"):
        raise _Permanent("not found (404)")
    if isinstance(error, PermissionDeniedError) or (status and status[1] == "403"):
        raise _Permanent("permission denied (403)")
    if isinstance(error, UnauthenticatedError) or (status and status[1] == "401"):
        raise _Permanent("credentials are missing or refused (401)")
    if status and status[1].startswith("4") and status[1] not in ("408", "425", "429"):
        raise _Permanent(f"refused with HTTP status {status[1]}{status[2] or ''}")
    if isinstance(error, ValueError):
        raise _Permanent(text)
    if "incorrectly configured region" in text:
        raise _Permanent("the bucket is in another region: set AWS_REGION")
    if status:
        return f"HTTP status {status[1]}{status[2] or ''}"
    return re.sub(r"^Generic \S+ error: |Error performing .* in \S+ - ", "", text)


def _unopened(scheme: str, error: Exception) -> str:
    """Why the settings of this machine do not make a client."""
    if scheme == "az" and "Account must be specified" in str(error):
        return "the storage account is not known: set AZURE_STORAGE_ACCOUNT"
    return f"{_SCHEMES[scheme]}'s settings on this machine cannot be used: {reason(error)}"
