"""The service as a process: one port, one home, and an end that is always in time."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from processes import client_of, free_port, running, start

pytestmark = pytest.mark.integration

SPEC = {"kind": "prepare", "name": "shapes", "dataset": "synthetic", "out": "/data/shapes"}


def listening_on(port: int) -> list[str]:
    """Local addresses, in the kernel's hexadecimal form, on which somebody listens at this port."""
    table = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    listening = [line.split()[1] for line in table.splitlines() if line.split()[3] == "0A"]
    return [local for local in listening if local.endswith(f":{port:04X}")]


def test_a_life_with_kill_and_restart(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path, port) as process:
        assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
        token = (tmp_path / "token").read_text().strip()
        with client_of(tmp_path, port) as client:
            job = client.submit(SPEC, key="k")
            assert httpx.get(f"http://127.0.0.1:{port}/api/v1/jobs/%1b[2J%0d%0a").status_code == 401
            assert not client.status()["ray"]["ok"]
        assert listening_on(port) == [f"0100007F:{port:04X}"]
        assert token.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        process.kill()
        process.wait()
    with running(tmp_path, port) as process, client_of(tmp_path, port) as client:
        assert client.submit(SPEC, key="k")["id"] == job["id"]
        assert client.job(job["id"])["state"] == "queued"
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=12)
        assert time.monotonic() - began < 10
        assert process.returncode == 0
    assert token not in log
    assert [json.loads(line)["level"] for line in log.splitlines()]
    assert log.replace("\n", "").isprintable()


def test_a_second_service_on_the_same_home_or_port_says_why(tmp_path: Path) -> None:
    home, port = tmp_path / "home", free_port()
    with running(home, port):
        same_home, same_port = start(home, free_port()), start(tmp_path / "other", port)
        _, text = same_home.communicate(timeout=90)
        assert same_home.returncode == 2
        assert text.startswith("error: another service already runs on home")
        _, text = same_port.communicate(timeout=90)
        assert same_port.returncode == 2
        assert text.startswith(f"error: port {port} of 127.0.0.1 cannot be used: Address already in use")
        assert "Traceback" not in text


def test_a_wrong_setting_is_told_in_one_line(tmp_path: Path) -> None:
    reasons = {
        "SEGFLEET_PORT='many' is not a number": {"SEGFLEET_PORT": "many"},
        "SEGFLEET_PORT='99999' is no port": {"SEGFLEET_PORT": "99999"},
        "cannot be written to": {"SEGFLEET_HOME": "/proc/no/such"},
        "database cannot be opened": {"SEGFLEET_DATABASE_URL": "nonsense"},
        "invalid literal": {"SEGFLEET_DATABASE_URL": "postgresql+psycopg://u@h:abc/d"},
    }
    started = {
        reason: start(tmp_path / str(number), free_port(), **variables)
        for number, (reason, variables) in enumerate(reasons.items())
    }
    for reason, process in started.items():
        _, text = process.communicate(timeout=90)
        assert process.returncode == 2
        assert reason in text
        assert "Traceback" not in text
        assert len(text.strip().splitlines()) == 1


def test_a_route_that_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """MLflow accepts the connection and never answers."""
    with ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = free_port()
        process = stack.enter_context(
            running(tmp_path, port, SEGFLEET_MLFLOW_URI=f"http://127.0.0.1:{silent.getsockname()[1]}")
        )
        client = stack.enter_context(client_of(tmp_path, port))
        asking = threading.Thread(target=_ignoring(client.models), daemon=True)
        asking.start()
        silent.settimeout(30)
        stack.enter_context(silent.accept()[0])
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=12) == 0
        assert time.monotonic() - began < 10


def _ignoring(ask: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        try:
            ask()
        except Exception as error:
            print(error)

    return run
