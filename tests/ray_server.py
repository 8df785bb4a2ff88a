"""A `FakeLauncher` behind Ray's REST interface: a cluster for services in processes of their own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fakes import FakeLauncher


@contextmanager
def serving_ray(ray: FakeLauncher) -> Iterator[str]:
    """Serve a cluster in memory; its base URL. The cluster answers one request at a time."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with lock:
                self._answer(*_get(ray, self.path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
            with lock:
                self._answer(*_post(ray, self.path, body))

        def log_message(self, *_: Any) -> None:
            """Nothing."""

        def handle(self) -> None:
            # Services are killed here.
            with suppress(ConnectionError):
                super().handle()

        def _answer(self, status: int, document: Any) -> None:
            data = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _get(ray: FakeLauncher, path: str) -> tuple[int, Any]:
    if path == "/api/version":
        return 200, {"session_name": ray.session()}
    if path.startswith("/api/v0/nodes"):
        nodes = [
            {"node_id": one.id, "state": "ALIVE", "resources_total": {"CPU": one.cpus, "GPU": one.gpus}}
            for one in ray.machines()
        ]
        return 200, {"data": {"result": {"result": nodes}}}
    if path.startswith("/api/v0/placement_groups"):
        return 200, {"data": {"result": {"result": []}}}
    name = path.split("/")[3]
    if path.endswith("/logs"):
        return 200, {"logs": ray.logs(name)}
    status = ray.status(name)
    return (404, {}) if status is None else (200, {"status": status.state.value, "message": status.message})


def _post(ray: FakeLauncher, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    if path.endswith("/stop"):
        ray.stop(path.split("/")[3])
        return 200, {}
    name = body["submission_id"]
    if name in ray.jobs:
        return 500, {"error": f"Job with submission_id {name} already exists"}
    ray.submit(name, body["entrypoint"], body["runtime_env"]["env_vars"], body["metadata"])
    return 200, {"submission_id": name}
