"""Logs that name a known cause, and what follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from segfleet.cluster.launcher import RayState
from segfleet.queue.causes import CAUSES, TAIL_BYTES, diagnose, log_tail
from segfleet.queue.states import JobState
from world import World

LINES = {
    "gpu_memory": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    "gpu_hardware": "RuntimeError: CUDA error: uncorrectable ECC error encountered",
    "driver_too_old": "RuntimeError: CUDA initialization: The CUDA driver version is insufficient for CUDA runtime",
    "host_memory": "Task was killed due to the node running low on memory.",
    "shared_memory": "RuntimeError: DataLoader worker (pid 71) is killed by signal: Bus error. It is possible that",
    "disk_full": "OSError: [Errno 28] No space left on device: '/data/x'",
    "open_files": "OSError: [Errno 24] Too many open files: 'shard.tar'",
    "missing_package": "ModuleNotFoundError: No module named 'simplejpeg'",
    "storage_denied": "botocore.exceptions.ClientError: An error occurred (AccessDenied) when calling GetObject",
    "network": "torch.distributed.DistBackendError: NCCL error: unhandled system error, NCCL version 2.27",
}


def test_every_cause_is_known_by_a_line_of_its_kind() -> None:
    assert LINES.keys() == {cause.name for cause in CAUSES}


@pytest.mark.parametrize("name", LINES)
def test_a_line_between_others_is_recognised(name: str) -> None:
    found = diagnose(f"step 10\n{LINES[name]}\nbye")
    assert found is not None
    assert found.name == name


def test_the_more_telling_cause_wins_wherever_it_stands() -> None:
    found = diagnose("Connection closed by peer\nCUDA out of memory\n")
    assert found is not None
    assert found.name == "gpu_memory"


@pytest.mark.parametrize("log", ["", "step 10 loss 0.5 memory 3 GiB", "saved 512 files, disk has space left"])
def test_an_ordinary_log_names_nothing(log: str) -> None:
    assert diagnose(log) is None


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("Too many open files\n" + "x" * TAIL_BYTES)
    assert diagnose(log_tail(path)) is None
    assert log_tail(tmp_path / "none.log") == ""


def _lose(world: World, line: str, message: str = "exit code 1") -> str:
    job = world.submit(max_retries=3)
    world.step()
    grant = world.claim(job)
    ray_job = world.ray.jobs[grant.attempt_id]
    ray_job.log, ray_job.state, ray_job.message = f"{line}\n", RayState.FAILED, message
    world.step()
    world.step()
    return job.id


def test_a_lost_attempt_is_explained_and_tried_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    job = world.queue.get(_lose(world, LINES["host_memory"]))
    assert job.state == JobState.QUEUED
    assert job.error is not None
    assert job.error["cause"] == "host_memory"
    assert "train.loader_processes" in job.error["advice"]
    assert [event.detail["cause"] for event in world.queue.events(job.id) if event.kind == "explained"] == [
        "host_memory"
    ]


def test_a_cause_that_comes_again_ends_the_retries(tmp_path: Path) -> None:
    world = World(tmp_path)
    line = LINES["missing_package"]
    job = world.queue.get(_lose(world, line, f"exit code 1; last lines: {line}"))
    assert job.state == JobState.FAILED
    assert "install the same version" in job.reason


@pytest.mark.parametrize(
    "line", ["No flash: ModuleNotFoundError: No module named 'flash_attn'", LINES["storage_denied"]]
)
def test_a_line_of_something_that_was_dealt_with_ends_no_retries(tmp_path: Path, line: str) -> None:
    world = World(tmp_path)
    job = world.queue.get(_lose(world, f"{line}\nstep 10\nstep 20"))
    assert job.state == JobState.QUEUED
    assert job.error is not None
    assert "cause" in job.error


def test_a_job_that_succeeds_is_not_explained(tmp_path: Path) -> None:
    world = World(tmp_path)
    job = world.submit()
    world.step()
    grant = world.claim(job)
    world.ray.jobs[grant.attempt_id].log = LINES["missing_package"]
    world.queue.complete(grant.attempt_id, grant.token, {})
    world.ray.jobs[grant.attempt_id].state = RayState.SUCCEEDED
    world.step()
    world.step()
    job = world.queue.get(job.id)
    assert (job.state, job.error) == (JobState.SUCCEEDED, None)
