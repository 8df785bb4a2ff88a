"""Streams of a real service: over its kill nothing is missed or told twice, and its end is in time."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from processes import client_of, free_port, running

pytestmark = pytest.mark.integration

SPEC = {"kind": "prepare", "name": "shapes", "dataset": "synthetic", "out": "/data/shapes"}


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def open_streams(stack: ExitStack, port: int, token: str, number: int) -> list[httpx.Response]:
    http = stack.enter_context(httpx.Client(timeout=30, limits=httpx.Limits(max_connections=None)))
    headers = {"Authorization": f"Bearer {token}"}
    url = f"http://127.0.0.1:{port}/api/v1/events"
    return [stack.enter_context(http.stream("GET", url, headers=headers)) for _ in range(number)]


def test_the_history_is_told_once_over_kills_of_the_service(tmp_path: Path) -> None:
    port, heard = free_port(), list[tuple[int, str]]()

    def listen() -> None:
        with client_of(tmp_path, port) as client:
            for line in client.history(after=0, timeout_s=90):
                heard.append((line.data["seq"], line.data["job"]))
                if len(heard) == 24:
                    return

    listener = threading.Thread(target=listen)
    submitted = []
    for round_ in range(3):
        with running(tmp_path, port) as process, client_of(tmp_path, port) as client:
            if round_ == 0:
                listener.start()
            for _ in range(4):
                job = client.submit(SPEC)
                client.set_priority(job["id"], 70)
                submitted.append(job["id"])
            until(lambda: heard, "the first line")
            process.kill()
            process.wait()
    with running(tmp_path, port):
        listener.join(60)
        assert not listener.is_alive()
    assert [seq for seq, _ in heard] == sorted({seq for seq, _ in heard})
    assert [job for _, job in heard] == [job for job in submitted for _ in range(2)]


def test_waiting_for_a_job_outlives_the_service(tmp_path: Path) -> None:
    port, found = free_port(), list[dict[str, Any]]()
    with running(tmp_path, port) as process, client_of(tmp_path, port) as client:
        job = client.submit(SPEC)

        def wait() -> None:
            with client_of(tmp_path, port) as other:
                found.append(other.wait(job["id"], timeout_s=90))

        waiting = threading.Thread(target=wait)
        waiting.start()
        process.kill()
        process.wait()
    with running(tmp_path, port), client_of(tmp_path, port) as client:
        client.cancel(job["id"])
        waiting.join(60)
    assert [job["state"] for job in found] == ["cancelled"]


def test_streams_are_limited_and_do_not_hold_up_the_end(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path, port) as process, ExitStack() as stack:
        token = (tmp_path / "token").read_text().strip()
        streams = open_streams(stack, port, token, 100)
        assert {stream.status_code for stream in streams} == {200}
        refused = open_streams(stack, port, token, 1)[0]
        assert refused.status_code == 429
        refused.read()
        assert refused.json()["code"] == "too_many_streams"

        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=12)
        assert process.returncode == 0
        assert time.monotonic() - began < 10
        for stream in streams:
            assert b"".join(stream.iter_raw()).startswith(b":\n\n")
