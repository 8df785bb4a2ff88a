"""The real stack that `soak_stack.py` disturbs: Ray nodes, MLflow behind a relay, the service, and its jobs."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from mlflow_faults import Faults, behind_faults
from processes import await_mlflow, free_port, start, start_mlflow
from ray_nodes import Nodes, ray_nodes
from segfleet.client import Client
from training import make_dataset

MARK = "SOAK_MARK"
HEAD = "127.0.0.4"
NODES = ("127.0.0.2", "127.0.0.3")
STEPS = 40
START_S = 120.0


@dataclass
class World:
    """All that runs, and what was asked of it.

    Attributes:
        folder: Everything is below.
        home: Of the service.
        shards: A small prepared dataset.
        nodes: Of Ray.
        faults: What MLflow's relay does.
        accepted: Spec of each job that the service took, by id.
        ends: How a job may end besides `succeeded`.
    """

    folder: Path
    home: Path
    port: int
    shards: str
    nodes: Nodes
    faults: Faults
    mlflow_port: int
    mlflow_address: str
    mlflow: subprocess.Popen[bytes]
    service: subprocess.Popen[str] | None = None
    accepted: dict[str, dict[str, Any]] = field(default_factory=dict)
    ends: dict[str, set[str]] = field(default_factory=dict)
    doubled_submits: int = 0

    def __post_init__(self) -> None:
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """With the home's own token; waits out a service that is away."""
        if self._client is None:
            token = (self.home / "token").read_text().strip()
            self._client = Client(f"http://127.0.0.1:{self.port}", token, patience_s=90.0)
        return self._client

    def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            self._client.close()

    @property
    def mlflow_url(self) -> str:
        """Past the relay."""
        return f"http://127.0.0.1:{self.mlflow_port}"

    def start_service(self) -> None:
        """Begin a life of the service, once it answers."""
        self.service = start(
            self.home,
            self.port,
            self.folder / "service.log",
            SEGFLEET_RAY_ADDRESS=self.nodes.address,
            SEGFLEET_MLFLOW_URI=self.mlflow_address,
            SEGFLEET_LEASE_S="20",
            SEGFLEET_START_DEADLINE_S="90",
        )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.service.poll() is None, (self.folder / "service.log").read_text()[-3000:]
            with suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{self.port}/healthz", timeout=2).is_success:
                    return
            time.sleep(0.1)
        raise AssertionError("the service did not start")

    def end_service(self, number: int) -> None:
        """End it by a signal."""
        assert self.service is not None
        self.service.send_signal(number)
        self.service.wait(30)

    def restart_mlflow(self) -> None:
        """Begin another life of the MLflow server at its address."""
        self.mlflow = start_mlflow(self.folder, self.mlflow_port)
        await_mlflow(self.mlflow_url, self.mlflow)

    def submit(self, number: int, **changes: Any) -> str:
        """A training that registers a model of its own name; its id."""
        spec = {**self.training(number), **changes}
        job = self.client.submit(spec, key=f"soak-{number}")
        again = self.client.submit(spec, key=f"soak-{number}")
        self.doubled_submits += again["id"] != job["id"]
        self.accepted[job["id"]] = spec
        self.ends[job["id"]] = {"succeeded"}
        return str(job["id"])

    def training(self, number: int) -> dict[str, Any]:
        """One worker or two, every third of them elastic."""
        return {
            "kind": "train",
            "name": f"soak-{number}",
            "data": {"shards": self.shards},
            "model": {
                "backbone": "vit_tiny_patch16_224",
                "patch_size": 16,
                "decoder": "linear",
                "pretrained": False,
            },
            "optim": {"name": "adamw", "lr": 0.001},
            "train": {
                "steps": STEPS,
                "global_batch": 4,
                "crop": 48,
                "validate_every": STEPS // 2,
                "checkpoint_every": 5,
                "log_every": 1,
                "loader_processes": 1,
            },
            "eval": {"window": 48, "stride": 48},
            "resources": {"workers": ({"min": 1, "max": 2}, 1, 2)[number % 3]},
            "queue": {"max_retries": 100},
            "register": {"model": f"soak-{number}"},
        }

    def jobs(self) -> list[dict[str, Any]]:
        """All that were accepted, as they are now."""
        return [self.client.job(job_id) for job_id in list(self.accepted)]

    def processes(self, *words: str) -> list[psutil.Process]:
        """Living processes of the stack whose command line holds one of the words; none: all."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                is_ours = process.environ().get(MARK) == os.environ[MARK] and process.pid != os.getpid()
                line = " ".join(process.cmdline())
                if (
                    is_ours
                    and process.status() != psutil.STATUS_ZOMBIE
                    and (not words or any(w in line for w in words))
                ):
                    found.append(process)
        return found

    def trainers(self) -> list[psutil.Process]:
        """The ranks' processes, without those of their loaders."""
        found = self.processes("RayTrainWorker")
        pids = {process.pid for process in found}
        return [process for process in found if process.ppid() not in pids]

    def usage(self) -> dict[str, tuple[int, int]]:
        """(file descriptors, MiB) of what lives through all jobs; the service's, MLflow's and the head's."""
        head = self.nodes.processes[HEAD]
        roots = {"service": self.service, "mlflow": self.mlflow, "head": head}
        found = {}
        for name, root in roots.items():
            assert root is not None
            family = [psutil.Process(root.pid), *psutil.Process(root.pid).children(recursive=True)]
            fds = rss = 0
            for process in family:
                with suppress(psutil.Error):
                    fds, rss = fds + process.num_fds(), rss + process.memory_info().rss
            found[name] = fds, rss >> 20
        return found


def job_of(process: psutil.Process) -> str:
    """Id of the job that a process works for; empty: none."""
    with suppress(psutil.Error, OSError):
        return process.environ().get("SEGFLEET_ATTEMPT", "").rpartition("-a")[0]
    return ""


@contextmanager
def world(folder: Path, seed: int) -> Iterator[World]:
    """The stack, until the block ends; whatever of it lives on then is killed, and counted in `left_behind.json`."""
    os.environ |= {MARK: f"soak-{os.getpid()}", "SPT_NOENV": "1", "OMP_NUM_THREADS": "1"}
    (folder / "home").mkdir(mode=0o700)
    shards = make_dataset(folder, num_samples=24)
    faults, port = Faults(seed=seed), free_port()
    mlflow = start_mlflow(folder, port)
    found = None
    try:
        await_mlflow(f"http://127.0.0.1:{port}", mlflow)
        with behind_faults(f"http://127.0.0.1:{port}", faults) as address, ray_nodes(list(NODES), head=HEAD) as nodes:
            found = World(folder, folder / "home", free_port(), shards, nodes, faults, port, address, mlflow)
            (found.home / "ray-token").write_text(nodes.token)
            (found.home / "ray-token").chmod(0o600)
            found.start_service()
            yield found
            found.end_service(15)
    finally:
        if found is not None:
            found.close()
            mlflow = found.mlflow
            if found.service is not None and found.service.poll() is None:
                found.service.kill()
        with suppress(ProcessLookupError):
            os.killpg(mlflow.pid, 15)
        mlflow.wait(30)
        _sweep(folder, found)


def _sweep(folder: Path, found: World | None) -> None:
    time.sleep(1.0)
    left = [] if found is None else found.processes()
    lines = []
    for process in left:
        with suppress(psutil.Error):
            lines.append(" ".join(process.cmdline())[:200])
            process.kill()
    (folder / "left_behind.json").write_text(json.dumps(lines))
