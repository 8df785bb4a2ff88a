"""A service that is killed while it posts an event: the next one posts it again, under the same id."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from processes import client_of, free_port, running

pytestmark = pytest.mark.integration

SPEC = {"kind": "prepare", "name": "shapes", "dataset": "synthetic", "out": "/data/shapes"}


class Receiver(ThreadingHTTPServer):
    """Keeps what arrives; holds the answer back while `hold` is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[dict[str, Any]] = []
        self.arrived, self.hold, self.gone = threading.Event(), threading.Event(), threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        self.server.got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.server.arrived.set()
        if self.server.hold.is_set():
            self.server.gone.wait(60.0)
            return
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_what_was_sent_but_not_marked_is_sent_again(tmp_path: Path, receiver: Receiver) -> None:
    address, port = f"127.0.0.1:{receiver.server_port}", free_port()
    allowed = {"SEGFLEET_WEBHOOK_HOSTS": address}
    with running(tmp_path, port, **allowed) as process:
        with client_of(tmp_path, port) as client:
            made = client.create_webhook(f"http://{address}/in", ["submitted", "cancelled"])
            job = client.submit(SPEC)
            assert receiver.arrived.wait(20.0)
            until = time.monotonic() + 20.0
            while client.webhooks()[0]["deliveries"]["delivered"] < 1:
                assert time.monotonic() < until
                time.sleep(0.05)
            # An answer that never comes: the kill meets the event between its sending and its mark.
            receiver.hold.set()
            receiver.arrived.clear()
            client.cancel(job["id"])
            assert receiver.arrived.wait(20.0)
        process.kill()
        process.wait()
    receiver.hold.clear()
    receiver.gone.set()
    with running(tmp_path, port, **allowed), client_of(tmp_path, port) as client:
        until = time.monotonic() + 40.0
        while client.webhooks()[0]["deliveries"]["pending"]:
            assert time.monotonic() < until
            time.sleep(0.1)
        rows = client.deliveries(made["id"])
    types = [event["type"] for event in receiver.got]
    assert types[:2] == ["job.submitted", "job.cancelled"]
    assert set(types[1:]) == {"job.cancelled"}
    assert len(types) == 3
    assert len({event["id"] for event in receiver.got[1:]}) == 1
    # Nothing was written down of the try that was cut off.
    assert [(row["event"], row["state"], row["tries"]) for row in rows] == [
        ("cancelled", "delivered", 1),
        ("submitted", "delivered", 1),
    ]
    assert (tmp_path / "webhook-key").stat().st_mode & 0o777 == 0o600
