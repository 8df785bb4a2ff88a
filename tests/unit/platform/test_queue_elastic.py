"""Elastic jobs, start deadlines and jobs that write to the same place, in a service with a pretended cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from factories import prepare_document, train_document
from segfleet.cluster.launcher import RayState
from segfleet.errors import SpecError
from segfleet.queue.model import Grant, Job, lane_of
from segfleet.queue.states import JobState
from world import World


@pytest.fixture
def world(tmp_path: Path, database_url: str) -> World:
    world = World(tmp_path, database_url)
    world.ray.cpus = 8
    return world


def elastic(least: int, most: int, batch: int = 12, **queue: Any) -> dict[str, Any]:
    document = train_document(**queue)
    document["train"]["global_batch"] = batch
    document["resources"]["workers"] = {"min": least, "max": most}
    return document


def submit(world: World, document: dict[str, Any]) -> Job:
    return world.queue.submit(document, owner="ann")[0]


def end(world: World, grant: Grant, result: dict[str, Any] | None = None) -> None:
    if result is not None:
        world.queue.complete(grant.attempt_id, grant.token, result)
    world.ray.end(grant.attempt_id, RayState.SUCCEEDED)
    world.step()


# Elastic jobs


def test_the_grant_says_how_many_workers_the_attempt_has(world: World) -> None:
    fixed, job = world.submit(workers=3), submit(world, elastic(2, 8))
    world.step()
    assert world.claim(fixed).workers == 3
    # Five are free, and twelve samples have no equal parts for five.
    assert world.claim(job).workers == 4


def test_a_resumed_attempt_may_have_another_number(world: World) -> None:
    job = submit(world, elastic(2, 8))
    world.step()
    grant = world.claim(job)
    assert grant.workers == 6
    world.queue.pause(job.id, "ann")
    world.step()
    world.queue.yield_(grant.attempt_id, grant.token)
    end(world, grant)
    world.submit(workers=5, priority=60)
    world.step()
    world.queue.resume(job.id, "ann")
    world.step()
    assert world.claim(job, 2).workers == 3
    assert [attempt.workers for attempt in world.queue.attempts(job.id)] == [6, 3]


def test_it_starts_with_its_fewest_and_quotas_count_what_it_has(world: World) -> None:
    world.queue.set_policy("project", "default", {"max_workers": 7})
    first = submit(world, elastic(2, 4))
    second = submit(world, elastic(2, 4))
    third = submit(world, elastic(2, 4))
    world.step()
    assert [world.claim(job).workers for job in (first, second, third)] == [3, 2, 2]


def test_a_range_fits_if_its_fewest_do(world: World) -> None:
    world.step()
    assert submit(world, elastic(6, 12)).gang.sizes == (6, 12)
    with pytest.raises(SpecError, match=r"needs 12 CPUs, the cluster has 8 CPUs in all"):
        submit(world, elastic(7, 12))


# Start deadlines


def test_a_job_that_has_not_started_in_time_fails_and_says_so(world: World) -> None:
    running = world.submit(workers=8)
    world.step()
    job = world.submit(start_within="60s")
    other = world.submit(start_within="10m")
    child = world.submit(after=[job.id])
    assert job.start_by == world.clock() + 60
    grant = world.claim(running)
    world.pass_time(55, grant)
    assert world.state(job) == JobState.QUEUED
    world.pass_time(10, grant)
    failed = world.queue.get(job.id)
    assert (failed.state, failed.error["class"], failed.attempt) == (JobState.FAILED, "start_deadline", 0)  # type: ignore[index]
    assert failed.reason == "not started within 60s, its queue.start_within"
    assert (failed.start_by, world.state(other)) == (None, JobState.QUEUED)
    world.step()
    assert world.state(child) == JobState.FAILED


def test_a_job_that_has_started_has_no_deadline_any_more(world: World) -> None:
    job = world.submit(start_within="60s", max_retries=3)
    world.step()
    world.pass_time(100)  # never claimed: lost, and back in the line
    assert world.queue.get(job.id).attempt >= 1
    assert world.state(job) != JobState.FAILED
    assert world.queue.get(job.id).start_by is None


def test_a_paused_job_has_time_again_once_it_is_back_and_a_retried_one_too(world: World) -> None:
    world.ray.reachable = False
    job = world.submit(start_within="60s")
    world.queue.pause(job.id, "ann")
    world.pass_time(100)
    assert world.state(job) == JobState.PAUSED
    world.queue.resume(job.id, "ann")
    world.pass_time(50)
    assert world.state(job) == JobState.QUEUED
    world.pass_time(20)
    assert world.state(job) == JobState.FAILED
    assert world.queue.retry(job.id, "ann").start_by == world.clock() + 60
    world.ray.reachable = True
    world.step()
    assert world.state(job) == JobState.STARTING


# Jobs that write to the same place


def prepare(**changes: Any) -> dict[str, Any]:
    return {**prepare_document(), **changes}


@pytest.mark.parametrize(
    ("out", "is_same"),
    [
        ("/data/shapes", True),
        ("file:///data/shapes", True),
        ("/data//x/../shapes/", True),
        ("/data/Shapes", False),
        ("s3://data/shapes", False),
    ],
)
def test_a_place_is_known_however_it_is_written(out: str, is_same: bool) -> None:
    assert (lane_of(prepare(out=out)) == lane_of(prepare())) is is_same
    assert lane_of(train_document()) is None


def test_two_preparations_of_one_place_run_one_after_the_other(world: World) -> None:
    first, second = submit(world, prepare()), submit(world, prepare(processes=7, name="again"))
    elsewhere = submit(world, prepare(out="/data/other"))
    world.step()
    assert [world.state(job) for job in (first, second, elsewhere)] == [
        JobState.STARTING,
        JobState.QUEUED,
        JobState.STARTING,
    ]
    assert world.queue.get(second.id).reason == f"after {first.id}, which writes to the same place"
    grant = world.claim(first)
    assert grant.earlier is None
    end(world, grant, {"content_id": "c1"})
    world.step()
    assert world.claim(second).earlier == {"job_id": first.id, "result": {"content_id": "c1"}}


def test_a_preparation_that_cannot_run_lets_the_next_by(world: World) -> None:
    parent = world.submit()
    world.step()
    first = submit(world, {**prepare(), "queue": {**prepare_document()["queue"], "after": [parent.id]}})
    second, third = submit(world, prepare()), submit(world, prepare())
    world.queue.pause(second.id, "ann")
    world.step()
    assert world.state(third) == JobState.STARTING
    end(world, world.claim(parent), {})
    world.step()
    assert world.queue.get(first.id).reason == f"after {third.id}, which writes to the same place"


@pytest.mark.parametrize(
    "changes", [{"reuse": False}, {"seed": 1}, {"samples": 10}, {"out": "/data/other"}, {"images": "jpeg95"}]
)
def test_only_an_equal_job_is_offered_for_reuse_and_only_if_wanted(world: World, changes: dict[str, Any]) -> None:
    first = submit(world, prepare())
    world.step()
    end(world, world.claim(first), {"content_id": "c1"})
    world.step()
    second = submit(world, prepare(**changes))
    world.step()
    assert world.claim(second).earlier is None
