"""A stand-in for a Determined master on loopback: enough of its routes for the real client and the real harness."""

from __future__ import annotations

import base64
import io
import json
import re
import tarfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import yaml

USER = {"username": "somebody", "active": True, "admin": False}


class Master:
    """Remembers what it is told, under the names of the routes.

    Attributes:
        submissions: Bodies of experiments created.
        metrics: (group, steps_completed, metrics) in the order of arrival.
        progress: Fractions reported.
        checkpoints: Bodies of checkpoints reported, oldest first.
        events: What happened in which order: `metrics <steps>`, `checkpoint <steps>`, `acknowledged`.
        requests: Every method and path.
        preempt_at: Asks the trial to stop as soon as metrics of this step or a later one have arrived.
        end_at: As a search does, marks the trial as stopping from metrics of this step on; as in 0.38.1, no signal
            goes out.
        silent: Does not answer questions about trials and agents (HTTP status 502).
        agent_slots: Slots of the agent.
        refuse: Answers metrics of this step or a later one with this HTTP status, `refusals` times.
    """

    def __init__(self) -> None:
        self.submissions: list[dict[str, Any]] = []
        self.metrics: list[tuple[str, int, dict[str, Any]]] = []
        self.progress: list[float] = []
        self.checkpoints: list[dict[str, Any]] = []
        self.events: list[str] = []
        self.requests: list[str] = []
        self.slots = 1
        self.preempt_at: int | None = None
        self.end_at: int | None = None
        self.silent = False
        self.agent_slots = 1
        self.state = "STATE_RUNNING"
        self.refuse: tuple[int, int] | None = None
        self.refusals = 0
        self._preempt = threading.Event()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Master:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def new_allocation(self) -> None:
        """A trial starts (again): nobody has asked it to stop yet."""
        self._preempt.clear()

    def told(self, group: str) -> dict[int, dict[str, Any]]:
        """Metrics of a group by step."""
        return {step: metrics for known, step, metrics in self.metrics if known == group}

    def steps(self) -> list[int]:
        """`steps_completed` of the checkpoints."""
        return [checkpoint["metadata"]["steps_completed"] for checkpoint in self.checkpoints]

    def answer(self, method: str, path: str, query: str, body: Any) -> tuple[int, Any]:
        with self._lock:
            self.requests.append(f"{method} {path}")
        for verb, pattern, route in _ROUTES:
            if verb == method and (match := re.fullmatch(pattern, path)):
                return route(self, *match.groups(), query=query, body=body)
        return 404, {"error": {"message": f"the stand-in has no route {method} {path}"}}

    def _create(self, query: str, body: dict[str, Any]) -> tuple[int, Any]:
        config = yaml.safe_load(body["config"])
        self.submissions.append(body)
        experiment = {
            "id": len(self.submissions),
            "archived": False,
            "config": config,
            "jobId": "job",
            "name": config["name"],
            "numTrials": 0,
            "originalConfig": body["config"],
            "projectId": 1,
            "projectOwnerId": 1,
            "searcherType": config["searcher"]["name"],
            "startTime": "2026-01-01T00:00:00Z",
            "state": "STATE_ACTIVE",
            "username": USER["username"],
        }
        return 200, {"experiment": experiment, "config": config}

    def _context(self, task: str, query: str, body: Any) -> tuple[int, Any]:
        """The submitted files, as a master packs them for a task."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for file in self.submissions[-1]["modelDefinition"]:
                entry = tarfile.TarInfo(file["path"])
                entry.type, entry.mode, entry.mtime = bytes([file["type"]]), file["mode"] & 0o7777, int(file["mtime"])
                content = base64.b64decode(file["content"])
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return 200, {"b64Tgz": base64.b64encode(packed.getvalue()).decode()}

    def _rendezvous(self, allocation: str, resources: str, query: str, body: Any) -> tuple[int, Any]:
        return 200, {"rendezvousInfo": {"addresses": ["127.0.0.1"], "rank": 0, "slots": [self.slots]}}

    def _preemption(self, allocation: str, query: str, body: Any) -> tuple[int, Any]:
        """A long poll."""
        end = time.monotonic() + float((re.search(r"timeout_seconds=(\d+)", query) or [0, "0"])[1])
        while not self._preempt.wait(0.05) and time.monotonic() < end and not self._closing.is_set():
            pass
        return 200, {"preempt": self._preempt.is_set()}

    def _acknowledged(self, allocation: str, query: str, body: Any) -> tuple[int, Any]:
        self.events.append("acknowledged")
        return 200, {}

    def _metrics(self, trial: str, query: str, body: dict[str, Any]) -> tuple[int, Any]:
        group, told = body["group"], body["metrics"]
        step = told["stepsCompleted"]
        if self.refuse and step >= self.refuse[1] and self.refusals > 0:
            self.refusals -= 1
            return self.refuse[0], {"error": {"message": "the database is away"}}
        self.metrics.append((group, step, told["metrics"]["avgMetrics"]))
        self.events.append(f"metrics {step}")
        if self.preempt_at is not None and step >= self.preempt_at:
            self._preempt.set()
        if self.end_at is not None and step >= self.end_at:
            self.state = "STATE_STOPPING_COMPLETED"
        return 200, {}

    def _trial(self, trial: str, query: str, body: Any) -> tuple[int, Any]:
        if self.silent:
            return 502, {}
        known = {"id": int(trial), "experimentId": 1, "hparams": {}, "restarts": 0, "totalBatchesProcessed": 0}
        return 200, {"trial": {**known, "startTime": "2026-01-01T00:00:00Z", "state": self.state}}

    def _agent(self, agent: str, query: str, body: Any) -> tuple[int, Any]:
        if self.silent:
            return 502, {}
        slots = {f"{number:03}": {"id": str(number)} for number in range(self.agent_slots)}
        return 200, {"agent": {"id": agent, "slotStats": {"brandStats": {}, "typeStats": {}}, "slots": slots}}

    def _progress(self, trial: str, query: str, body: dict[str, Any]) -> tuple[int, Any]:
        self.progress.append(body["progress"])
        return 200, {}

    def _checkpoint(self, query: str, body: dict[str, Any]) -> tuple[int, Any]:
        self.checkpoints.append(body)
        self.events.append(f"checkpoint {body['metadata']['steps_completed']}")
        return 200, {}

    def _nothing(self, *_: str, query: str, body: Any) -> tuple[int, Any]:
        return 200, {}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        master = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path, _, query = self.path.partition("?")
                length = int(self.headers.get("Content-Length") or 0)
                text = self.rfile.read(length)
                status, reply = master.answer(self.command, path, query, json.loads(text) if text else None)
                data = json.dumps(reply).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):  # a trial that has ended no longer listens
                    self.close_connection = True

            do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


Route = Callable[..., tuple[int, Any]]
_ROUTES: list[tuple[str, str, Route]] = [
    ("GET", "/info", lambda master, query, body: (200, {"version": "0.38.1", "cluster_id": "c", "cluster_name": ""})),
    ("POST", "/api/v1/auth/login", lambda master, query, body: (200, {"token": "token", "user": USER})),
    ("GET", "/api/v1/me", lambda master, query, body: (200, {"user": USER})),
    ("POST", "/api/v1/experiments", Master._create),
    ("GET", "/api/v1/tasks/([^/]+)/context_directory", Master._context),
    ("POST", "/api/v1/allocations/([^/]+)/acceleratorData", Master._nothing),
    ("GET", "/api/v1/allocations/([^/]+)/resources/([^/]+)/rendezvous", Master._rendezvous),
    ("POST", "/api/v1/runs/start", lambda master, query, body: (200, {"storageId": 1})),
    ("GET", "/api/v1/allocations/([^/]+)/signals/preemption", Master._preemption),
    ("POST", "/api/v1/allocations/([^/]+)/signals/ack_preemption", Master._acknowledged),
    ("GET", "/api/v1/trials/([^/]+)", Master._trial),
    ("GET", "/api/v1/agents/([^/]+)", Master._agent),
    ("POST", "/api/v1/trials/([^/]+)/metrics", Master._metrics),
    ("POST", "/api/v1/trials/([^/]+)/progress", Master._progress),
    ("POST", "/api/v1/trials/([^/]+)/runner/metadata", Master._nothing),
    ("POST", "/api/v1/checkpoints", Master._checkpoint),
    ("POST", "/api/v1/task/logs", Master._nothing),
]
