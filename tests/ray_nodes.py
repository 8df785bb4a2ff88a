"""A Ray cluster of several nodes on this machine, each with an address of its own and all asking for the token."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from segfleet.cluster.launcher import Launcher
from segfleet.cluster.ports import free_ports
from segfleet.errors import LaunchError

_PORTS = (
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "node-manager-port",
    "object-manager-port",
)


@dataclass
class Nodes:
    """Head and workers.

    Attributes:
        address: Base URL of the dashboard.
        token: Of the cluster.
        processes: By the node's address.
    """

    address: str
    token: str
    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, address: str, *flags: str) -> None:
        """Start a node."""
        environment = {
            **{name: text for name, text in os.environ.items() if not name.startswith(("RAY_", "SEGFLEET_"))},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_JOB_STOP_WAIT_TIME_S": "5",
            # A node that is gone is missed within seconds.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_initial_delay_ms": "5000",
            "SEGFLEET_HOME": str(self.folder / "home"),
            "OMP_NUM_THREADS": "1",
        }
        ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
        command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        own = [f"--node-ip-address={address}", "--object-store-memory=100000000", "--min-worker-port=0"]
        named = [f"--{name}={port}" for name, port in ports.items()]
        with (self.folder / f"{address}.log").open("wb") as log:
            self.processes[address] = subprocess.Popen(
                [*command, *own, "--max-worker-port=0", *named, *flags],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def await_nodes(self, cpus: list[int], seconds: float = 120.0) -> None:
        """Wait until the cluster has nodes of these numbers of CPUs."""
        launcher = Launcher(self.address, self.token)
        deadline = time.monotonic() + seconds
        found: object = None
        while time.monotonic() < deadline:
            try:
                found = sorted(node.cpus for node in launcher.nodes())
            except LaunchError as error:
                found = error
            if found == sorted(cpus):
                launcher.close()
                return
            time.sleep(0.3)
        logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in self.folder.glob("*.log"))
        raise AssertionError(f"{found} instead of {cpus}\n{logs}")

    def kill(self, address: str) -> None:
        """A node loses its power: everything on it is gone at once."""
        process = self.processes.pop(address)
        family = _family(process)
        for member in family:
            member.kill()
        psutil.wait_procs(family, timeout=20)
        process.wait(20)


def _family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@contextmanager
def ray_nodes(workers: list[str], head: str = "127.0.0.4") -> Iterator[Nodes]:
    """A head without CPUs, and a node of one CPU at each address.

    None of them is 127.0.0.1: Ray takes that for a name of the machine, and replaces it.
    """
    # Ray's sockets must have short names.
    folder = Path(tempfile.mkdtemp(prefix="sf-"))
    gcs, dashboard, client = free_ports(3)
    nodes = Nodes(f"http://{head}:{dashboard}", secrets.token_hex(32), folder)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(_stop, nodes)
        nodes.start(
            head,
            *("--head", "--num-cpus=0", f"--port={gcs}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"),
            *(f"--dashboard-host={head}", f"--ray-client-server-port={client}"),
        )
        nodes.await_nodes([0])
        for address in workers:
            nodes.start(address, f"--address={head}:{gcs}", "--num-cpus=1")
        nodes.await_nodes([0] + [1] * len(workers))
        yield nodes


def _stop(nodes: Nodes) -> None:
    families = {address: _family(process) for address, process in nodes.processes.items()}
    for process in reversed(nodes.processes.values()):
        process.send_signal(signal.SIGTERM)
    everyone = [member for family in families.values() for member in family]
    _, alive = psutil.wait_procs(everyone, timeout=15)
    for member in alive:
        member.kill()
    psutil.wait_procs(alive, timeout=10)
    for process in nodes.processes.values():
        process.wait(10)
