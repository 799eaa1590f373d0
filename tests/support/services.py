"""Real object stores on loopback, and a proxy before them that fails as networks do.

`gcp-storage-emulator` speaks Google's JSON dialect; obstore lists buckets in the XML dialect and wants an entity tag
with every object. The proxy translates the two, and leaves storing, ranges and errors to the emulator.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import hashlib
import http.client
import json
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from gaeanet.data.storage.bucket import Patience

QUICK = Patience(tries=8, timeout=1.0, first_wait=0.01, longest_wait=0.05)
Faults = Callable[[str, str], str | None]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Proxy:
    """Passes requests on to `port`; `faults(method, path)` may name what is to go wrong instead.

    Attributes:
        url: Where it listens.
        seen: How often each fault was made, and all requests under "requests".
        delay: Seconds that every answer takes.
        backwards: Whether listings come in reverse (within a page of the emulator's).
    """

    def __init__(self, port: int, gcs: bool = False) -> None:
        self.faults: Faults = lambda method, path: None
        self.seen: Counter[str] = Counter()
        self.delay, self.backwards = 0.0, False
        self._lock = threading.Lock()
        self._few = threading.Semaphore(4)  # the emulator's queue holds five; what is beyond waits a second
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement
            wbufsize = -1

            def log_message(self, *_: object) -> None:
                pass

            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length) if length else b""
                path = urllib.parse.unquote(self.path)
                with proxy._lock:
                    proxy.seen["requests"] += 1
                    fault = proxy.faults(self.command, path)
                    proxy.seen[str(fault)] += 1
                time.sleep(proxy.delay)
                if fault == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True
                    self.connection.close()
                    return
                if fault == "stall":
                    time.sleep(1.5)
                    self.close_connection = True
                    return
                if fault and fault.isdigit():
                    self.answer(int(fault), {}, b"<Error><Code>Fault</Code></Error>")
                    return
                with proxy._few:
                    status, headers, data = proxy._forward(self.command, self.path, dict(self.headers), body, port, gcs)
                if fault == "short":
                    self.close_connection = True
                    self.answer(status, headers, data, sent=len(data) // 2)
                elif fault == "other bytes":
                    self.answer(status, headers, bytes(len(data)))
                else:
                    self.answer(status, headers, data)

            def answer(self, status: int, headers: dict[str, str], data: bytes, sent: int | None = None) -> None:
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    for key, value in headers.items():
                        self.send_header(key, value)
                    self.send_header("Content-Length", headers.get("X-Length") or str(len(data)))
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(data[:sent])
                    self.wfile.flush()
                    if self.close_connection:
                        self.connection.shutdown(socket.SHUT_RDWR)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes, port: int, gcs: bool
    ) -> tuple[int, dict[str, str], bytes]:
        parts = urllib.parse.urlsplit(path)
        query = dict(urllib.parse.parse_qsl(parts.query))
        if gcs and "list-type" in query:
            return self._list(parts.path.strip("/"), query, port)
        if gcs and method == "DELETE":  # which the emulator knows in the JSON dialect only
            bucket, _, key = urllib.parse.unquote(parts.path).strip("/").partition("/")
            path = f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(key, safe='')}"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        kept = {k: v for k, v in headers.items() if k.lower() not in ("connection", "accept-encoding")}
        connection.request("GET" if gcs and method == "HEAD" else method, path, body or None, kept)
        answer = connection.getresponse()
        data = answer.read()
        passed = ("content-type", "content-range", "etag", "last-modified", "location")
        found = {k.title(): v for k, v in answer.getheaders() if k.lower() in passed}
        if method == "HEAD" and not gcs:
            found["X-Length"] = answer.getheader("Content-Length") or "0"
        connection.close()
        if gcs and answer.status < 300:
            whole = body if method == "PUT" else data
            found["Etag"] = f'"{hashlib.md5(whole).hexdigest()}"'
            found.setdefault("Last-Modified", "Wed, 01 Jan 2025 00:00:00 GMT")
        return answer.status, found, data

    def _list(self, bucket: str, query: dict[str, str], port: int) -> tuple[int, dict[str, str], bytes]:
        wanted = {k: query[k] for k in ("prefix", "delimiter") if k in query}
        if "continuation-token" in query:
            wanted["pageToken"] = query["continuation-token"]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", f"/storage/v1/b/{bucket}/o?{urllib.parse.urlencode(wanted)}")
        answer = connection.getresponse()
        listing = json.loads(answer.read() or b"{}")
        if answer.status != 200:
            return answer.status, {}, b"<Error><Code>NoSuchBucket</Code></Error>"
        text = "<ListBucketResult>"
        if token := listing.get("nextPageToken"):
            text += f"<IsTruncated>true</IsTruncated><NextContinuationToken>{escape(token)}</NextContinuationToken>"
        step = -1 if self.backwards else 1
        for item in listing.get("items", [])[::step]:
            etag = base64.b64decode(item["md5Hash"]).hex()
            text += f"<Contents><Key>{escape(item['name'])}</Key><LastModified>2025-01-01T00:00:00.000Z</LastModified>"
            text += f'<ETag>"{etag}"</ETag><Size>{item["size"]}</Size></Contents>'
        for prefix in listing.get("prefixes", [])[::step]:
            text += f"<CommonPrefixes><Prefix>{escape(prefix)}</Prefix></CommonPrefixes>"
        return 200, {"Content-Type": "application/xml"}, (text + "</ListBucketResult>").encode()


def flaky(share: float, kinds: tuple[str, ...], seed: int = 0) -> Faults:
    """Fails that share of all reads of objects, with each kind in turn."""
    rng, made = random.Random(seed), [0]

    def faults(method: str, path: str) -> str | None:
        if method != "GET" or "list-type" in path or rng.random() >= share:
            return None
        made[0] += 1
        return kinds[made[0] % len(kinds)]

    return faults


def always(fault: str, part: str) -> Faults:
    """Fails every read whose path holds `part`."""
    return lambda method, path: fault if part in path and "list-type" not in path else None


def end_with_the_tests() -> None:
    """Has the kernel end this process when the one that runs the tests is gone, however it went."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@contextlib.contextmanager
def _service(command: list[str], port: int) -> Iterator[None]:
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, preexec_fn=end_with_the_tests, **silent)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None, f"{command} ended"
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[Proxy]:
    port = free_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1", "--port", str(port)]
    with _service([*command, "--in-memory", "--default-bucket", "photos", "--quiet"], port):
        proxy = Proxy(port, gcs=True)
        yield proxy
        proxy.close()


