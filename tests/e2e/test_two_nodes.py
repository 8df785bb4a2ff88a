"""A training on a cluster of several nodes that asks for its token: nodes die, are cut off, or are taken away.

Data and checkpoints are in an S3 server on the loopback interface, as no node has a disk that the others see.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from mlflow import MlflowClient

from processes import client_of, free_port, mlflow_server, running
from ray_nodes import Nodes, ray_nodes
from s3_server import BUCKET, s3_server
from segfleet.client import Client
from training import make_dataset

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

FIRST, SECOND = "127.0.0.2", "127.0.0.3"
JOB_S = 180.0


@dataclass
class Stack:
    """A service with its cluster, its MLflow and its bucket."""

    nodes: Nodes
    client: Client
    mlflow: str
    bucket: Any

    def train(self, steps: int) -> str:
        """Begin a training that takes what the cluster has, one or two workers; its id."""
        document = {
            "kind": "train",
            "name": "two-nodes",
            "data": {"shards": f"s3://{BUCKET}/shards"},
            "model": {
                "backbone": "vit_tiny_patch16_224",
                "patch_size": 16,
                "decoder": "mask",
                "decoder_layers": 1,
                "pretrained": False,
            },
            "optim": {"name": "adamw", "lr": 0.001},
            "train": {
                "steps": steps,
                "global_batch": 4,
                "crop": 48,
                "validate_every": steps,
                "checkpoint_every": 10,
                "log_every": 1,
                "loader_processes": 1,
            },
            "eval": {"window": 48, "stride": 32},
            "resources": {"workers": {"min": 1, "max": 2}},
            "register": {"model": "boxes"},
        }
        return str(self.client.submit(document)["id"])

    def wait(self, job_id: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Poll a job until the condition holds; it may not end before."""
        deadline = time.monotonic() + JOB_S
        while time.monotonic() < deadline:
            job = self.client.job(job_id)
            if condition(job):
                return job
            assert job["state"] not in ("succeeded", "failed", "cancelled"), self.story(job_id)
            time.sleep(0.1)
        raise AssertionError(self.story(job_id))

    def succeed(self, job_id: str, step: int) -> dict[str, Any]:
        job = self.client.wait(job_id, timeout_s=JOB_S)
        assert job["state"] == "succeeded", self.story(job_id)
        assert job["result"]["step"] == step
        assert self.client.model("boxes@candidate")["job"] == job_id
        return self.client.job(job_id)

    def story(self, job_id: str) -> str:
        """What a person needs to see when a test fails."""
        events = "\n".join(str(event) for event in self.client.events(job_id) if event["kind"] != "checkpoint")
        return f"{self.client.job(job_id)}\n{events}\n{''.join(self.client.logs(job_id))[-6000:]}"

    def sent_after(self, job_id: str, moment: datetime) -> list[str]:
        """Objects among the job's checkpoints that were written after that."""
        found = self.bucket.list_objects_v2(Bucket=BUCKET, Prefix=f"checkpoints/{job_id}/").get("Contents", [])
        return [str(one["Key"]) for one in found if one["LastModified"] > moment]

    def steps_told(self, run_id: str) -> list[int]:
        """Steps of a run's loss, in the order in which they were told."""
        points = MlflowClient(self.mlflow).get_metric_history(run_id, "train/loss")
        return [point.step for point in sorted(points, key=lambda point: point.timestamp)]


def step_of(job: dict[str, Any]) -> int:
    return int((job.get("progress") or {}).get("step") or 0)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("nodes")
    home, port = folder / "home", free_port()
    home.mkdir(mode=0o700)
    shards = Path(make_dataset(folder, num_samples=24))
    with s3_server() as keys, pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        bucket = boto3.client("s3", endpoint_url=keys["AWS_ENDPOINT_URL"], region_name=keys["AWS_REGION"])
        for path in shards.rglob("*"):
            if path.is_file():
                bucket.upload_file(str(path), BUCKET, f"shards/{path.relative_to(shards).as_posix()}")
        stored = {**keys, "SEGFLEET_CHECKPOINTS": f"s3://{BUCKET}/checkpoints"}
        with mlflow_server(folder) as mlflow, ray_nodes([FIRST, SECOND], **stored) as nodes:
            (home / "ray-token").write_text(nodes.token)
            (home / "ray-token").chmod(0o600)
            variables = {"SEGFLEET_RAY_ADDRESS": nodes.address, "SEGFLEET_MLFLOW_URI": mlflow, "SEGFLEET_LEASE_S": "30"}
            with running(home, port, **variables), client_of(home, port) as client:
                yield Stack(nodes, client, mlflow, bucket)
        bucket.close()


