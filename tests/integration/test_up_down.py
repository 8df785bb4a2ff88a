"""`segfleet up`, `status` and `down` with a real Ray, a real MLflow and the real service."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from segfleet.cluster.ports import free_ports
from segfleet.cluster.processes import end_tree, marked
from segfleet.cluster.state import State
from segfleet.settings import Home

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

PARTS = ("service", "ray", "mlflow")
START_S = 180.0


class Machine:
    """One home folder and the command line on it."""

    def __init__(self, root: Path) -> None:
        self.home, self.port = Home(root), free_ports(1)[0]
        self.environment = {**os.environ, "SEGFLEET_HOME": str(root)}
        self.environment.pop("SEGFLEET_URL", None)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "segfleet.cli.main", *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), env=self.environment, capture_output=True, text=True, timeout=START_S, check=False
        )

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.run("status", "--json").stdout))

    def processes(self, state: State) -> list[psutil.Process]:
        return [process for part in PARTS for process in marked(state.mark(part))]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path / "home")
    yield machine
    machine.run("down")
    state = State.load(machine.home)
    for part in PARTS if state else ():
        end_tree(None, state.mark(part), 0.0)  # type: ignore[union-attr]


def state_of(machine: Machine) -> State:
    state = State.load(machine.home)
    assert state is not None
    return state


def listeners(processes: list[psutil.Process]) -> set[str]:
    """Addresses on which the processes listen."""
    found = set()
    for process in processes:
        for connection in process.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN:
                found.add(connection.laddr.ip.removeprefix("::ffff:"))
    return found


def test_up_serves_on_loopback_alone_and_ctrl_c_leaves_nothing(machine: Machine) -> None:
    with subprocess.Popen(
        machine.command("up", "--port", str(machine.port)), env=machine.environment, stdout=subprocess.PIPE, text=True
    ) as up:
        assert up.stdout is not None
        assert any(line.startswith("ready: ") for line in up.stdout)
        state = state_of(machine)
        assert listeners(machine.processes(state)) == {"127.0.0.1"}
        assert machine.home.token.stat().st_mode & 0o077 == 0

        status = machine.status()
        assert all(part["answers"] for part in status["parts"])
        assert status["service"]["mlflow"]["ok"]

        second = machine.run("up", "--port", str(machine.port))
        assert second.returncode == 2
        assert f"pid {up.pid}" in second.stderr

        up.send_signal(signal.SIGINT)
        assert "stopped" in up.stdout.read()
    assert up.returncode == 0
    assert machine.processes(state) == []
    assert machine.run("down").returncode == 0


def test_a_killed_up_is_taken_over_and_ended_by_down(machine: Machine) -> None:
    assert machine.run("up", "--port", str(machine.port), "--detach").returncode == 0
    old = state_of(machine)
    for pid in (old.up_pid, old.processes["service"].pid):
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(old.up_pid) and psutil.Process(old.up_pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)

    again = machine.run("up", "--port", str(machine.port), "--detach")
    assert again.returncode == 0, again.stderr
    assert "Ray: taken over" in again.stdout
    new = state_of(machine)
    assert new.processes["ray"] == old.processes["ray"]
    assert new.processes["mlflow"] == old.processes["mlflow"]
    assert all(part["answers"] for part in machine.status()["parts"])

    ended = machine.run("down")
    assert ended.returncode == 0, ended.stderr
    assert machine.processes(new) == []
    assert machine.run("status").returncode == 1


def test_a_port_in_use_is_wrong_use_and_starts_nothing(machine: Machine) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", machine.port))
        busy.listen()
        refused = machine.run("up", "--port", str(machine.port))
    assert refused.returncode == 2
    assert f"port {machine.port} of 127.0.0.1 is in use" in refused.stderr
    assert State.load(machine.home) is None
