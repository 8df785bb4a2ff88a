"""A file server on the loopback interface that misbehaves as told, for tests of downloads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# A Last-Modified that every file has, if a test has one sent.
CHANGED = "Wed, 21 Oct 2015 07:28:00 GMT"


@dataclass
class Fault:
    """What the next answer does instead of the right thing.

    Attributes:
        status: Answer this and nothing else.
        headers: Sent with it.
        cut_after: Bytes of the body that are sent before the connection is closed.
        stall: Keep the connection open after them, until the server ends.
        longer: Bytes that are told in the length but never sent.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    stall: bool = False
    longer: int = 0


@dataclass
class Asked:
    """A request that came in, and how it was answered."""

    path: str
    range: str | None
    status: int
    host: str | None = None


@dataclass
class Behaviour:
    """Everything a test may change while the server runs.

    Attributes:
        files: Content by path.
        etag: None: no validator is sent.
        ranges: Whether parts are given.
        length: Whether the length is told.
        faults: One for each of the next requests; then all goes well.
        asked: Log of requests.
    """

    url: str
    files: dict[str, bytes]
    etag: str | None = '"v1"'
    ranges: bool = True
    length: bool = True
    faults: deque[Fault] = field(default_factory=deque)
    asked: list[Asked] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)


@contextmanager
def file_server(files: dict[str, bytes] | None = None) -> Iterator[Behaviour]:
    """A running server, on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            pass

        def do_GET(self) -> None:
            with_faults(self, behaviour)

        def do_HEAD(self) -> None:
            with_faults(self, behaviour)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    behaviour = Behaviour(f"http://127.0.0.1:{server.server_port}", files or {})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield behaviour
    finally:
        behaviour.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def with_faults(handler: BaseHTTPRequestHandler, behaviour: Behaviour) -> None:
    fault = behaviour.faults.popleft() if behaviour.faults else Fault()
    content = behaviour.files.get(handler.path.lstrip("/"))
    status = fault.status or (404 if content is None else 200)
    wanted = handler.headers.get("Range")
    start = 0
    validators = (behaviour.etag, CHANGED)
    if status == 200 and wanted and behaviour.ranges and handler.headers.get("If-Range") in validators:
        start, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
    behaviour.asked.append(Asked(handler.path, wanted, status, handler.headers.get("Host")))
    handler.send_response(status)
    for name, value in fault.headers.items():
        handler.send_header(name, value)
    body = content[start:] if content is not None and status in (200, 206) else b""
    if behaviour.etag and body and "ETag" not in fault.headers:
        handler.send_header("ETag", behaviour.etag)
    if status == 206 and content is not None and fault.status is None:
        handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    if behaviour.length:
        handler.send_header("Content-Length", str(len(body) + fault.longer))
    handler.end_headers()
    if handler.command == "GET":
        handler.wfile.write(body[: fault.cut_after])
    if fault.stall:
        handler.wfile.flush()
        behaviour.ended.wait()
    handler.close_connection = True
