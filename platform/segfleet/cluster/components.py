"""What one machine runs: the commands, switches and health questions of Ray, MLflow and the service."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from segfleet.cluster.launcher import Launcher
from segfleet.cluster.ports import free_ports
from segfleet.errors import LaunchError, SettingsError
from segfleet.settings import Home, read_token

OBJECT_STORE_BYTES = 200_000_000
LOOPBACK = "127.0.0.1"
# In the order of ending: with the service gone nothing new is dispatched to a cluster that is going down. The times are
# what each part gets to end by itself, seconds.
GRACE_S = {"service": 12.0, "ray": 8.0, "mlflow": 8.0}

# Not TMPDIR: the next 'up' and 'down' must find the same folder, whatever shell they are called from.
SHORT_FOLDER = Path("/tmp")  # noqa: S108 - what is made in it is checked to be private
# Unix sockets have paths of at most 107 bytes, of which Ray's session folder takes up to 65.
_LONGEST_RAY_FOLDER = 38
_RAY_FLAG_PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "object-manager-port",
    "node-manager-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "ray-client-server-port",
)
_RAY_VARIABLE_PORTS = ("DASHBOARD_METRIC_PORT", "AUTOSCALER_METRIC_PORT")
_RAY_PORTS = (*_RAY_FLAG_PORTS, *_RAY_VARIABLE_PORTS)
# What a user's shell may hold and would send a part to another cluster, server or account.
_FOREIGN = (
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "RAY_AUTH_TOKEN",
    "RAY_TMPDIR",
    "MLFLOW_TRACKING_URI",
    "SEGFLEET_URL",
    "SEGFLEET_TOKEN",
)


@dataclass(frozen=True, slots=True)
class Component:
    """One of the parts that `segfleet up` keeps running.

    Attributes:
        name: Short name: of its log, of its entry in the state file.
        title: For people.
        command: Program and arguments.
        environment: Changes to the environment; None removes a variable.
        address: Base URL, for people.
        answers: Asks it whether it is ready for work.
        survives: Whether the next `up` takes it over when this one was killed; jobs need Ray and MLflow to go on.
    """

    name: str
    title: str
    command: tuple[str, ...]
    environment: Mapping[str, str | None]
    address: str
    answers: Callable[[], bool]
    survives: bool

    @property
    def fingerprint(self) -> str:
        """Changes whenever command or environment do."""
        content = json.dumps([self.command, dict(sorted(self.environment.items()))])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def choose_ports(service: int, kept: Mapping[str, int]) -> dict[str, int]:
    """A port for everything that listens: the service's as asked for, MLflow and Ray's Jobs API next to it if free.

    Args:
        service: The service's port.
        kept: Ports in use by parts that are taken over.

    Raises:
        SettingsError: no free ports.
    """
    names = [name for name in ("mlflow", "dashboard-port", *_RAY_PORTS) if name not in kept]
    names = list(dict.fromkeys(names))
    taken = frozenset({service, *kept.values()})
    found = free_ports(len(names), preferred=(service + 1, service + 2), taken=taken)
    return {"service": service, **kept, **dict(zip(names, found, strict=True))}


def ports_of(component: str, ports: Mapping[str, int]) -> dict[str, int]:
    """Those of the ports that belong to one component."""
    names = _RAY_PORTS if component == "ray" else (component,)
    return {name: ports[name] for name in names if name in ports}


def components(home: Home, ports: Mapping[str, int]) -> tuple[Component, ...]:
    """All parts, in the order in which they are started; both token files must be there."""
    return (_ray(home, ports), _mlflow(home, ports["mlflow"]), _service(home, ports))


def ray_folder(home: Home) -> Path:
    """Where Ray keeps its sessions: in the home, or in /tmp if that path is too long.

    Ray opens its folder to everybody, so it lies inside one that is closed.

    Raises:
        SettingsError: the closed folder is there but belongs to somebody else or is open.
    """
    closed = _closed_ray_folder(home)
    closed.mkdir(mode=0o700, exist_ok=True)
    status = closed.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise SettingsError(f"{str(closed)!r} is not a private folder of yours; remove it")
    folder = closed / "r"
    folder.mkdir(exist_ok=True)
    return folder


def forget_outside_ray_folder(home: Home) -> None:
    """Remove Ray's folder if it lies outside the home, where nobody would ever look for it again."""
    closed = _closed_ray_folder(home)
    if closed.parent != home.root and closed.is_dir() and closed.stat().st_uid == os.getuid():
        shutil.rmtree(closed, ignore_errors=True)


