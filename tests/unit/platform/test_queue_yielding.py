"""Making room and pausing: who is asked, what becomes of the job, and that nothing of it counts as a failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from factories import prepare_document
from segfleet.cluster.launcher import RayState
from segfleet.errors import AttemptFencedError, IllegalTransitionError, QueueError
from segfleet.queue.model import Grant, Job
from segfleet.queue.states import AttemptState, JobState
from world import World

CHECKPOINT = {"path": "/c", "step": 7, "sha256": "0" * 64, "bytes": 1}


@pytest.fixture
def world(tmp_path: Path, database_url: str) -> World:
    world = World(tmp_path, database_url)
    world.queue.set_policy("cluster", "cluster", {"preempt_for_priority": True, "min_run": "20s", "grace": "30s"})
    return world


def running(world: World, workers: int = 2, **queue: object) -> tuple[Job, Grant]:
    job = world.submit(workers, **queue)
    world.step()
    return job, world.claim(job)


def test_a_higher_job_makes_a_lower_one_write_a_checkpoint_and_go_back_to_its_place(world: World) -> None:
    low, grant = running(world, priority=10)
    later = world.submit(2, priority=10)
    high = world.submit(2, priority=90)
    world.step()
    assert world.queue.heartbeat(grant.attempt_id, grant.token) == "continue"  # not within its minimum run time
    world.pass_time(25, beat=grant)
    assert world.queue.heartbeat(grant.attempt_id, grant.token) == "preempt"
    assert world.state(low) == JobState.PREEMPTING
    assert f"{low.id} makes room" in world.queue.get(high.id).reason
    world.queue.set_checkpoint(grant.attempt_id, grant.token, CHECKPOINT)
    world.queue.yield_(grant.attempt_id, grant.token)
    world.ray.end(grant.attempt_id, RayState.SUCCEEDED)
    world.step()
    world.step()
    assert (world.state(low), world.state(high)) == (JobState.QUEUED, JobState.STARTING)
    assert (world.queue.get(low.id).place, world.queue.get(later.id).place) == (1, 2)
    assert world.queue.attempts(low.id)[0].state == AttemptState.PREEMPTED
    assert world.queue.attempts(low.id)[0].failure is None
    winner = world.claim(high)
    world.queue.complete(winner.attempt_id, winner.token, {})
    world.ray.end(winner.attempt_id, RayState.SUCCEEDED)
    world.step()
    world.step()
    again = world.claim(low, number=2)
    assert again.checkpoint is not None
    assert again.checkpoint["step"] == 7
    kinds = [event.kind for event in world.queue.events(low.id)]
    assert [kind for kind in kinds if kind in ("preempting", "preempted")] == ["preempting", "preempted"]


def test_an_attempt_that_does_not_go_in_time_is_stopped_and_that_is_no_failure_either(world: World) -> None:
    low, grant = running(world, priority=10, max_retries=0)
    world.submit(2, priority=90)
    while world.queue.heartbeat(grant.attempt_id, grant.token) == "continue":
        world.pass_time(5)
    world.pass_time(25, beat=grant)
    assert world.ray.stops == []
    world.pass_time(10)
    assert world.ray.stops == [grant.attempt_id]
    world.step()
    assert world.queue.attempts(low.id)[0].state == AttemptState.PREEMPTED
    assert world.state(low) == JobState.QUEUED
    with pytest.raises(AttemptFencedError):
        world.queue.heartbeat(grant.attempt_id, grant.token)


def test_an_attempt_that_falls_silent_while_making_room_is_no_failure(world: World) -> None:
    low, grant = running(world, priority=10, max_retries=0)
    world.pass_time(25, beat=grant)
    world.submit(2, priority=90)
    world.step()
    world.ray.reachable = False
    world.pass_time(40)
    assert world.queue.attempts(low.id)[0].state == AttemptState.PREEMPTED
    assert world.state(low) == JobState.QUEUED


def test_without_the_switch_nobody_is_stopped(world: World) -> None:
    world.queue.set_policy("cluster", "cluster", {})
    low, grant = running(world, priority=10)
    world.submit(2, priority=90)
    world.pass_time(900, beat=grant)
    assert world.state(low) == JobState.RUNNING


def test_only_what_can_go_on_later_is_asked(world: World) -> None:
    job, _ = world.queue.submit(prepare_document(priority=10), owner="ann")
    world.step()
    grant = world.claim(job)
    world.submit(2, priority=90)
    world.pass_time(60, beat=grant)
    assert world.state(job) == JobState.RUNNING


def test_nobody_makes_room_unasked(world: World) -> None:
    _, grant = running(world)
    with pytest.raises(QueueError, match="nobody has asked"):
        world.queue.yield_(grant.attempt_id, grant.token)


def test_a_lost_answer_to_the_last_word_is_asked_again(world: World) -> None:
    job, grant = running(world)
    world.queue.pause(job.id, "ann")
    world.queue.yield_(grant.attempt_id, grant.token)
    assert world.queue.yield_(grant.attempt_id, grant.token).state == JobState.PAUSED


def test_a_running_job_pauses_after_its_checkpoint_and_resumes_from_it(world: World) -> None:
    job, grant = running(world)
    assert world.queue.pause(job.id, "ann").state == JobState.PREEMPTING
    assert world.queue.heartbeat(grant.attempt_id, grant.token) == "preempt"
    world.queue.set_checkpoint(grant.attempt_id, grant.token, CHECKPOINT)
    world.queue.yield_(grant.attempt_id, grant.token)
    world.ray.end(grant.attempt_id, RayState.SUCCEEDED)
    world.pass_time(60)
    assert world.state(job) == JobState.PAUSED
    assert world.queue.resume(job.id, "ann").state == JobState.QUEUED
    world.step()
    assert world.claim(job, number=2).checkpoint is not None


def test_a_waiting_job_pauses_at_once_and_keeps_its_age(world: World) -> None:
    first, second = world.submit(2), world.submit(2)
    world.queue.pause(first.id, "ann")
    world.step()
    assert (world.state(first), world.state(second)) == (JobState.PAUSED, JobState.STARTING)
    third = world.submit(2)
    world.queue.resume(first.id, "ann")
    world.step()
    assert world.queue.get(first.id).place == 1
    assert world.queue.get(third.id).place == 2


def test_a_job_paused_while_it_starts_pauses_once_it_runs(world: World) -> None:
    job = world.submit()
    world.step()
    world.queue.pause(job.id, "ann")
    grant = world.claim(job)
    assert world.queue.heartbeat(grant.attempt_id, grant.token) == "preempt"
    world.queue.yield_(grant.attempt_id, grant.token)
    assert world.state(job) == JobState.PAUSED


def test_a_job_paused_while_it_starts_is_paused_too_if_its_attempt_is_lost(world: World) -> None:
    job = world.submit()
    world.step()
    world.queue.pause(job.id, "ann")
    world.ray.end(f"{job.id}-a1", RayState.FAILED, "no room")
    world.step()
    assert world.state(job) == JobState.PAUSED


def test_a_paused_job_is_cancelled_once_its_last_attempt_has_left_the_cluster(world: World) -> None:
    job, grant = running(world)
    world.queue.fail(grant.attempt_id, grant.token, {"class": "infra", "message": "x"})
    world.queue.pause(job.id, "ann")
    assert world.queue.cancel(job.id, "ann").state == JobState.PAUSED  # its process may still be there
    with pytest.raises(IllegalTransitionError, match="being cancelled"):
        world.queue.resume(job.id, "ann")
    world.ray.end(grant.attempt_id, RayState.FAILED)
    world.step()
    assert world.state(job) == JobState.CANCELLED


def test_a_lost_attempt_of_a_pausing_job_leaves_it_paused(world: World) -> None:
    job, grant = running(world)
    world.queue.pause(job.id, "ann")
    world.queue.fail(grant.attempt_id, grant.token, {"class": "infra", "message": "x"})
    assert world.state(job) == JobState.PAUSED


def test_a_paused_job_is_cancelled_at_once_and_a_pausing_one_when_it_is_gone(world: World) -> None:
    waiting = world.submit()
    world.queue.pause(waiting.id, "ann")
    assert world.queue.cancel(waiting.id, "ann").state == JobState.CANCELLED
    job, grant = running(world)
    world.queue.pause(job.id, "ann")
    world.queue.cancel(job.id, "ann")
    assert world.queue.heartbeat(grant.attempt_id, grant.token) == "cancel"
    world.queue.yield_(grant.attempt_id, grant.token)
    world.step()
    world.step()
    assert world.state(job) == JobState.CANCELLED


def test_what_has_ended_cannot_be_paused_and_what_is_not_paused_cannot_be_resumed(world: World) -> None:
    job = world.submit()
    assert world.queue.resume(job.id, "ann").state == JobState.QUEUED, "it is in the line already"
    world.queue.cancel(job.id, "ann")
    with pytest.raises(IllegalTransitionError, match="it is cancelled; only paused jobs can be resumed"):
        world.queue.resume(job.id, "ann")
    with pytest.raises(IllegalTransitionError, match="pause"):
        world.queue.pause(job.id, "ann")
    with pytest.raises(IllegalTransitionError, match="priority"):
        world.queue.set_priority(job.id, "ann", 3)


def test_a_changed_priority_counts_at_the_next_turn_and_stands_in_the_history(world: World) -> None:
    running(world)
    first, second = world.submit(2), world.submit(2)
    world.queue.set_priority(second.id, "ann", 60)
    world.step()
    assert (world.queue.get(second.id).place, world.queue.get(first.id).place) == (1, 2)
    event = world.queue.events(second.id)[-1]
    assert (event.kind, event.who, event.detail) == ("priority", "ann", {"before": 50, "after": 60})


def test_a_restarted_service_keeps_to_the_operators_grace(world: World) -> None:
    world.queue.set_policy("cluster", "cluster", {"grace": "10m"})
    _, grant = running(world)
    world.queue.pause(grant.job_id, "ann")
    world.pass_time(200, beat=grant)
    world.restart()
    world.step()
    world.step()
    assert world.ray.stops == []


def test_a_zombie_of_an_old_head_that_does_not_make_room_is_given_up(world: World) -> None:
    job, grant = running(world)
    world.queue.pause(job.id, "ann")
    world.ray.restart_head()
    world.pass_time(25, beat=grant)
    assert world.state(job) == JobState.PREEMPTING
    while world.state(job) == JobState.PREEMPTING:
        world.step(5.0)
        if world.state(job) == JobState.PREEMPTING:
            world.queue.heartbeat(grant.attempt_id, grant.token)
    assert world.state(job) == JobState.PAUSED


def test_making_room_survives_a_kill_of_the_service(world: World) -> None:
    low, grant = running(world, priority=10)
    world.pass_time(25, beat=grant)
    world.submit(2, priority=90)
    world.step()
    world.restart()
    assert world.queue.heartbeat(grant.attempt_id, grant.token) == "preempt"
    world.queue.yield_(grant.attempt_id, grant.token)
    assert world.state(low) == JobState.QUEUED
