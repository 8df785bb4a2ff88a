"""A training over two nodes of a cluster that asks for its token: one node dies, the training goes on on the other."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from processes import client_of, free_port, mlflow_server, running
from ray_nodes import Nodes, ray_nodes
from segfleet.client import Client
from training import make_dataset

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

FIRST, SECOND = "127.0.0.2", "127.0.0.3"
JOB_S = 300.0


def training(shards: str) -> dict[str, Any]:
    return {
        "kind": "train",
        "name": "two-nodes",
        "data": {"shards": shards},
        "model": {
            "backbone": "vit_tiny_patch16_224",
            "patch_size": 16,
            "decoder": "mask",
            "decoder_layers": 1,
            "pretrained": False,
        },
        "optim": {"name": "adamw", "lr": 0.001},
        "train": {
            "steps": 60,
            "global_batch": 4,
            "crop": 48,
            "validate_every": 60,
            "checkpoint_every": 5,
            "log_every": 5,
            "loader_processes": 1,
        },
        "eval": {"window": 48, "stride": 32},
        "resources": {"workers": {"min": 1, "max": 2}},
    }


def story(client: Client, job_id: str) -> str:
    return f"{client.job(job_id)}\n{''.join(client.logs(job_id))[-5000:]}"


def wait_for_step(client: Client, job_id: str, step: int) -> dict[str, Any]:
    deadline = time.monotonic() + JOB_S
    while time.monotonic() < deadline:
        job = client.job(job_id)
        if int((job.get("progress") or {}).get("step") or 0) >= step:
            return job
        assert job["state"] not in ("succeeded", "failed", "cancelled"), story(client, job_id)
        time.sleep(0.2)
    raise AssertionError(story(client, job_id))


def workers_on(nodes: Nodes, address: str) -> int:
    """Training processes among a node's own."""
    members = psutil.Process(nodes.processes[address].pid).children(recursive=True)
    return sum("RayTrainWorker" in " ".join(member.cmdline()) for member in members)


def test_a_training_over_two_nodes_outlives_one_of_them(tmp_path: Path) -> None:
    home, port = tmp_path / "home", free_port()
    shards = make_dataset(tmp_path, num_samples=24)
    home.mkdir(mode=0o700)
    with ray_nodes([FIRST, SECOND]) as nodes, mlflow_server(tmp_path) as mlflow:
        (home / "ray-token").write_text(nodes.token)
        (home / "ray-token").chmod(0o600)
        variables = {"SEGFLEET_RAY_ADDRESS": nodes.address, "SEGFLEET_MLFLOW_URI": mlflow, "SEGFLEET_LEASE_S": "30"}
        with running(home, port, **variables), client_of(home, port) as client:
            job_id = client.submit(training(shards))["id"]
            wait_for_step(client, job_id, 10)
            assert [workers_on(nodes, FIRST), workers_on(nodes, SECOND)] == [1, 1]
            killed_at = time.monotonic()
            nodes.kill(SECOND)
            nodes.await_nodes([0, 1])
            job = client.wait(job_id, timeout_s=JOB_S)
            print(f"ended {time.monotonic() - killed_at:.0f} s after the loss of the node")
            assert job["state"] == "succeeded", story(client, job_id)
            assert job["result"]["step"] == 60
            attempts = client.job(job_id)["attempts"]
            assert [attempt["workers"] for attempt in attempts] == [2, 1]
            # It went on from a checkpoint and not from the start.
            kinds = [event["kind"] for event in client.events(job_id)]
            assert kinds.count("starting") == 2
            assert "checkpoint" in kinds[: kinds.index("retrying")]
