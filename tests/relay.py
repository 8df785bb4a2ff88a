"""A relay before an HTTP server on the loopback interface, which a test may let do something else than relay."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

_HOP = frozenset({"connection", "transfer-encoding", "keep-alive", "content-length"})


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    data: bytes


class Request(BaseHTTPRequestHandler):
    """One request; its handler answers it, with what `forward` brings or otherwise."""

    protocol_version = "HTTP/1.1"
    target: SplitResult
    handle_request: Callable[[Request, bytes], None]

    def forward(self, body: bytes) -> Answer:
        connection = http.client.HTTPConnection(self.target.hostname or "", self.target.port, timeout=60)
        headers = {name: text for name, text in self.headers.items() if name.lower() not in (*_HOP, "host")}
        connection.request(self.command, self.path, body, {**headers, "Host": self.target.netloc})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return Answer(answer.status, dict(answer.getheaders()), data)

    def answer(self, answer: Answer, *, cut_to: int | None = None) -> None:
        """Send the answer, or its first bytes and then nothing."""
        self.send_response_only(answer.status)
        for name, text in answer.headers.items():
            if name.lower() not in _HOP:
                self.send_header(name, text)
        self.send_header("Content-Length", str(len(answer.data)))
        self.end_headers()
        self.wfile.write(answer.data[:cut_to])
        self.close_connection = cut_to is not None

    def _relay(self) -> None:
        type(self).handle_request(self, self._body())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _relay  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def relay(url: str, handle: Callable[[Request, bytes], None]) -> Iterator[str]:
    """Address of the relay; `handle` gets each request with its body."""
    handler = type("Handler", (Request,), {"target": urlsplit(url), "handle_request": staticmethod(handle)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
