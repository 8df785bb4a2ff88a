"""How long a training takes from the kill of a worker to its next new step, on a stack of its own.

Two workers train; one of them is killed with SIGKILL in mid-run, again and again. A step is new if the group that was
killed had not done it, so the time holds detection, restart, load, and the steps since the last checkpoint.

Run: nice python benchmarks/bench_recovery.py --shards SHARDS [--kills 10] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from segfleet.client import Client
from segfleet.cluster.ports import free_ports
from segfleet.cluster.processes import end_tree, marked
from segfleet.cluster.state import State
from segfleet.settings import Home, read_token

# Ray starts a group anew three times in an attempt.
KILLS_OF_A_JOB = 3
DEADLINE_S = 300.0
POLL_S = 0.1


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", required=True, help="a small prepared dataset")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the steps at which workers are killed, and which ones")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    draw, took = random.Random(options.seed), list[float]()
    with tempfile.TemporaryDirectory() as folder, _stack(Path(folder)) as (client, home):
        while len(took) < options.kills:
            job_id = client.submit(_spec(options.shards))["id"]
            for _ in range(min(KILLS_OF_A_JOB, options.kills - len(took))):
                took.append(_kill_once(client, home, job_id, draw))
            client.cancel(job_id)
            client.wait(job_id, timeout_s=DEADLINE_S)
    p50, p95 = (round(float(value), 1) for value in np.percentile(took, (50, 95)))
    figures = {"kills": len(took), "p50_s": p50, "p95_s": p95, "worst_s": round(max(took), 1)}
    lines = [json.dumps(figures)] if options.json else [f"{name}: {value}" for name, value in figures.items()]
    print("\n".join(lines))


def _kill_once(client: Client, home: Home, job_id: str, draw: random.Random) -> float:
    """Seconds from a worker's kill to the next new step."""
    known = len(client.job(job_id)["faults"])
    _wait(client, job_id, _step_of(client.job(job_id)) + draw.randint(20, 60))
    draw.choice(_ranks(home)).kill()
    killed = time.monotonic()
    # By the time a fault is told of, all steps of the old group are known but for the one that waits in vain.
    reached = _step_of(_wait(client, job_id, 0, num_faults=known + 1)) + 1
    _wait(client, job_id, reached + 1)
    took = time.monotonic() - killed
    print(f"killed before step {reached}: {took:.1f} s", file=sys.stderr, flush=True)
    return took


def _wait(client: Client, job_id: str, step: int, num_faults: int = 0) -> dict[str, Any]:
    """The job, once it has reached a step and told of so many faults."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        job = client.job(job_id)
        if _step_of(job) >= step and len(job["faults"]) >= num_faults:
            return job
        time.sleep(POLL_S)
    raise SystemExit(f"job {job_id} has not come to step {step} within {DEADLINE_S:g} s: {job}")


def _step_of(job: dict[str, Any]) -> int:
    return int((job.get("progress") or {}).get("step") or 0)


def _ranks(home: Home) -> list[psutil.Process]:
    """The workers' processes, without those of their loaders."""
    state = State.load(home)
    assert state is not None
    named = [process for process in marked(state.mark("ray")) if "RayTrainWorker" in _command(process)]
    return [process for process in named if process.ppid() not in {other.pid for other in named}]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""  # it has ended


def _spec(shards: str) -> dict[str, Any]:
    model = {"backbone": "vit_tiny_patch16_224", "patch_size": 16, "decoder_layers": 1, "pretrained": False}
    train = {"steps": 100_000, "global_batch": 4, "crop": 48, "validate_every": 100_000, "checkpoint_every": 20}
    return {
        "kind": "train",
        "name": "recovery",
        "data": {"shards": shards},
        "model": {**model, "decoder": "mask"},
        "optim": {"name": "adamw", "lr": 0.001},
        "train": {**train, "log_every": 5, "loader_processes": 1},
        "eval": {"window": 48, "stride": 32},
        "resources": {"workers": 2},
    }


@contextmanager
def _stack(folder: Path) -> Iterator[tuple[Client, Home]]:
    """Service, Ray and MLflow in a home of their own."""
    home, port = Home(folder / "home"), free_ports(1)[0]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SEGFLEET_")}
    command = [sys.executable, "-m", "segfleet.cli.main"]
    start = [*command, "up", "--home", str(home.root), "--port", str(port), "--detach"]
    subprocess.run(start, env=environment, check=True, stdout=subprocess.DEVNULL)
    try:
        with Client(f"http://127.0.0.1:{port}", read_token(home.token), patience_s=60.0) as client:
            yield client, home
    finally:
        state = State.load(home)
        subprocess.run([*command, "down", "--home", str(home.root)], env=environment, check=False)
        for part in ("service", "ray", "mlflow"):
            if state is not None:
                end_tree(None, state.mark(part), 0.0)


if __name__ == "__main__":
    main()
