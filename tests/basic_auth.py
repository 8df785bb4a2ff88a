"""A door with a password before an HTTP server on the loopback interface, as MLflow's basic-auth application has it."""

from __future__ import annotations

import base64
import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

USER, PASSWORD = "segfleet", "correct-horse-battery"
LOGIN = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
_OPEN = ("/health", "/version")
_HOP = frozenset({"connection", "transfer-encoding", "keep-alive", "content-length"})


@contextmanager
def behind_password(url: str) -> Iterator[tuple[str, list[str]]]:
    """(address of the door, paths that were asked for without the right password)."""
    expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    target, refused = urlsplit(url), []

    class Door(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path not in _OPEN and self.headers.get("Authorization") != expected:
                refused.append(self.path)
                self._answer(401, {"WWW-Authenticate": 'Basic realm="mlflow"'}, b"You are not authenticated.")
                return
            connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
            headers = {name: text for name, text in self.headers.items() if name.lower() not in (*_HOP, "host")}
            connection.request(self.command, self.path, body, {**headers, "Host": target.netloc})
            answer = connection.getresponse()
            data = answer.read()
            self._answer(answer.status, dict(answer.getheaders()), data)
            connection.close()

        def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.send_response_only(status)
            for name, text in headers.items():
                if name.lower() not in _HOP:
                    self.send_header(name, text)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", refused
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
