"""A search on a real Ray head: the service's application over loopback HTTP, and drivers as processes of their own."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import psutil
import uvicorn
from mlflow.entities import Run

from segfleet.cluster.launcher import Launcher
from segfleet.cluster.ports import free_ports
from segfleet.queue import lifecycle
from segfleet.queue.states import FailureClass, StopFor
from serving import CODE, Service, serving

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
# What a search has running on the cluster, by the names that Ray gives to its processes.
MEMBERS = ("ray::RayTrainWorker", "ray::TrainController", "ray::ImplicitFunc", "ray::_run")


def tiny_search(shards: str, space: dict[str, Any], search: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A search whose trials take seconds; `train` and `resources` change the base's."""
    return {
        "kind": "search",
        "name": "tiny",
        "base": {
            "data": {"shards": shards},
            "model": {"backbone": "vit_tiny_patch16_224", "patch_size": 16, "decoder": "linear", "pretrained": False},
            "optim": {"name": "adamw", "lr": 0.001},
            "train": {
                "steps": 6,
                "global_batch": 2,
                "crop": 32,
                "validate_every": 2,
                "checkpoint_every": 1,
                "log_every": 2,
                "loader_processes": 0,
                **changes.pop("train", {}),
            },
            "eval": {"window": 48, "stride": 48},
            "resources": changes.pop("resources", {}),
        },
        "space": space,
        "search": search,
        **changes,
    }


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def stop_tree(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything it has started, by pid: Ray's processes lead groups of their own."""
    if process.poll() is not None:
        return  # it could not start: that is what the test has to say
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.send_signal(signal.SIGTERM)
    psutil.wait_procs(family, timeout=10)
    for member in family:
        if member.is_running():
            member.kill()
    psutil.wait_procs(family, timeout=10)
    process.wait(timeout=10)


@dataclass
class Stage:
    """A head, a service, and the drivers of searches."""

    service: Service
    url: str
    head: subprocess.Popen[bytes]
    environment: dict[str, str]
    folder: Path
    drivers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def submit(self, document: dict[str, Any]) -> str:
        answer = self.service.http.post("/api/v1/jobs", json={"spec": document}, headers=self.service.bearer)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def start(self, job_id: str, workers: int = 1) -> subprocess.Popen[bytes]:
        """Begin the job's next attempt with so many workers, and start its driver."""
        with self.service.queue.store.write() as tx:
            code_hash = hashlib.sha256(CODE.encode()).hexdigest()
            now = self.service.queue.clock()
            attempt = lifecycle.begin_attempt(tx, tx.job(job_id), workers, code_hash, now).id
        environment = {**self.environment, "SEGFLEET_URL": self.url, "SEGFLEET_ATTEMPT": attempt, "SEGFLEET_CODE": CODE}
        command = [sys.executable, "-P", "-m", "segfleet_jobs.search"]
        with (self.folder / f"{attempt}.log").open("wb") as log:
            driver = subprocess.Popen(command, env=environment, cwd=self.folder, stdout=log, stderr=log)
        self.drivers.append(driver)
        return driver

    def kill(self, job_id: str, driver: subprocess.Popen[bytes]) -> None:
        """Kill a driver; the service finds the attempt lost and puts the job back into the line."""
        driver.kill()
        driver.wait()
        with self.service.queue.store.write() as tx:
            job, attempt = tx.job(job_id), tx.attempts_of(job_id)[-1]
            now = self.service.queue.clock()
            lifecycle.end_failed(tx, job, attempt, FailureClass.INFRA, "killed", now=now, lost=True)

    def ask_to_yield(self, job_id: str) -> None:
        with self.service.queue.store.write() as tx:
            job, attempt = tx.job(job_id), tx.attempts_of(job_id)[-1]
            now = self.service.queue.clock()
            lifecycle.ask_to_stop(tx, job, attempt, StopFor.ROOM, who="test", now=now, reason="for job-x")

    def job(self, job_id: str) -> dict[str, Any]:
        return dict(self.service.http.get(f"/api/v1/jobs/{job_id}", headers=self.service.bearer).json())

    def trials(self, job_id: str) -> list[dict[str, Any]]:
        answer = self.service.http.get(f"/api/v1/jobs/{job_id}/trials", headers=self.service.bearer)
        assert answer.status_code == 200, answer.text
        return [dict(trial) for trial in answer.json()["trials"]]

    def runs(self, job_id: str) -> list[Run]:
        """MLflow's runs of the search's trials."""
        client = mlflow.MlflowClient(self.environment["MLFLOW_TRACKING_URI"])
        experiment = client.get_experiment_by_name("segfleet/default")
        assert experiment is not None
        return list(client.search_runs([experiment.experiment_id], f"tags.`segfleet.search` = '{job_id}'"))

    def log(self, job_id: str) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob(f"{job_id}-a*.log")))

    def members(self) -> list[psutil.Process]:
        """Processes of trials and their groups."""
        found = []
        for process in psutil.Process(self.head.pid).children(recursive=True):
            try:
                if " ".join(process.cmdline()).startswith(MEMBERS):
                    found.append(process)
            except psutil.Error:
                continue
        return found


@contextmanager
def stage(folder: Path, cpus: int = 2) -> Iterator[Stage]:
    """A Ray head with so many CPUs and a service beside it."""
    # Ray's socket paths are limited to about 100 characters: pytest's own folders are too deep.
    short = Path(tempfile.mkdtemp(prefix="sf-"))
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    tracking = f"sqlite:///{folder / 'mlflow.db'}"
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": (token := secrets.token_hex(32)),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": f"127.0.0.1:{ports['port']}",
        "MLFLOW_TRACKING_URI": tracking,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        str(Path(sys.executable).with_name("ray")),
        *("start", "--head", "--block", f"--num-cpus={cpus}", "--object-store-memory=80000000"),
        *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={short}"),
        # Ray's own range would overlap with what `free_ports` finds.
        *("--min-worker-port=0", "--max-worker-port=0"),
        *(f"--{name}={port}" for name, port in ports.items()),
    ]
    # Its tables once, before several processes come to make them.
    mlflow.MlflowClient(tracking).search_experiments()
    with (short / "head.log").open("wb") as log:
        own = {key: value for key, value in environment.items() if key != "RAY_ADDRESS"}
        head = subprocess.Popen(command, env=own, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        with serving(folder) as service, _listening(service) as url:
            launcher = Launcher(f"http://127.0.0.1:{ports['dashboard-port']}", token)
            wait_for(lambda: head.poll() is not None or _is_up(launcher))
            assert head.poll() is None, (short / "head.log").read_text()
            launcher.close()
            made = Stage(service, url, head, environment, folder)
            yield made
            for driver in made.drivers:
                driver.kill()
                driver.wait()
    finally:
        stop_tree(head)
        shutil.rmtree(short, ignore_errors=True)


@contextmanager
def _listening(service: Service) -> Iterator[str]:
    """The application on a port of its own."""
    port = free_ports(1)[0]
    server = uvicorn.Server(uvicorn.Config(service.http.app, port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


def _is_up(launcher: Launcher) -> bool:
    try:
        return len(launcher.machines()) == 1
    except Exception:
        return False
