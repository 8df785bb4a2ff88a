"""Jobs that wait for others, and the operator's quotas."""

from __future__ import annotations

from pathlib import Path

import pytest

from factories import train_document
from segfleet.cluster.launcher import RayState
from segfleet.errors import QuotaExceededError, SpecError
from segfleet.queue.model import Job
from segfleet.queue.states import JobState
from world import World


@pytest.fixture
def world(tmp_path: Path, database_url: str) -> World:
    return World(tmp_path, database_url)


def finish(world: World, job: Job, number: int = 1, failure: str = "") -> None:
    grant = world.claim(job, number)
    if failure:
        world.queue.fail(grant.attempt_id, grant.token, {"class": failure, "message": "broken"})
    else:
        world.queue.complete(grant.attempt_id, grant.token, {})
    world.ray.end(grant.attempt_id, RayState.SUCCEEDED)
    world.step()


def test_a_job_starts_after_the_one_it_follows_and_holds_back_nobody(world: World) -> None:
    parent = world.submit()
    child = world.submit(after=[parent.id])
    other = world.submit()
    world.step()
    assert (world.state(child), world.state(other)) == (JobState.QUEUED, JobState.STARTING)
    assert world.queue.get(child.id).reason == f"after {parent.id} (queued)"
    world.step()
    assert world.queue.get(child.id).reason == f"after {parent.id} (starting)"
    finish(world, parent)
    world.step()
    assert world.state(child) == JobState.STARTING


@pytest.mark.parametrize(
    ("condition", "failure", "state"),
    [
        ("", "", JobState.STARTING),
        (":ok", "user", JobState.FAILED),
        (":failed", "user", JobState.STARTING),
        (":failed", "", JobState.FAILED),
        (":any", "user", JobState.STARTING),
        (":any", "", JobState.STARTING),
    ],
)
def test_the_end_of_the_parent_decides(world: World, condition: str, failure: str, state: JobState) -> None:
    parent = world.submit()
    child = world.submit(after=[f"{parent.id}{condition}"])
    world.step()
    finish(world, parent, failure=failure)
    world.step()
    assert world.state(child) == state
    if state == JobState.FAILED:
        job = world.queue.get(child.id)
        assert job.reason.startswith(f"skipped: {parent.id} was to ")
        assert job.error is not None
        assert job.error["class"] == "dependency"


def test_a_chain_falls_with_its_first_link_and_can_be_retried_after_it_is_mended(world: World) -> None:
    first = world.submit()
    second = world.submit(after=[first.id])
    third = world.submit(after=[second.id])
    world.step()
    finish(world, first, failure="user")
    world.step()
    world.step()
    assert (world.state(second), world.state(third)) == (JobState.FAILED, JobState.FAILED)
    world.queue.retry(first.id, "ann")
    world.queue.retry(second.id, "ann")
    world.step()
    finish(world, first, number=2)
    world.step()
    assert world.state(second) == JobState.STARTING


def test_all_parents_must_have_ended(world: World) -> None:
    one, two = world.submit(), world.submit()
    child = world.submit(after=[one.id, two.id])
    world.step()
    finish(world, one)
    world.step()
    assert world.queue.get(child.id).reason == f"after {two.id} (starting)"
    finish(world, two)
    world.step()
    assert world.state(child) == JobState.STARTING


def test_a_job_that_is_not_there_cannot_be_followed(world: World) -> None:
    with pytest.raises(SpecError, match=r"queue.after\[0\]: there is no job 'job-zzzzzzzz'"):
        world.submit(after=["job-zzzzzzzz"])
    parent = world.submit()
    with pytest.raises(SpecError, match="named twice"):
        world.submit(after=[parent.id, f"{parent.id}:any"])
    assert len(world.queue.list()) == 1


def test_a_project_may_have_so_many_jobs_waiting(world: World) -> None:
    world.queue.set_policy("project", "vision", {"max_queued": 1})
    world.submit(project="vision")
    with pytest.raises(QuotaExceededError, match="project 'vision' has 1 waiting jobs, its quota is 1"):
        world.submit(project="vision")
    world.submit(project="other")
    world.step()
    world.submit(project="vision")


def test_a_user_may_have_so_many_jobs_waiting(world: World) -> None:
    world.queue.set_policy("user", "ann", {"max_queued": 0})
    with pytest.raises(QuotaExceededError, match="user 'ann'"):
        world.submit()
    assert world.queue.submit(train_document(), owner="bob")[0].state == JobState.QUEUED


def test_a_project_at_its_bound_waits_and_says_so_while_others_start(world: World) -> None:
    world.queue.set_policy("project", "vision", {"max_workers": 1})
    world.submit(project="vision")
    second = world.submit(project="vision")
    other = world.submit(project="other")
    world.step()
    assert world.queue.get(second.id).reason == "quota: project vision has 1 of 1 worker, this job needs 1"
    assert world.state(other) == JobState.STARTING


def test_projects_of_equal_use_take_turns(world: World) -> None:
    """A burst of one project does not keep another waiting until it is through."""
    burst = [world.submit(2, project="burst") for _ in range(3)]
    late = world.submit(2, project="late")
    world.step()
    world.step()
    assert world.state(burst[0]) == JobState.STARTING
    assert world.queue.get(late.id).place == 1


@pytest.mark.parametrize(
    ("scope", "name", "rules", "named"),
    [
        ("galaxy", "x", {}, "galaxy"),
        ("project", "No Name", {}, "No Name"),
        ("cluster", "other", {}, "other"),
        ("project", "cluster", {"worker": 3}, "worker"),
        ("project", "p", {"workers": -1}, "workers"),
        ("user", "u", {"workers": 1}, "workers"),
        ("cluster", "cluster", {"grace": "soon"}, "soon"),
    ],
)
def test_rules_that_mean_nothing_are_refused(
    world: World, scope: str, name: str, rules: dict[str, object], named: str
) -> None:
    with pytest.raises(SpecError, match=named):
        world.queue.set_policy(scope, name, rules)
    assert world.queue.policies() == ()


def test_rules_are_kept_replaced_and_removed(world: World) -> None:
    world.queue.set_policy("project", "vision", {"workers": 4, "weight": 2.0, "gpus": None})
    world.restart()
    assert world.queue.policies() == ({"scope": "project", "name": "vision", "rules": {"workers": 4, "weight": 2.0}},)
    world.queue.set_policy("project", "vision", {"workers": 5})
    assert world.queue.policies()[0]["rules"] == {"workers": 5}
    world.queue.set_policy("project", "vision", {})
    assert world.queue.policies() == ()


def test_only_the_first_of_each_project_is_overtaken(world: World) -> None:
    with world.queue.store.write() as tx:
        tx.set_policy("cluster", "cluster", {})
    first, second, other = world.submit(project="a"), world.submit(project="a"), world.submit(project="b")
    held = world.submit(project="c", after=[other.id])
    late = world.submit(project="d")
    with world.queue.store.write() as tx:
        tx.count_overtaking(tx.job(late.id), world.clock())
    overtaken = {job.id: world.queue.get(job.id).overtaken for job in (first, second, other, held, late)}
    assert overtaken == {first.id: 1, second.id: 0, other.id: 1, held.id: 0, late.id: 0}
