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
import pytest
from mlflow import MlflowClient

from processes import client_of, free_port, mlflow_server, running
from ray_nodes import Nodes, ray_nodes
from s3_server import BUCKET, s3_server
from segfleet.client import Client
from training import make_dataset

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

FIRST, SECOND = "127.0.0.2", "127.0.0.3"
STEPS = 320
JOB_S = 400.0


@dataclass
class Stack:
    """A service with its cluster, its MLflow and its bucket."""

    nodes: Nodes
    client: Client
    mlflow: str
    bucket: Any

    def train(self) -> str:
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
                "steps": STEPS,
                "global_batch": 4,
                "crop": 48,
                "validate_every": STEPS,
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

    def story(self, job_id: str) -> str:
        """What a person needs to see when a test fails."""
        events = "\n".join(str(event) for event in self.client.events(job_id) if event["kind"] != "checkpoint")
        return f"{self.client.job(job_id)}\n{events}\n{''.join(self.client.logs(job_id))[-6000:]}"

    def sent_after(self, job_id: str, moment: datetime) -> list[str]:
        """Files among the job's checkpoints that were written after that."""
        found = self.bucket.list_objects_v2(Bucket=BUCKET, Prefix=f"checkpoints/{job_id}/").get("Contents", [])
        # Who deletes the last file of a folder leaves a mark of the folder.
        files = [one for one in found if not one["Key"].endswith("/")]
        return [str(one["Key"]) for one in files if one["LastModified"] > moment]

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


def test_a_training_outlives_nodes_that_die_are_cut_off_and_are_taken_away(stack: Stack) -> None:
    job_id = stack.train()
    stack.wait(job_id, lambda job: step_of(job) >= 20)
    assert [bool(stack.nodes.workers(address)) for address in (FIRST, SECOND)] == [True, True]
    lose(stack, job_id, SECOND)
    cut_off(stack, job_id, FIRST)
    take_away(stack, job_id, SECOND)
    job = stack.client.wait(job_id, timeout_s=JOB_S)
    assert job["state"] == "succeeded", stack.story(job_id)
    assert job["result"]["step"] == STEPS
    assert stack.client.model("boxes@candidate")["job"] == job_id
    # Each step is told once, whoever told it.
    assert stack.steps_told(job["result"]["mlflow_run"]) == list(range(1, STEPS + 1))
    found = [(one["workers"], one["state"], (one["failure"] or {}).get("class")) for one in job["attempts"]]
    assert found == [(2, "failed", "node"), (1, "preempted", None), (1, "succeeded", None)]
    # The worker that woke up heard why it had to end.
    logs = [path.read_text(errors="replace") for path in stack.nodes.folder.glob("session_2*/logs/worker-*.out")]
    assert sum("a later group of its workers has taken over" in log for log in logs) == 1


def lose(stack: Stack, job_id: str, address: str) -> None:
    """A node dies, and the other one is too small: the queue starts the training there with one worker."""
    before, lost_at = step_of(stack.client.job(job_id)), time.monotonic()
    stack.nodes.kill(address)
    stack.wait(job_id, lambda job: job["attempts"][-1]["number"] == 2 and step_of(job) > before)
    print(f"lost node: new steps after {time.monotonic() - lost_at:.0f} s")
    stack.nodes.join(address)
    stack.nodes.await_nodes([0, 1])


def cut_off(stack: Stack, job_id: str, address: str) -> None:
    """Ray gives a node up and starts the worker of the same attempt on the other; then the first one wakes up."""
    nodes, client = stack.nodes, stack.client
    zombies, cut_at = nodes.workers(address), time.monotonic()
    nodes.freeze(address)
    before = step_of(client.job(job_id))
    stack.wait(job_id, lambda job: step_of(job) > before + 3)
    print(f"node cut off: new steps after {time.monotonic() - cut_at:.0f} s")
    # Nothing on its machine keeps the worker of before from going on: all else sleeps.
    woken_at, moment = time.monotonic(), datetime.now(UTC)
    nodes.thaw(zombies)
    while any(zombie.is_running() for zombie in zombies):
        assert time.monotonic() - woken_at < 120, "the worker of a node that was given up goes on"
        reached, before = before, step_of(client.job(job_id))
        assert before >= reached
        time.sleep(0.1)
    print(f"the worker that was cut off ended {time.monotonic() - woken_at:.1f} s after it woke up")
    assert [name for name in stack.sent_after(job_id, moment) if ".2/" not in name] == []
    nodes.kill(address)
    nodes.join(address)


def take_away(stack: Stack, job_id: str, address: str) -> None:
    """A node will be taken away: the training leaves it with a checkpoint, and has not failed."""
    before, drained_at = step_of(stack.client.job(job_id)), time.monotonic()
    stack.nodes.drain(address, seconds=300)
    stack.nodes.await_nodes([0, 1, 1])  # the other one, for which the training may have to wait in the queue
    stack.wait(job_id, lambda job: job["attempts"][-1]["number"] == 3 and job["state"] == "running")
    left = [event for event in stack.client.events(job_id) if event["kind"] == "preempted"][-1]
    stack.wait(job_id, lambda job: step_of(job) > left["detail"]["step"])
    print(f"drained node: new steps after {time.monotonic() - drained_at:.0f} s")
    assert not stack.nodes.workers(address)
    assert left["detail"]["step"] >= before
    (asked,) = [event["detail"] for event in stack.client.events(job_id) if event["kind"] == "preempting"]
    (machine,) = asked["nodes"]
    assert (asked["for"], machine["address"]) == ("drain", address)
    assert 0 < machine["leaves_at"] - time.time() < 300
    assert f"node {address} will leave the cluster at " in asked["reason"]
