"""Data sets of the Hugging Face Hub, through the real client, from a double of its two routes on loopback."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import foreign
import pytest
from tiny import make_folder

NAME = "someone/photos"


class Hub(http.server.ThreadingHTTPServer):
    """The listing and download routes for the files below `root`, and what goes wrong with them."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.requests: list[str] = []
        self.fail_after: int | None = None
        self.status: int | None = None
        self.error_code = ""
        self.flip = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        hub, path = self.server, urllib.parse.urlsplit(self.path).path
        if self.command == "GET":
            hub.requests.append(path)
        if hub.status:
            self._send(hub.status, b"{}", X_Error_Code=hub.error_code)
        elif path.startswith(f"/api/datasets/{NAME}/tree/"):
            files = [file for file in sorted(hub.root.rglob("*")) if file.is_file()]
            entries = [
                {
                    "type": "file",
                    "path": file.relative_to(hub.root).as_posix(),
                    "size": file.stat().st_size,
                    "oid": "0" * 40,
                    "lfs": {"oid": digest(file), "size": file.stat().st_size, "pointerSize": 100},
                }
                for file in files
            ]
            self._send(200, json.dumps(entries).encode(), Content_Type="application/json")
        elif path.startswith(f"/datasets/{NAME}/resolve/main/"):
            file = hub.root / path.split("/resolve/main/", 1)[1]
            data = file.read_bytes()
            headers = {"ETag": f'"{digest(file)}"', "X_Repo_Commit": "c" * 40, "Accept_Ranges": "bytes"}
            if hub.flip and self.command == "GET":
                data = bytes([data[0] ^ 1]) + data[1:]
            if self.command == "GET" and hub.fail_after is not None:
                if not hub.fail_after:
                    self._send(503, b"")
                    return
                hub.fail_after -= 1
            begin = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
            if begin:
                headers["Content_Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            self._send(206 if begin else 200, data[begin:], **headers)
        else:
            self._send(404, b"{}", X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "photos")


@pytest.fixture
def hub(photos: Path, tmp_path: Path) -> Iterator[Hub]:
    root = foreign.parquet(photos, tmp_path / "hub")
    (root / "README.md").write_text("photos")
    server = Hub(root)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def prepare(hub: Hub, out: Path, location: str = f"hf://datasets/{NAME}") -> subprocess.CompletedProcess[str]:
    """`gaeanet prepare` with the environment of a user of this Hub; waits between tries are left out."""
    code = (
        "import sys, gaeanet.data.storage.hub as hub; hub._WAIT = 0.0; from gaeanet.cli.main import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(out.parent / "hf-home"), "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-c", code, "prepare", location, str(out)], capture_output=True, text=True, env=environment
    )


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_law_4_prepare_from_the_hub_equals_prepare_from_its_files(hub: Hub, tmp_path: Path) -> None:
    from gaeanet.data.prepare.prepare import prepare as local

    result = prepare(hub, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    local(str(hub.root), tmp_path / "expected", shards=False)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "expected")
    downloads = [path for path in hub.requests if "/resolve/" in path]
    assert len(downloads) == 6  # three files a split; not the test split, not README.md


def test_stopped_in_the_middle_it_continues_with_the_next_file(hub: Hub, tmp_path: Path) -> None:
    hub.fail_after = 2
    result = prepare(hub, tmp_path / "out")
    assert result.returncode == 1
    assert "gave up after 5 tries" in result.stderr
    assert "run again, it continues" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    hub.fail_after = None
    hub.requests.clear()
    assert prepare(hub, tmp_path / "out").returncode == 0
    assert len([path for path in hub.requests if "/resolve/" in path]) == 4
    hub.requests.clear()
    assert "already holds all of" in prepare(hub, tmp_path / "out").stdout
    assert not [path for path in hub.requests if "/resolve/" in path]


def test_a_bit_that_changed_on_the_way_is_noticed_and_not_kept(hub: Hub, tmp_path: Path) -> None:
    hub.flip = True
    result = prepare(hub, tmp_path / "out")
    assert result.returncode == 1
    assert "downloaded with another digest than on the Hub: run again" in result.stderr
    hub.flip = False
    assert prepare(hub, tmp_path / "out").returncode == 0


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "RepoNotFound", "not found, or not to be read without HF_TOKEN: check the name and the token"),
        (403, "GatedRepo", "asks for consent to its terms: accept them at http://127.0.0.1"),
        (404, "RevisionNotFound", f"hf://datasets/{NAME}: has no main"),
    ],
)
def test_what_the_hub_refuses_is_one_line(status: int, code: str, message: str, hub: Hub, tmp_path: Path) -> None:
    hub.status, hub.error_code = status, code
    result = prepare(hub, tmp_path / "out")
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_places_of_the_hub_that_are_refused(hub: Hub, tmp_path: Path) -> None:
    result = prepare(hub, tmp_path / "out", "hf://models/x")
    assert "hf://models/x: must be hf://datasets/NAME" in result.stderr
    for file in hub.root.glob("data/train*"):
        file.unlink()
    result = prepare(hub, tmp_path / "out")
    assert result.returncode == 2
    assert "has no parquet files or tars with train in their names, it has 5 files (README.md, " in result.stderr
