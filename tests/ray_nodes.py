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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
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


# Ray gives a node 30 s to register, no matter how busy the machine is, and offers no way to change that.
_TRIES = 4
_TOO_SLOW = "timed out during startup"


@dataclass
class Nodes:
    """Head and workers.

    Attributes:
        address: Base URL of the dashboard.
        token: Of the cluster.
        gcs: Where workers join.
        variables: More of the environment of all nodes, and so of the jobs.
        processes: By the node's address.
    """

    address: str
    token: str
    folder: Path
    gcs: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    flags: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def join(self, address: str, cpus: int = 1) -> None:
        """Start a worker; one that was killed may come back to its address."""
        self.start(address, f"--address={self.gcs}", f"--num-cpus={cpus}")

    def start(self, address: str, *flags: str) -> None:
        """Start a node."""
        self.flags[address] = flags
        environment = {
            **{name: text for name, text in os.environ.items() if not name.startswith(("RAY_", "SEGFLEET_"))},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_JOB_STOP_WAIT_TIME_S": "5",
            # A node that is gone is missed within seconds.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "2000",
            "RAY_health_check_initial_delay_ms": "5000",
            "SEGFLEET_HOME": str(self.folder / "home"),
            "OMP_NUM_THREADS": "1",
            **self.variables,
        }
        ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
        command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        own = [f"--node-ip-address={address}", "--object-store-memory=100000000", "--min-worker-port=0"]
        # What a node needs not for a job takes as long to start as all the rest; one reader of logs does for a machine.
        own += ["--no-monitor", f"--include-log-monitor={'--head' in flags}"]
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
        """Wait until the cluster has nodes of these numbers of CPUs; a node that Ray found too slow is started anew."""
        launcher = Launcher(self.address, self.token)
        deadline = time.monotonic() + seconds
        found: object = None
        tries = dict.fromkeys(self.processes, 1)
        while time.monotonic() < deadline:
            for address, process in list(self.processes.items()):
                if process.poll() is not None and tries[address] < _TRIES and _TOO_SLOW in self._log(address):
                    tries[address] += 1
                    self.start(address, *self.flags[address])
            try:
                found = sorted(node.cpus for node in launcher.machines())
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

    def freeze(self, address: str) -> list[psutil.Process]:
        """A node is cut off: nothing on it hears or says anything, but all of it is still there.

        Returns:
            Its processes, for `thaw`.
        """
        family = _family(self.processes[address])
        for member in family:
            member.suspend()
        return family

    def thaw(self, family: list[psutil.Process]) -> None:
        """A node that was cut off is back: everything on it goes on where it was."""
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.resume()

    def drain(self, address: str, seconds: int) -> None:
        """Tell Ray that a node will be taken away, as an autoscaler does on a notice of the cloud."""
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = httpx.get(f"{self.address}/api/v0/nodes", headers=headers, timeout=20.0).json()
        (node,) = [
            node["node_id"]
            for node in answer["data"]["result"]["result"]
            if node["node_ip"] == address and node["state"] == "ALIVE"
        ]
        command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "drain-node", f"--address={self.gcs}"]
        why = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"]
        subprocess.run(
            [*command, f"--node-id={node}", *why, f"--deadline-remaining-seconds={seconds}"],
            env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token},
            check=True,
            timeout=60,
            capture_output=True,
        )

    def workers(self, address: str) -> list[psutil.Process]:
        """Training processes among a node's own."""
        return [member for member in _family(self.processes[address]) if "RayTrainWorker" in _title(member)]

    def _log(self, address: str) -> str:
        return (self.folder / f"{address}.log").read_text(errors="replace")


def _family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@contextmanager
def ray_nodes(workers: list[str], head: str = "127.0.0.4", **variables: str) -> Iterator[Nodes]:
    """A head without CPUs, and a node of one CPU at each address.

    None of them is 127.0.0.1: Ray takes that for a name of the machine, and replaces it.

    Args:
        workers: Their addresses.
        head: The head's address.
        variables: More of the environment of all nodes, and so of the jobs.
    """
    # Ray's sockets must have short names.
    folder = Path(tempfile.mkdtemp(prefix="sf-"))
    gcs, dashboard, client = free_ports(3)
    nodes = Nodes(f"http://{head}:{dashboard}", secrets.token_hex(32), folder, f"{head}:{gcs}", variables)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(_stop, nodes)
        nodes.start(
            head,
            *("--head", "--num-cpus=0", f"--port={gcs}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"),
            *(f"--dashboard-host={head}", f"--ray-client-server-port={client}"),
        )
        nodes.await_nodes([0])
        for number, address in enumerate(workers, 1):
            # One after the other: together they would be slow enough to fail.
            nodes.join(address)
            nodes.await_nodes([0] + [1] * number)
        yield nodes


def _stop(nodes: Nodes) -> None:
    families = {address: _family(process) for address, process in nodes.processes.items()}
    for process in reversed(nodes.processes.values()):
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)  # a test that has failed may have left it stopped
    everyone = [member for family in families.values() for member in family]
    _, alive = psutil.wait_procs(everyone, timeout=15)
    for member in alive:
        member.kill()
    psutil.wait_procs(alive, timeout=10)
    for process in nodes.processes.values():
        process.wait(10)
