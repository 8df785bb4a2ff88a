"""Groups of workers of one attempt, and machines that go: who may write, who makes way, and what is planned on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from segfleet.cluster.launcher import RayState
from segfleet.errors import AttemptFencedError, QueueError
from segfleet.queue.eye import NODES_EVERY_S
from segfleet.queue.model import Grant, Job
from segfleet.queue.node_rows import FORGET_S, Leaving
from segfleet.queue.scheduling.values import Node
from segfleet.queue.service import Queue
from segfleet.queue.states import AttemptState, JobState
from world import World

LATER = "a later group of its workers has taken over"
SPOT = Leaving("ab12", "10.0.0.7", 1_700_000_060.0)


@pytest.fixture
def world(tmp_path: Path, database_url: str) -> World:
    return World(tmp_path, database_url)


def running(world: World, workers: int = 2, **queue: object) -> tuple[Job, Grant]:
    job = world.submit(workers, **queue)
    world.step()
    return job, world.claim(job)


def pointer(step: int) -> dict[str, object]:
    return {"path": f"/c/{step}", "step": step, "sha256": "0" * 64, "bytes": 1}


WRITES: dict[str, Callable[[Queue, str, str], object]] = {
    "heartbeat": lambda queue, attempt, token: queue.heartbeat(attempt, token, {"step": 1}),
    "checkpoint": lambda queue, attempt, token: queue.set_checkpoint(attempt, token, pointer(9)),
    "fault": lambda queue, attempt, token: queue.note_fault(attempt, token, "fault", {"message": "x"}),
    "fail": lambda queue, attempt, token: queue.fail(attempt, token, {"class": "data", "message": "x"}),
    "complete": lambda queue, attempt, token: queue.complete(attempt, token, {}),
    "yield": lambda queue, attempt, token: queue.yield_(attempt, token),
    "leave": lambda queue, attempt, token: queue.leave(attempt, token, [SPOT]),
    "authorize": lambda queue, attempt, token: queue.authorize(attempt, token),
}


@pytest.mark.parametrize("what", WRITES)
def test_a_group_that_was_followed_by_another_writes_nothing(world: World, what: str) -> None:
    job, grant = running(world)
    queue = world.queue
    first, token = queue.begin_group(grant.attempt_id, grant.token, "job")
    second, later = queue.begin_group(grant.attempt_id, grant.token, "job")
    assert (first, second) == (1, 2)
    before = queue.get(job.id), queue.events(job.id), queue.attempts(job.id)
    with pytest.raises(AttemptFencedError, match=LATER):
        WRITES[what](queue, grant.attempt_id, token)
    with pytest.raises(AttemptFencedError, match=LATER):
        queue.begin_group(grant.attempt_id, token, "other")
    assert (queue.get(job.id), queue.events(job.id), queue.attempts(job.id)) == before
    assert queue.heartbeat(grant.attempt_id, later) == "continue"
    assert queue.heartbeat(grant.attempt_id, grant.token) == "continue"  # the driver's own


def test_groups_of_other_scopes_go_on(world: World) -> None:
    _, grant = running(world)
    _, one = world.queue.begin_group(grant.attempt_id, grant.token, "trial1")
    number, two = world.queue.begin_group(grant.attempt_id, grant.token, "trial2")
    assert number == 1
    for token in (one, two):
        assert world.queue.is_token(grant.attempt_id, token)
        assert world.queue.heartbeat(grant.attempt_id, token) == "continue"


@pytest.mark.parametrize("forged", ["{0}.job.2", "{0}.job.0", "{0}.job", "{0}.x.1", "0.job.1", "{0}..1"])
def test_nobody_makes_up_a_group(world: World, forged: str) -> None:
    _, grant = running(world)
    world.queue.begin_group(grant.attempt_id, grant.token, "job")
    with pytest.raises(AttemptFencedError):
        world.queue.heartbeat(grant.attempt_id, forged.format(grant.token))


def test_a_later_group_may_fall_back_and_within_one_the_step_only_rises(world: World) -> None:
    job, grant = running(world)
    _, first = world.queue.begin_group(grant.attempt_id, grant.token, "job")
    world.queue.set_checkpoint(grant.attempt_id, first, pointer(30))
    world.queue.set_checkpoint(grant.attempt_id, first, pointer(30))
    with pytest.raises(QueueError, match="comes after"):
        world.queue.set_checkpoint(grant.attempt_id, first, pointer(20))
    _, second = world.queue.begin_group(grant.attempt_id, grant.token, "job")
    world.queue.set_checkpoint(grant.attempt_id, second, pointer(20))
    found = world.queue.get(job.id).checkpoint
    assert found is not None
    assert (found["step"], found["attempt"], found["group"]) == (20, grant.attempt_id, "job.2")


def test_a_training_on_a_machine_that_goes_makes_way_without_a_failure(world: World) -> None:
    world.ray.more = {"ab12": Node(2, 0)}
    world.ray.cpus = 1
    job, grant = running(world, workers=2, max_retries=0)
    queue = world.queue
    queue.leave(grant.attempt_id, grant.token, [SPOT])
    queue.leave(grant.attempt_id, grant.token, [SPOT])
    assert queue.heartbeat(grant.attempt_id, grant.token) == "preempt"
    queue.set_checkpoint(grant.attempt_id, grant.token, pointer(7))
    queue.yield_(grant.attempt_id, grant.token)
    world.ray.end(grant.attempt_id, RayState.SUCCEEDED)
    world.step()
    world.step()
    attempt = queue.attempts(job.id)[0]
    assert (attempt.state, attempt.failure) == (AttemptState.PREEMPTED, None)
    (asked,) = [event for event in queue.events(job.id) if event.kind == "preempting"]
    reason = "makes way: node 10.0.0.7 will leave the cluster at 2023-11-14 22:14:20 UTC"
    assert asked.detail == {
        "for": "drain",
        "reason": reason,
        "nodes": [{"address": "10.0.0.7", "leaves_at": SPOT.leaves_at}],
    }
    # The cluster still shows the machine, but nothing is planned onto it, at once.
    assert "needs 2 CPUs, the cluster has 1 CPU in all" in queue.get(job.id).reason
    assert [(machine.id, machine.is_leaving) for machine in queue.board.machines] == [("head", False), ("ab12", True)]
    world.ray.more["new"] = Node(2, 0)
    world.step(NODES_EVERY_S)
    assert world.state(job) == JobState.STARTING


def test_a_drain_changes_nothing_of_a_pause_or_a_cancel(world: World) -> None:
    job, grant = running(world)
    world.queue.pause(job.id, "ann")
    world.queue.leave(grant.attempt_id, grant.token, [Leaving("ab12", "10.0.0.7", None)])
    world.queue.yield_(grant.attempt_id, grant.token)
    assert world.state(job) == JobState.PAUSED


def test_machines_are_forgotten_long_after_they_were_told_of(world: World) -> None:
    _, grant = running(world)
    for node in ("old", "new"):
        world.queue.leave(grant.attempt_id, grant.token, [Leaving(node, "10.0.0.7", None)])
        with world.queue.store.read() as tx:
            assert node in tx.nodes.leaving()
        world.clock.advance(FORGET_S + 1)
    with world.queue.store.read() as tx:
        assert tx.nodes.leaving() == {"new"}


def test_the_nodes_are_looked_at_anew_when_an_attempt_was_lost(world: World) -> None:
    world.ray.more = {"ab12": Node(2, 0)}
    world.ray.cpus = 1
    job, grant = running(world, workers=2)
    world.ray.more.clear()
    world.queue.fail(grant.attempt_id, grant.token, {"class": "node", "message": "lost node 10.0.0.7"})
    world.ray.end(grant.attempt_id, RayState.FAILED)
    world.step(0.1)
    assert world.state(job) == JobState.QUEUED
    world.step(1.5)
    assert "needs 2 CPUs, the cluster has 1 CPU in all" in world.queue.get(job.id).reason