@pytest.fixture
def gcs(gcs_server: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Proxy:
    """A Google Cloud Storage emulator with the bucket `photos`, behind the proxy."""
    gcs_server.faults, gcs_server.delay, gcs_server.backwards = (lambda method, path: None), 0.0, False
    gcs_server.seen.clear()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return gcs_server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Proxy]:
    port = free_port()
    with _service([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request(
            "PUT", "/photos", headers={"Authorization": "AWS4-HMAC-SHA256 Credential=x/20250101/us-east-1/s3"}
        )
        assert connection.getresponse().status == 200
        proxy = Proxy(port)
        yield proxy
        proxy.close()


@pytest.fixture
def s3(s3_server: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Proxy:
    """An S3 server with the bucket `photos`, behind the proxy."""
    s3_server.faults, s3_server.delay = (lambda method, path: None), 0.0
    s3_server.seen.clear()
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return s3_server


def upload(folder: Path, location: str, rename: Callable[[str], str] = lambda name: name) -> None:
    """Puts every file below `folder` into a bucket, in reverse order."""
    import obstore

    from gaeanet.data.storage.bucket import BucketClient

    store = BucketClient(location)._store()
    for path in sorted((path for path in folder.rglob("*") if path.is_file()), reverse=True):
        obstore.put(store, rename(path.relative_to(folder).as_posix()), path.read_bytes(), use_multipart=False)
