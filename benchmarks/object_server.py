"""An object store in memory for benchmarks: as many objects as wanted, all with the same bytes, at a chosen distance.

It speaks enough of S3 to be listed and read. The test suite's real services hold a few thousand objects at most and
answer a few hundred requests a second; this one answers some thousand, so that what is measured is the client.
"""

from __future__ import annotations

import asyncio
import bisect
import hashlib
import multiprocessing
import os
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager

PAGE = 1000


class Server:
    def __init__(self, keys: list[str], body: bytes, latency: float) -> None:
        self._keys, self._body, self._latency = sorted(keys), body, latency
        self._tag = hashlib.md5(body).hexdigest()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                method, target = request.split(b" ", 2)[:2]
                await asyncio.sleep(self._latency)
                status, kind, body = self._respond(target.decode())
                head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                head += f'ETag: "{self._tag}"\r\nLast-Modified: Wed, 01 Jan 2025 00:00:00 GMT\r\n\r\n'
                writer.write(head.encode() + (b"" if method == b"HEAD" else body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _respond(self, target: str) -> tuple[str, str, bytes]:
        path, _, query = target.partition("?")
        if "list-type" in query:
            return "200 OK", "application/xml", self._list(dict(urllib.parse.parse_qsl(query))).encode()
        key = urllib.parse.unquote(path).split("/", 2)[2]
        at = bisect.bisect_left(self._keys, key)
        if at < len(self._keys) and self._keys[at] == key:
            return "200 OK", "image/jpeg", self._body
        return "404 Not Found", "application/xml", b"<Error><Code>NoSuchKey</Code></Error>"

    def _list(self, query: dict[str, str]) -> str:
        prefix, after = query.get("prefix", ""), query.get("continuation-token", "")
        start = bisect.bisect_right(self._keys, after) if after else bisect.bisect_left(self._keys, prefix)
        if query.get("delimiter"):
            return f"<ListBucketResult>{''.join(self._folders(prefix))}</ListBucketResult>"
        page = [key for key in self._keys[start : start + PAGE] if key.startswith(prefix)]
        entry = f'</Key><LastModified>2025-01-01T00:00:00.000Z</LastModified><ETag>"{self._tag}"</ETag>'
        entry += f"<Size>{len(self._body)}</Size></Contents>"
        text = "".join(f"<Contents><Key>{key}{entry}" for key in page)
        if len(page) == PAGE:
            text += f"<IsTruncated>true</IsTruncated><NextContinuationToken>{page[-1]}</NextContinuationToken>"
        return f"<ListBucketResult>{text}</ListBucketResult>"

    def _folders(self, prefix: str) -> Iterator[str]:
        at = bisect.bisect_left(self._keys, prefix)
        while at < len(self._keys) and self._keys[at].startswith(prefix):
            folder = prefix + self._keys[at][len(prefix) :].split("/", 1)[0] + "/"
            yield f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>"
            at = bisect.bisect_left(self._keys, folder[:-1] + "0")  # "0" follows "/"


def _serve(keys: list[str], body: bytes, latency: float, told: multiprocessing.Queue[int]) -> None:
    async def run() -> None:
        server = await asyncio.start_server(Server(keys, body, latency).answer, "127.0.0.1", 0, backlog=1024)
        told.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def objects(keys: list[str], body: bytes, latency: float) -> Iterator[str]:
    """A location with these objects, each answer `latency` seconds away, for as long as the block runs."""
    told: multiprocessing.Queue[int] = multiprocessing.Queue()
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(keys, body, latency, told), daemon=True)
    process.start()
    settings = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "us-east-1"}
    os.environ.update(settings, AWS_ENDPOINT_URL=f"http://127.0.0.1:{told.get(timeout=60)}")
    try:
        yield "s3://benchmark"
    finally:
        process.terminate()
        process.join()
