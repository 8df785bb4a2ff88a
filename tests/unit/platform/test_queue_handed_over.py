"""Jobs of which the cluster, not the queue, decides when they run: Kueue's admission and what it takes back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from clusters import job
from segfleet.kube_settings import KubeSettings
from segfleet.queue.model import Job
from segfleet.queue.scheduling.plan import hand_over
from segfleet.queue.scheduling.values import Policy, Quota, Start, Wait
from segfleet.queue.states import JobState
from world import World

KUEUE = KubeSettings(
    url="https://kube", namespace="fleet", token_file=Path("t"), ca_file=Path("c"), template=Path("x"), queue="q"
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, kube=KUEUE)


def reach(world: World, job: Job, *, claimed: bool) -> None:
    world.step()
    if claimed:
        world.claim(job)
        world.step()


def test_every_job_is_handed_over_in_its_order_whatever_the_quotas() -> None:
    elastic = replace(job(2, workers=2, priority=90), gang=replace(job(2, workers=2).gang, max_workers=4))
    line = [job(1, workers=100), elastic, job(3, not_before=30.0), replace(job(4), hindrance="after job-1")]
    policy = Policy(projects={"default": Quota(max_running=1)}, users={"": Quota(max_running=1)})
    assert hand_over(line, [], 0.0, use={}, policy=policy) == [
        Start("job-2", 2),
        Start("job-1", 100),
        Wait("job-3", 1, "retry in 30 s"),
        Wait("job-4", 2, "after job-1"),
    ]


def test_more_is_handed_over_than_the_nodes_hold(world: World) -> None:
    jobs = [world.submit(workers=2) for _ in range(3)]
    world.ray.cpus = 0
    world.step()
    assert [world.state(job) for job in jobs] == [JobState.STARTING] * 3
    assert {sent.needs.workers for sent in world.ray.jobs.values() if sent.needs} == {2}


def test_without_kueue_the_same_jobs_wait(tmp_path: Path) -> None:
    world = World(tmp_path, kube=replace(KUEUE, queue=""))
    jobs = [world.submit(workers=2) for _ in range(3)]
    world.step()
    assert [world.state(job) for job in jobs] == [JobState.STARTING, JobState.QUEUED, JobState.QUEUED]


def test_an_attempt_that_is_held_has_no_start_deadline_until_it_is_let_go(world: World) -> None:
    job = world.submit(max_retries=0)
    world.step()
    world.ray.jobs[f"{job.id}-a1"].is_held = True
    world.pass_time(600)
    assert world.state(job) == JobState.STARTING
    world.ray.jobs[f"{job.id}-a1"].is_held = False
    world.pass_time(50)
    assert world.state(job) == JobState.STARTING
    world.pass_time(20)
    assert world.state(job) == JobState.FAILED


def test_nodes_that_are_taken_back_cost_no_retry(world: World) -> None:
    job = world.submit(max_retries=0)
    reach(world, job, claimed=True)
    world.ray.jobs[f"{job.id}-a1"].is_held = True
    world.step()
    assert world.queue.get(job.id).state == JobState.QUEUED
    assert "took its nodes for others" in str(world.queue.events(job.id)[-1])
    world.pass_time(10)
    assert f"{job.id}-a1" in world.ray.stops
    assert world.queue.get(job.id).attempt == 2


@pytest.mark.parametrize("claimed", [False, True])
def test_a_held_job_can_be_cancelled(world: World, claimed: bool) -> None:
    job = world.submit()
    reach(world, job, claimed=claimed)
    world.ray.jobs[f"{job.id}-a1"].is_held = True
    world.queue.cancel(job.id, who="ann")
    world.pass_time(10)
    assert world.state(job) == JobState.CANCELLED
