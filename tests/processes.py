"""Real servers for the tests: the service and MLflow as processes on ports of their own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from segfleet.client import Client


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def start(home: Path, port: int, log: Path | None = None, **variables: str) -> subprocess.Popen[str]:
    """The service on a home; Ray and MLflow are nowhere unless the variables say where.

    Args:
        home: Of the service.
        port: Where it listens.
        log: Takes what it says, appended; None: pipes.
        variables: More of its environment.
    """
    environment = {
        **{name: text for name, text in os.environ.items() if not name.startswith("SEGFLEET_")},
        "SEGFLEET_HOME": str(home),
        "SEGFLEET_PORT": str(port),
        "SEGFLEET_RAY_ADDRESS": "http://127.0.0.1:1",
        "SEGFLEET_MLFLOW_URI": "http://127.0.0.1:1",
        **variables,
    }
    command = [sys.executable, "-m", "segfleet.server"]
    if log is None:
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with log.open("a", encoding="utf-8") as out:
        return subprocess.Popen(command, env=environment, stderr=out, stdout=out, text=True)


@contextmanager
def running(home: Path, port: int, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """The service, once it answers."""
    process = start(home, port, **variables)
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=2).is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        assert process.poll() is None, process.communicate()
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def client_of(home: Path, port: int) -> Client:
    """With the home's own token."""
    return Client(f"http://127.0.0.1:{port}", (home / "token").read_text().strip())


@contextmanager
def mlflow_server(folder: Path, artifacts: str = "", **variables: str) -> Iterator[str]:
    """An MLflow server with its files in a folder, or its artifacts elsewhere; its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = start_mlflow(folder, port, artifacts, **variables)
    try:
        await_mlflow(url, process)
        yield url
    finally:
        os.killpg(process.pid, 15)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


def start_mlflow(folder: Path, port: int, artifacts: str = "", **variables: str) -> subprocess.Popen[bytes]:
    """An MLflow server in a session of its own, with its files in a folder, or its artifacts elsewhere."""
    flags = [
        f"--port={port}",
        "--host=127.0.0.1",
        "--workers=1",
        f"--backend-store-uri=sqlite:///{folder}/mlflow.db",
        f"--artifacts-destination={artifacts or folder / 'artifacts'}",
    ]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mlflow", "server", *flags]
    with (folder / "server.log").open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdout=log,
            stderr=log,
            env={**os.environ, **quiet, **variables},
            start_new_session=True,
        )


def await_mlflow(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=2).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError("the MLflow server did not start")
