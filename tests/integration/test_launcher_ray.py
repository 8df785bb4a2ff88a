"""The launcher and the dispatcher against a real Ray head, with token authentication, on loopback."""

from __future__ import annotations

import http.server
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from factories import make_queue, make_settings, prepare_document
from segfleet.cluster.launcher import ClusterUnreachableError, Launcher, RayState
from segfleet.queue.clock import steady_clock
from segfleet.queue.dispatcher import Dispatcher
from segfleet.queue.service import Queue
from segfleet.queue.states import JobState
from world import lead

pytestmark = pytest.mark.integration

PORTS = (
    "port",
    "dashboard-port",
    "ray-client-server-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "node-manager-port",
    "object-manager-port",
)


@dataclass
class Head:
    address: str
    token: str


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def stop_tree(process: subprocess.Popen[bytes]) -> None:
    """End a head and everything it has started; Ray's processes lead groups of their own, so by pid."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.send_signal(signal.SIGTERM)
    psutil.wait_procs(family, timeout=15)
    for member in family:
        if member.is_running():
            member.kill()
    psutil.wait_procs(family, timeout=10)
    process.wait(timeout=10)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Ray's socket paths are limited to about 100 characters: pytest's own folders are too deep.
    folder = Path(tempfile.mkdtemp(prefix="sf-"))
    token = secrets.token_hex(32)
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "2",
    }
    command = [
        str(Path(sys.executable).with_name("ray")),
        *("start", "--head", "--block", "--num-cpus=2", "--object-store-memory=200000000"),
        *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"),
        *(f"--{name}={port}" for name, port in ports.items()),
    ]
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    found = Head(f"http://127.0.0.1:{ports['dashboard-port']}", token)
    try:
        launcher = Launcher(found.address, token)
        wait_for(lambda: process.poll() is not None or _has_node(launcher), 120)
        assert process.poll() is None, (folder / "head.log").read_text()
        launcher.close()
        yield found
    finally:
        stop_tree(process)
        shutil.rmtree(folder, ignore_errors=True)


def _has_node(launcher: Launcher) -> bool:
    try:
        return len(launcher.machines()) == 1
    except Exception:
        return False


@pytest.fixture
def launcher(head: Head) -> Iterator[Launcher]:
    made = Launcher(head.address, head.token)
    yield made
    made.close()


def has_ended(launcher: Launcher, submission_id: str) -> bool:
    status = launcher.status(submission_id)
    return status is not None and status.is_terminal


def test_the_head_tells_its_session_its_size_and_what_is_reserved(launcher: Launcher) -> None:
    assert launcher.session().startswith("session_")
    (machine,) = launcher.machines()
    assert (bool(machine.address), machine.cpus, machine.gpus) == (True, 2, 0)
    assert (machine.used_cpus, machine.used_gpus) == (0, 0)
    code = "import ray, time; ray.init(); ray.util.placement_group([{'CPU': 1}]).wait(); time.sleep(60)"
    launcher.submit("job-dddddddd-a1", f'{sys.executable} -c "{code}"', {}, {})
    wait_for(lambda: launcher.machines()[0].used_cpus == 1)
    launcher.stop("job-dddddddd-a1")
    wait_for(lambda: launcher.machines()[0].used_cpus == 0)


def test_a_submission_runs_once_however_often_it_is_sent(launcher: Launcher, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    command = f"echo run >> {mark}; echo hello $NAME"
    for _ in range(3):
        launcher.submit("job-aaaaaaaa-a1", command, {"NAME": "world"}, {"job": "job-aaaaaaaa"})
    wait_for(lambda: has_ended(launcher, "job-aaaaaaaa-a1"))
    launcher.submit("job-aaaaaaaa-a1", command, {"NAME": "world"}, {"job": "job-aaaaaaaa"})
    status = launcher.status("job-aaaaaaaa-a1")
    assert status is not None
    assert status.state == RayState.SUCCEEDED
    assert mark.read_text() == "run\n"
    assert "hello world\n" in launcher.logs("job-aaaaaaaa-a1")


def test_a_stopped_job_is_gone(launcher: Launcher, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    launcher.submit("job-aaaaaaab-a1", f"echo $$ > {pid}; exec sleep 600", {}, {})
    wait_for(pid.exists)
    launcher.stop("job-aaaaaaab-a1")
    wait_for(lambda: has_ended(launcher, "job-aaaaaaab-a1"))
    status = launcher.status("job-aaaaaaab-a1")
    assert status is not None
    assert status.state == RayState.STOPPED
    assert not psutil.pid_exists(int(pid.read_text()))
    launcher.stop("job-aaaaaaab-a1")


def test_what_the_head_does_not_know(launcher: Launcher) -> None:
    assert launcher.status("job-zzzzzzzz-a1") is None
    assert launcher.logs("job-zzzzzzzz-a1") == ""
    launcher.stop("job-zzzzzzzz-a1")


@pytest.mark.parametrize("token", [None, "wrong" * 12])
def test_no_or_a_wrong_token_is_refused(head: Head, token: str | None) -> None:
    stranger = Launcher(head.address, token)
    with pytest.raises(ClusterUnreachableError, match="token"):
        stranger.session()
    stranger.close()


DRIVER = """\
import json, os, sys, time, urllib.request
print("claiming as", os.environ["SEGFLEET_ATTEMPT"], flush=True)
urllib.request.urlopen(os.environ["SEGFLEET_URL"], data=json.dumps(
    [os.environ["SEGFLEET_ATTEMPT"], os.environ["SEGFLEET_CODE"]]).encode())
"""


def test_a_job_goes_through_the_dispatcher_and_its_log_outlives_ray(
    head: Head, launcher: Launcher, tmp_path: Path
) -> None:
    """A stand-in for `python -m segfleet_jobs.prepare`, run by a stand-in for the interpreter."""
    (tmp_path / "driver.py").write_text(DRIVER)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path / "driver.py"} "$@"\n')
    python.chmod(0o755)
    queue = make_queue(tmp_path, steady_clock())  # type: ignore[arg-type]
    with _Service(queue) as port:
        settings = make_settings(tmp_path, port=port, poll_s=0.1)
        dispatcher = Dispatcher(queue, lead(queue), launcher, settings, python=str(python))
        job, _ = queue.submit(prepare_document(), owner="ann")
        stop = threading.Event()
        thread = threading.Thread(target=dispatcher.run, args=(stop,))
        thread.start()
        try:
            wait_for(lambda: queue.attempts(job.id)[0].closed if queue.attempts(job.id) else False)
        finally:
            stop.set()
            thread.join()
    assert queue.get(job.id).state == JobState.SUCCEEDED
    log = settings.home.logs / f"{job.id}-a1.log"
    assert f"claiming as {job.id}-a1\n" in log.read_text()
    shown = httpx.get(f"{head.address}/api/jobs/{job.id}-a1", headers={"Authorization": f"Bearer {head.token}"}).json()
    assert shown["metadata"] == {"job": job.id, "attempt": "1", "fence": "1"}
    assert shown["entrypoint"] == f"{python} -P -m segfleet_jobs.prepare"
    queue.store.close()


class _Service:
    """Answers one driver: claims for it and completes its job."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def __enter__(self) -> int:
        queue = self._queue

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                attempt_id, code = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                grant = queue.claim(attempt_id, code, "0123456789abcdef")
                queue.complete(attempt_id, grant.token, {"samples": 1})
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return int(self._server.server_address[1])

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
