"""The whole road on the real stack: service, Ray, MLflow, training processes; over HTTP, with kills in mid-run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import load_file

from crowding import crowded
from embedded import embedded
from segfleet.client import Client
from segfleet.cluster.processes import marked
from segfleet.cluster.state import State
from segfleet.errors import SpecError
from segfleet.settings import Home, read_token
from segfleet_jobs.pulse import read_beats
from training import make_dataset

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

JOB_S = 400.0


@dataclass
class Stack:
    """A running home: its client, its command line, its processes."""

    home: Home
    client: Client
    shards: str
    raw: Path
    environment: dict[str, str]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command line, as a user has it."""
        command = [sys.executable, "-m", "segfleet.cli.main", *arguments]
        return subprocess.run(
            command,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=JOB_S,
            check=False,
            cwd=self.home.root,
        )

    def spec(self, **changes: Any) -> dict[str, Any]:
        """A training of about half a minute in two workers."""
        document = {
            "kind": "train",
            "name": "road",
            "data": {"shards": self.shards},
            "model": {
                "backbone": "vit_tiny_patch16_224",
                "patch_size": 16,
                "decoder": "mask",
                "decoder_layers": 1,
                "pretrained": False,
            },
            "optim": {"name": "adamw", "lr": 0.001},
            "train": {
                "steps": 120,
                "global_batch": 4,
                "crop": 48,
                "validate_every": 60,
                "checkpoint_every": 20,
                "log_every": 5,
                "loader_processes": 1,
            },
            "eval": {"window": 48, "stride": 32},
            "resources": {"workers": 2},
            "register": {"model": "boxes"},
        }
        return {**document, **changes}

    def processes(self, part: str, name: str = "") -> list[psutil.Process]:
        """Living processes of a part of the stack whose command line holds a name."""
        state = State.load(self.home)
        assert state is not None
        found = []
        for process in marked(state.mark(part)):
            try:
                if name in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def trainers(self) -> list[psutil.Process]:
        """The ranks' processes, in no order, without those of their loaders."""
        workers = self.processes("ray", "RayTrainWorker")
        return [process for process in workers if process.ppid() not in {other.pid for other in workers}]

    def wait_for(self, job_id: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Poll the job until the condition holds; fails if the job ends before."""
        deadline = time.monotonic() + JOB_S
        while time.monotonic() < deadline:
            job = self.client.job(job_id)
            if condition(job):
                return job
            assert job["state"] not in ("succeeded", "failed", "cancelled"), self.story(job_id)
            time.sleep(0.2)
        raise AssertionError(self.story(job_id))

    def succeed(self, job_id: str) -> dict[str, Any]:
        job = self.client.wait(job_id, timeout_s=JOB_S)
        assert job["state"] == "succeeded", self.story(job_id)
        return job

    def story(self, job_id: str) -> str:
        """What a person needs to see when a test fails."""
        log = "".join(self.client.logs(job_id))
        return json.dumps(self.client.job(job_id), indent=1)[-4000:] + "\n" + log[-4000:]

    def final_weights(self, job_id: str) -> dict[str, torch.Tensor]:
        last = max((self.home.storage / job_id).glob("*/step-*"), key=lambda path: path.name)
        return load_file(last / "model.safetensors")


def check_time(job: dict[str, Any]) -> None:
    """All parts of a job's time are its time, within 1 %."""
    goodput, wall_s = job["goodput"], job["finished_at"] - job["started_at"]
    assert sum(goodput["seconds"].values()) == pytest.approx(wall_s, rel=0.01)
    assert 0 < goodput["share"] < 1


def step_of(job: dict[str, Any]) -> int:
    return int((job.get("progress") or {}).get("step") or 0)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("road")
    shards = make_dataset(folder, num_samples=24)
    # A short lease makes lost attempts show within the test.
    with embedded(folder / "home", SEGFLEET_LEASE_S="30") as up, Client(up.url, up.token, patience_s=60.0) as client:
        yield Stack(up.home, client, shards, folder / "raw", up.environment)


@pytest.fixture(scope="module")
def undisturbed(stack: Stack) -> dict[str, Any]:
    """The job that every other one is compared with."""
    submitted = stack.client.submit(stack.spec(), key="undisturbed")
    return stack.succeed(submitted["id"])


def test_a_job_goes_from_shards_to_a_registered_model(stack: Stack, undisturbed: dict[str, Any]) -> None:
    result = undisturbed["result"]
    assert result["step"] == 120
    assert result["num_samples"] == 5
    assert result["miou"] > 2 * result["baseline_miou"]
    model = result["model"]
    assert (model["name"], model["alias"]) == ("boxes", "candidate")
    version = stack.client.model("boxes@candidate")
    assert version["version"] == model["version"]
    assert version["metrics"]["miou"] == pytest.approx(result["miou"])
    assert version["job"] == undisturbed["id"]


def test_the_same_key_gives_the_same_job(stack: Stack, undisturbed: dict[str, Any]) -> None:
    again = stack.client.submit(stack.spec(), key="undisturbed")
    assert (again["id"], again["replayed"]) == (undisturbed["id"], True)


def test_the_log_is_kept_and_holds_no_secret(stack: Stack, undisturbed: dict[str, Any]) -> None:
    log = "".join(stack.client.logs(undisturbed["id"]))
    assert undisturbed["id"] in log
    token = read_token(stack.home.token)
    ray_token = read_token(stack.home.ray_token)
    for path in stack.home.logs.iterdir():
        text = path.read_text(errors="replace")
        assert token not in text, path
        assert ray_token not in text, path


def test_anyone_predicts_with_the_registered_model(stack: Stack, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    picture = sorted((stack.raw / "images").iterdir())[0]
    done = stack.run("predict", "--model", "boxes@candidate", str(picture), "--out", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(done.stdout)["predictions"]
    with Image.open(entry["mask"]) as mask, Image.open(picture) as image:
        assert mask.size == image.size
        assert mask.mode == "P"
    unknown = stack.run("predict", "--model", "nothing@candidate", str(picture), "--out", str(tmp_path))
    assert unknown.returncode == 2
    assert "nothing" in unknown.stderr
    assert "Traceback" not in unknown.stderr


def test_the_report_is_tables_curves_and_pictures(stack: Stack, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    done = stack.run("report", undisturbed["id"], "--out", str(tmp_path / "report"), "--json")
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout)["files"]
    pictures = {"curves", "classes", "confusion", "time", "attention-1", "attention-2"}
    assert pictures <= set(files)
    assert any(name.startswith("predictions-") for name in files)
    for name in pictures:
        with Image.open(files[name]) as picture:
            assert min(picture.size) > 50
    assert f"{undisturbed['result']['miou']:.4f}" in Path(files["report"]).read_text()


def test_kill_9_of_a_worker_in_mid_run_changes_nothing_in_the_result(stack: Stack, undisturbed: dict[str, Any]) -> None:
    job_id = stack.client.submit(stack.spec())["id"]
    stack.wait_for(job_id, lambda job: step_of(job) >= 30)
    # Ray names its workers after what they run; the second one is not rank 0 or is, it must not matter.
    trainers = stack.trainers()
    assert len(trainers) == 2
    trainers[1].kill()
    job = stack.succeed(job_id)
    weights, expected = stack.final_weights(job_id), stack.final_weights(undisturbed["id"])
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert job["result"]["miou"] == undisturbed["result"]["miou"]
    # Ray restarted the group inside the one attempt.
    assert [attempt["number"] for attempt in job["attempts"]] == [1]
    assert "ActorDiedError" in "".join(stack.client.logs(job_id))
    (fault,) = job["faults"]
    assert fault["rank"] in (0, 1)
    check_time(job)
    assert job["goodput"]["seconds"]["restart"] > 0
    shown = stack.run("show", job_id).stdout
    assert fault["message"] in shown
    assert "goodput" in shown
    document = json.loads(stack.run("show", job_id, "--json").stdout)
    assert document["goodput"] == job["goodput"]
    bearer = {"Authorization": f"Bearer {read_token(stack.home.token)}"}
    assert 'segfleet_job_seconds{part="restart"}' in httpx.get(f"{stack.client.url}/metrics", headers=bearer).text


def test_a_worker_that_the_kernel_kills_for_want_of_memory_is_told_of_as_that(stack: Stack) -> None:
    short = {**stack.spec()["train"], "steps": 40}
    job_id = stack.client.submit(stack.spec(train=short))["id"]
    beats = stack.home.storage / job_id / f"{job_id}-a1" / "beats"
    stack.wait_for(job_id, lambda _: len(read_beats(beats)) == 2)
    with crowded() as members:
        # What it has is not counted, what it takes from now on is: the model, its gradients, the first steps.
        members.write_text(str(read_beats(beats)[0].pid))
        stack.wait_for(job_id, lambda job: len(job["attempts"]) == 2)
    job = stack.succeed(job_id)
    failure = job["attempts"][0]["failure"]
    assert failure["class"] == "oom", failure
    assert "the kernel killed it; set train.micro_batch" in failure["message"]


def test_kill_9_of_the_service_in_mid_run_loses_and_doubles_nothing(stack: Stack, undisturbed: dict[str, Any]) -> None:
    job_id = stack.client.submit(stack.spec())["id"]
    stack.wait_for(job_id, lambda job: step_of(job) >= 20)
    (service,) = [process for process in stack.processes("service") if process.parent() is not None]
    service.kill()
    job = stack.succeed(job_id)
    assert [attempt["number"] for attempt in job["attempts"]] == [1]
    weights, expected = stack.final_weights(job_id), stack.final_weights(undisturbed["id"])
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    versions = stack.client.model("boxes")["versions"]
    assert [version["job"] for version in versions].count(job_id) == 1


def test_kill_9_of_the_driver_makes_a_second_attempt_that_goes_on_from_the_checkpoint(
    stack: Stack, undisturbed: dict[str, Any]
) -> None:
    job_id = stack.client.submit(stack.spec())["id"]
    stack.wait_for(job_id, lambda job: job["checkpoint"] is not None)
    for driver in stack.processes("ray", "-m segfleet_jobs.train"):
        driver.kill()
    job = stack.succeed(job_id)
    first, second = job["attempts"]
    assert first["failure"]["class"] == "infra"
    assert second["state"] == "succeeded"
    check_time(job)
    assert job["goodput"]["seconds"]["load"] > 0
    weights, expected = stack.final_weights(job_id), stack.final_weights(undisturbed["id"])
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    versions = stack.client.model("boxes")["versions"]
    assert [version["job"] for version in versions].count(job_id) == 1


def test_cancel_in_mid_run_ends_once_and_leaves_no_process(stack: Stack, undisturbed: dict[str, Any]) -> None:
    job_id = stack.client.submit(stack.spec(train={**stack.spec()["train"], "steps": 100_000}))["id"]
    stack.wait_for(job_id, lambda job: step_of(job) >= 3)
    stack.client.cancel(job_id)
    job = stack.client.wait(job_id, timeout_s=JOB_S)
    assert job["state"] == "cancelled"
    deadline = time.monotonic() + 120
    while stack.processes("ray", "RayTrainWorker") + stack.processes("ray", "segfleet_jobs"):
        assert time.monotonic() < deadline, "processes of a cancelled job live on"
        time.sleep(0.2)
    assert stack.client.cancel(job_id)["state"] == "cancelled"
    ended = [event for event in stack.client.events(job_id) if event["target"] in ("cancelled", "failed", "succeeded")]
    assert len(ended) == 1


def test_a_higher_job_preempts_a_lower_one_and_both_finish(stack: Stack, undisturbed: dict[str, Any]) -> None:
    stack.client.set_policy("cluster", "cluster", {"preempt_for_priority": True, "min_run": "1s", "grace": "2m"})
    try:
        low = stack.client.submit(stack.spec(queue={"priority": 10}))["id"]
        stack.wait_for(low, lambda job: step_of(job) >= 30)
        short = {**stack.spec()["train"], "steps": 20, "validate_every": 20}
        high = stack.client.submit(stack.spec(queue={"priority": 90}, train=short))["id"]
        stack.wait_for(low, lambda job: job["state"] == "preempting")
        assert stack.succeed(high)["finished_at"] < stack.succeed(low)["finished_at"]
    finally:
        stack.client.set_policy("cluster", "cluster", {})
    job = stack.client.job(low)
    assert [attempt["state"] for attempt in job["attempts"]] == ["preempted", "succeeded"]
    assert job["attempts"][0]["failure"] is None
    weights, expected = stack.final_weights(low), stack.final_weights(undisturbed["id"])
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert job["result"]["miou"] == undisturbed["result"]["miou"]


def test_a_job_that_follows_another_is_paused_and_resumed_and_ends_the_same(
    stack: Stack, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """Prepare, then train on what will be there: two submits, and nobody waits in between."""
    raw = {"dataset": "folder", "raw": str(stack.raw), "out": str(tmp_path / "shards")}
    prepared = stack.client.submit({"kind": "prepare", "name": "boxes", **raw})["id"]
    spec = stack.spec(data={"shards": str(tmp_path / "shards")}, queue={"after": [prepared]})
    job_id = stack.client.submit(spec)["id"]
    stack.wait_for(job_id, lambda job: step_of(job) >= 10)
    assert stack.client.job(prepared)["state"] == "succeeded"
    done = stack.run("pause", job_id, "--json")
    assert done.returncode == 0, done.stderr
    stack.wait_for(job_id, lambda job: job["state"] == "paused")
    assert stack.run("priority", job_id, "60").returncode == 0
    assert stack.run("resume", job_id).returncode == 0
    job = stack.succeed(job_id)
    assert job["priority"] == 60
    weights, expected = stack.final_weights(job_id), stack.final_weights(undisturbed["id"])
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


def test_prepare_train_and_evaluate_are_three_submits_and_nobody_waits_in_between(stack: Stack, tmp_path: Path) -> None:
    shards = {"shards": str(tmp_path / "shards")}
    raw = {"dataset": "folder", "raw": str(stack.raw), "out": shards["shards"]}
    prepared = stack.client.submit({"kind": "prepare", "name": "boxes", **raw})["id"]
    short = {**stack.spec()["train"], "steps": 20, "validate_every": 20}
    following = stack.spec(
        data=shards, train=short, register={"model": "chained"}, queue={"after": [prepared]}, name="chained"
    )
    trained = stack.client.submit(following)["id"]
    evaluate = {"kind": "evaluate", "name": "chained", "model": "chained@candidate", "data": shards, "worst": 2}
    with pytest.raises(SpecError, match="the registry has no"):
        stack.client.submit({**evaluate, "data": {"shards": stack.shards}})
    resources = {"workers": 2}
    evaluated = stack.client.submit({**evaluate, "resources": resources, "queue": {"after": [trained]}})["id"]
    job, training = stack.succeed(evaluated), stack.client.job(trained)
    result = job["result"]
    assert result["model_version"] == "chained/1"
    assert (result["num_samples"], result["workers"], result["sizes_from"]) == (5, 2, "train")
    # Windows as in the validation: so the same figures, from the weights that went through the registry.
    assert result["iou"] == training["result"]["iou"]
    assert result["miou"] == pytest.approx(training["result"]["miou"], abs=1e-6)
    assert 0 < result["boundary_miou"] < 1
    assert sum(map(len, result["size_groups"].values())) == 4
    figure = f"{result['figures']}miou"
    assert stack.client.model("chained/1")["metrics"][figure] == result["miou"]
    mlflow_url = stack.client.status()["mlflow"]["url"]
    client = MlflowClient(mlflow_url)
    assert client.get_run(result["mlflow_run"]).data.metrics[figure] == pytest.approx(result["miou"])
    kept = client.list_artifacts(result["mlflow_run"], f"evaluation/{evaluated}")
    names = {Path(entry.path).name for entry in kept}
    assert names == {"scores.json", "pictures.parquet", "confusion.png", "worst.png"}
    assert list((stack.home.storage / evaluated).glob("*-files-*")) == []


def test_a_damaged_shard_fails_the_job_with_its_name_before_the_first_step(stack: Stack, tmp_path: Path) -> None:
    shards = Path(make_dataset(tmp_path, num_samples=8))
    tar = next(shards.glob("train-*.tar"))
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 0xFF
    tar.write_bytes(content)
    job_id = stack.client.submit(stack.spec(data={"shards": str(shards)}))["id"]
    job = stack.client.wait(job_id, timeout_s=JOB_S)
    assert job["state"] == "failed"
    assert tar.name in job["error"]["message"]
    assert len(job["attempts"]) == 1
    assert step_of(job) == 0


def test_more_workers_than_the_cluster_has_are_refused_at_submit(stack: Stack) -> None:
    with pytest.raises(SpecError, match="workers"):
        stack.client.submit(stack.spec(resources={"workers": 64}, train={**stack.spec()["train"], "global_batch": 64}))


def test_prepare_is_a_job_too(stack: Stack, tmp_path: Path) -> None:
    spec = {
        "kind": "prepare",
        "name": "boxes",
        "dataset": "folder",
        "raw": str(stack.raw),
        "out": str(tmp_path / "shards"),
    }
    job = stack.succeed(stack.client.submit(spec)["id"])
    checked = stack.run("verify", str(tmp_path / "shards"), "--json")
    assert checked.returncode == 0, checked.stderr
    assert job["result"]["samples"] == {"train": 19, "val": 5}