def test_a_training_outlives_a_lost_node_and_one_that_was_cut_off(stack: Stack) -> None:
    nodes = stack.nodes
    job_id = stack.train(steps=400)
    before = step_of(stack.wait(job_id, lambda job: step_of(job) >= 20))
    assert [bool(nodes.workers(address)) for address in (FIRST, SECOND)] == [True, True]
    lost_at = time.monotonic()
    nodes.kill(SECOND)
    lost = stack.wait(job_id, lambda job: job["attempts"][-1]["number"] == 2 and step_of(job) > before + 3)
    print(f"lost node: new steps after {time.monotonic() - lost_at:.0f} s")
    nodes.join(SECOND)
    nodes.await_nodes([0, 1])

    zombies = nodes.workers(FIRST)
    stack.wait(job_id, lambda job: step_of(job) > step_of(lost) + 10)
    cut_at = time.monotonic()
    nodes.freeze(FIRST)
    cut = step_of(stack.client.job(job_id))
    stack.wait(job_id, lambda job: bool(nodes.workers(SECOND)) and step_of(job) > cut + 3)
    print(f"node cut off: new steps after {time.monotonic() - cut_at:.0f} s")
    # The worker of before wakes up, and nothing on its machine keeps it from going on.
    woken_at, moment = time.monotonic(), datetime.now(UTC)
    nodes.thaw(zombies)
    reached = cut
    while any(psutil.pid_exists(zombie.pid) and zombie.is_running() for zombie in zombies):
        assert time.monotonic() - woken_at < 30, "the worker of a node that was given up goes on"
        now = step_of(stack.client.job(job_id))
        assert now >= reached
        reached = now
        time.sleep(0.1)
    print(f"the worker that was cut off ended {time.monotonic() - woken_at:.1f} s after it woke up")
    nodes.kill(FIRST)
    sent = stack.sent_after(job_id, moment)
    assert [name for name in sent if ".2/" not in name] == []
    job = stack.succeed(job_id, 400)
    assert [attempt["workers"] for attempt in job["attempts"]] == [2, 1]
    assert stack.steps_told(job["result"]["mlflow_run"]) == list(range(1, 401))


def test_a_training_leaves_a_node_that_is_taken_away(stack: Stack) -> None:
    nodes = stack.nodes
    nodes.join(FIRST)
    nodes.await_nodes([0, 1, 1])
    job_id = stack.train(steps=60)
    before = step_of(stack.wait(job_id, lambda job: step_of(job) >= 10))
    drained_at = time.monotonic()
    nodes.drain(FIRST, seconds=90)
    stack.wait(job_id, lambda job: job["attempts"][-1]["number"] == 2 and step_of(job) > before)
    print(f"drained node: new steps after {time.monotonic() - drained_at:.0f} s")
    assert not nodes.workers(FIRST)
    job = stack.succeed(job_id, 60)
    assert [(attempt["workers"], attempt["failure"]) for attempt in job["attempts"]] == [(2, None), (1, None)]
    events = stack.client.events(job_id)
    assert "retrying" not in {event["kind"] for event in events}
    (asked,) = [event["detail"] for event in events if event["kind"] == "preempting"]
    (machine,) = asked["nodes"]
    assert (asked["for"], machine["address"]) == ("drain", FIRST)
    assert machine["leaves_at"] > time.time() - 90
    assert f"node {FIRST} will leave the cluster at " in asked["reason"]
    (left,) = [event["detail"] for event in events if event["kind"] == "preempted"]
    assert left["step"] >= before