def _closed_ray_folder(home: Home) -> Path:
    closed = home.root / "ray"
    if len(os.fsencode(closed)) <= _LONGEST_RAY_FOLDER:
        return closed
    short = hashlib.sha256(os.fsencode(home.root)).hexdigest()[:8]
    return SHORT_FOLDER / f"segfleet-{os.getuid()}-{short}"


def _ray(home: Home, ports: Mapping[str, int]) -> Component:
    address = f"http://{LOOPBACK}:{ports['dashboard-port']}"
    flags = {
        "node-ip-address": LOOPBACK,
        "dashboard-host": LOOPBACK,
        "include-dashboard": "true",
        "object-store-memory": str(OBJECT_STORE_BYTES),
        "temp-dir": str(ray_folder(home)),
        # Workers take whatever port the system gives them.
        "min-worker-port": "0",
        "max-worker-port": "0",
        **{name: str(ports[name]) for name in _RAY_FLAG_PORTS},
    }
    command = (sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats")
    environment: dict[str, str | None] = {
        **dict.fromkeys(_FOREIGN),
        **_ray_authentication(home),
        # Jobs keep their shard cache there. Keys of object stores they have as Ray has them, by inheritance alone: what
        # is handed to Ray with a job, Ray shows to whoever asks.
        "SEGFLEET_HOME": str(home.root),
        # Without it Ray replaces 127.0.0.1 by the machine's address and then listens on every interface.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "15",
        # Job logs are read while they are written.
        "PYTHONUNBUFFERED": "1",
        **{name: str(ports[name]) for name in _RAY_VARIABLE_PORTS},
    }
    return Component(
        name="ray",
        title="Ray",
        command=(*command, *(f"--{name}={value}" for name, value in flags.items())),
        environment=environment,
        address=address,
        answers=lambda: _ray_answers(address, home),
        survives=True,
    )


def _mlflow(home: Home, port: int) -> Component:
    address = f"http://{LOOPBACK}:{port}"
    flags = {
        "host": LOOPBACK,
        "port": str(port),
        "workers": "1",
        "backend-store-uri": home.mlflow_store,
        "artifacts-destination": str(home.mlflow_artifacts),
        "uvicorn-opts": "--log-level=warning",
    }
    environment: dict[str, str | None] = {
        **dict.fromkeys(_FOREIGN),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Otherwise the server starts a crowd of job workers that take 2 GB.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    return Component(
        name="mlflow",
        title="MLflow",
        command=(
            sys.executable,
            "-P",
            "-m",
            "mlflow",
            "server",
            *(f"--{name}={value}" for name, value in flags.items()),
        ),
        environment=environment,
        address=address,
        answers=lambda: _http_answers(f"{address}/health"),
        survives=True,
    )


def _service(home: Home, ports: Mapping[str, int]) -> Component:
    address = f"http://{LOOPBACK}:{ports['service']}"
    environment: dict[str, str | None] = {
        **dict.fromkeys(_FOREIGN),
        **_ray_authentication(home),
        "SEGFLEET_HOME": str(home.root),
        "SEGFLEET_PORT": str(ports["service"]),
        "SEGFLEET_RAY_ADDRESS": f"http://{LOOPBACK}:{ports['dashboard-port']}",
        "SEGFLEET_MLFLOW_URI": f"http://{LOOPBACK}:{ports['mlflow']}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return Component(
        name="service",
        title="Service",
        command=(sys.executable, "-P", "-m", "segfleet.server"),
        environment=environment,
        address=address,
        answers=lambda: _http_answers(f"{address}/healthz"),
        # It may be killed at any moment by design, and a new one has this version's code.
        survives=False,
    )


def _ray_authentication(home: Home) -> dict[str, str | None]:
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(home.ray_token)}


def _http_answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5.0, trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _ray_answers(address: str, home: Home) -> bool:
    try:
        with contextlib.closing(Launcher(address, read_token(home.ray_token))) as launcher:
            return launcher.machines() != ()
    except LaunchError:
        return False
