from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from segfleet.cluster.launcher import ENTRY_MODULES, RayState
from segfleet.errors import AttemptFencedError, QueueUnavailableError
from segfleet.queue import lifecycle
from segfleet.queue.dispatcher import Dispatcher
from segfleet.queue.model import Attempt, Job
from segfleet.queue.states import JobState
from segfleet.queue.store import Transaction
from segfleet.spec.kinds import KINDS
from world import World


@pytest.fixture
def world(tmp_path: Path, queue_url: str) -> Iterator[World]:
    made = World(tmp_path, queue_url)
    yield made
    made.queue.store.close()


def test_every_kind_of_job_has_a_module_to_run() -> None:
    assert ENTRY_MODULES.keys() == KINDS.keys()


def test_a_job_goes_to_the_cluster_with_a_constant_command_and_its_code(world: World) -> None:
    job = world.submit(workers=2)
    world.step()
    sent = world.ray.jobs[f"{job.id}-a1"]
    assert sent.command.endswith(" -m segfleet_jobs.train")
    assert sent.env["SEGFLEET_ATTEMPT"] == f"{job.id}-a1"
    assert sent.env["SEGFLEET_URL"] == "http://127.0.0.1:8700"
    assert sent.env["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5000"
    assert sent.metadata == {"job": job.id, "attempt": "1", "fence": "1"}
    assert world.state(job) == JobState.STARTING
    world.claim(job)
    assert world.state(job) == JobState.RUNNING


def test_jobs_wait_with_a_reason_until_there_is_room(world: World) -> None:
    first, second = world.submit(workers=2), world.submit()
    world.step()
    assert (world.queue.get(second.id).reason, world.queue.get(second.id).place) == ("needs 1 CPU, 0 of 2 free", 1)
    grant = world.claim(first)
    world.queue.complete(grant.attempt_id, grant.token, {})
    world.step()
    # Its driver has not left yet, so its CPUs are not free.
    assert world.state(second) == JobState.QUEUED
    world.ray.end(grant.attempt_id, RayState.SUCCEEDED)
    world.step()
    world.step()
    assert world.state(second) == JobState.STARTING


def test_no_attempt_is_used_up_while_the_cluster_is_out_of_reach(world: World) -> None:
    world.ray.reachable = False
    job = world.submit(max_retries=0)
    world.pass_time(600)
    waiting = world.queue.get(job.id)
    assert (waiting.state, waiting.attempt) == (JobState.QUEUED, 0)
    assert "cannot be reached" in waiting.reason
    world.ray.reachable = True
    world.step()
    assert world.state(job) == JobState.STARTING


@pytest.mark.parametrize("behaviour", ["lost", "lost_answer"])
@pytest.mark.parametrize("restart", [False, True])
def test_a_lost_answer_to_a_submission_is_looked_up_and_runs_once(world: World, behaviour: str, restart: bool) -> None:
    job = world.submit(max_retries=0)
    world.ray.next_submits = [behaviour]
    world.step()
    if restart:
        world.restart()
    world.step()
    assert world.ray.runs == [f"{job.id}-a1"]
    world.claim(job)
    assert world.state(job) == JobState.RUNNING


def test_a_service_killed_between_commit_and_submission_sends_it_after_all(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = world.submit(max_retries=0)
    monkeypatch.setattr(Dispatcher, "_post", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        world.step()
    monkeypatch.undo()
    assert (world.state(job), world.ray.runs) == (JobState.STARTING, [])
    world.restart()
    world.step()
    assert world.ray.runs == [f"{job.id}-a1"]
    world.claim(job)


def test_a_submission_that_waits_for_an_unreachable_cluster_uses_up_no_retry(world: World) -> None:
    job = world.submit(max_retries=0)
    world.ray.next_submits = ["lost"]
    world.step()
    world.ray.reachable = False
    world.pass_time(600)
    assert world.state(job) == JobState.STARTING
    world.ray.reachable = True
    world.step()
    world.claim(job)


def test_a_refused_submission_is_not_repeated_for_ever(world: World) -> None:
    job = world.submit(max_retries=1)
    world.ray.next_submits = ["refused", "refused"]
    world.step()
    assert "bad runtime_env" in world.queue.get(job.id).error["message"]  # type: ignore[index]
    world.pass_time(20)
    assert world.state(job) == JobState.FAILED
    assert world.ray.runs == []


def test_a_running_job_is_adopted_after_a_kill_of_the_service(world: World) -> None:
    job = world.submit()
    world.step()
    grant = world.claim(job)
    world.restart()
    world.pass_time(120, beat=grant)
    assert world.queue.complete(grant.attempt_id, grant.token, {}).state == JobState.SUCCEEDED
    assert world.ray.runs == [grant.attempt_id]


def test_silence_ends_an_attempt_even_if_ray_says_it_runs(world: World) -> None:
    job = world.submit()
    world.step()
    grant = world.claim(job)
    world.pass_time(45)
    lost = world.queue.get(job.id)
    assert lost.error == {"class": "infra", "message": "no heartbeat for 30 s", "attempt": grant.attempt_id}
    with pytest.raises(AttemptFencedError):
        world.queue.heartbeat(grant.attempt_id, grant.token)
    assert grant.attempt_id in world.ray.stops
    world.pass_time(10)
    assert world.ray.runs == [f"{job.id}-a1", f"{job.id}-a2"]
    assert world.claim(job, 2).fence == grant.fence + 1


def test_a_restarted_service_gives_a_whole_lease_before_it_reaps(world: World) -> None:
    job = world.submit()
    world.step()
    grant = world.claim(job)
    world.pass_time(20)
    world.clock.advance(3600)
    world.restart()
    world.pass_time(25)
    assert world.queue.heartbeat(grant.attempt_id, grant.token) == "continue"


def test_the_next_attempt_waits_until_the_last_one_is_gone_but_not_for_ever(world: World) -> None:
    job = world.submit()
    world.step()
    world.claim(job)
    world.ray.obeys_stop = False
    world.pass_time(60)
    assert world.ray.runs == [f"{job.id}-a1"]
    assert world.queue.get(job.id).reason == f"waits until {job.id}-a1 is gone from the cluster"
    world.pass_time(130)
    assert world.ray.runs == [f"{job.id}-a1", f"{job.id}-a2"]
    assert "abandoned" in [event.kind for event in world.queue.events(job.id)]


@pytest.mark.parametrize("end", [RayState.FAILED, RayState.SUCCEEDED, RayState.STOPPED])
def test_an_end_without_completion_is_a_loss_whatever_ray_calls_it(world: World, end: RayState) -> None:
    job = world.submit()
    world.step()
    grant = world.claim(job)
    world.ray.end(grant.attempt_id, end, "exit code 0")
    world.step()
    after = world.queue.get(job.id)
    assert after.state == JobState.QUEUED
    assert after.error["message"] == f"Ray says {end}: exit code 0"  # type: ignore[index]


def test_a_driver_that_never_claims_is_lost_at_its_deadline(world: World) -> None:
    job = world.submit(max_retries=0)
    world.step()
    world.pass_time(55)
    assert world.state(job) == JobState.STARTING
    world.pass_time(20)
    assert world.state(job) == JobState.FAILED
    assert f"{job.id}-a1" in world.ray.stops


def test_after_a_restart_of_the_head_the_lease_decides(world: World) -> None:
    job = world.submit()
    world.step()
    grant = world.claim(job)
    world.ray.restart_head()
    world.pass_time(60, beat=grant)
    assert world.state(job) == JobState.RUNNING
    world.pass_time(50)
    assert [attempt.state for attempt in world.queue.attempts(job.id)] == ["lost", "starting"]


def test_an_unclaimed_attempt_of_a_restarted_head_is_sent_again_as_a_new_attempt(world: World) -> None:
    job = world.submit()
    world.step()
    world.ray.restart_head()
    world.pass_time(10)
    assert world.ray.runs == [f"{job.id}-a1", f"{job.id}-a2"]


def test_a_poison_job_fails_after_its_retries_and_others_go_on(world: World) -> None:
    poison, healthy = world.submit(max_retries=2), world.submit()
    for _ in range(40):
        for attempt_id, fake in world.ray.jobs.items():
            if attempt_id.startswith(poison.id):
                fake.state = RayState.FAILED
        world.step(1.0)
    assert world.state(poison) == JobState.FAILED
    assert world.queue.get(poison.id).attempt == 3
    assert world.state(healthy) == JobState.STARTING


@pytest.mark.parametrize("claimed", [False, True])
def test_a_cancelled_job_ends_once_its_process_is_gone(world: World, claimed: bool) -> None:
    job = world.submit()
    world.step()
    if claimed:
        world.claim(job)
    world.ray.obeys_stop = False
    world.queue.cancel(job.id, "ann")
    world.step()
    assert world.ray.stops == [f"{job.id}-a1"]
    assert world.state(job) in (JobState.STARTING, JobState.RUNNING)
    world.ray.end(f"{job.id}-a1", RayState.STOPPED)
    world.step()
    assert world.state(job) == JobState.CANCELLED
    world.pass_time(60)
    assert [event.target for event in world.queue.events(job.id)].count(JobState.CANCELLED) == 1
    assert world.queue.get(job.id).attempt == 1


def test_a_cancel_before_the_cluster_got_the_job_starts_nothing(world: World) -> None:
    job = world.submit()
    world.ray.next_submits = ["lost"]
    world.step()
    world.queue.cancel(job.id, "ann")
    world.step()
    assert world.state(job) == JobState.CANCELLED
    assert world.ray.runs == []


def test_a_cancel_is_over_at_the_end_of_the_lease_when_ray_is_gone(world: World) -> None:
    job = world.submit()
    world.step()
    world.claim(job)
    world.queue.cancel(job.id, "ann")
    world.ray.reachable = False
    world.pass_time(40)
    assert world.state(job) == JobState.CANCELLED


def test_the_time_limit_counts_all_attempts(world: World) -> None:
    job = world.submit(time_limit="60s")
    world.step()
    grant = world.claim(job)
    world.pass_time(40, beat=grant)
    world.ray.end(grant.attempt_id, RayState.FAILED)
    world.pass_time(10)
    second = world.claim(job, 2)
    world.pass_time(15, beat=second)
    assert world.state(job) == JobState.RUNNING
    world.step(6.0)
    failed = world.queue.get(job.id)
    assert (failed.state, failed.error["class"]) == (JobState.FAILED, "time_limit")  # type: ignore[index]
    world.step()
    assert second.attempt_id in world.ray.stops


def test_a_driver_that_does_not_leave_after_its_result_is_stopped(world: World) -> None:
    job = world.submit()
    world.step()
    grant = world.claim(job)
    world.queue.complete(grant.attempt_id, grant.token, {})
    world.pass_time(25)
    assert world.ray.stops == []
    world.pass_time(10)
    assert world.ray.stops == [grant.attempt_id]
    assert world.state(job) == JobState.SUCCEEDED


def test_logs_are_copied_once_and_to_the_end(world: World) -> None:
    job = world.submit()
    world.step()
    grant = world.claim(job)
    world.ray.jobs[grant.attempt_id].log = "one\n"
    world.step(3.0)
    assert world.log(grant.attempt_id) == b"one\n"
    world.restart()
    world.ray.jobs[grant.attempt_id].log = "one\ntw\u00f6\n"
    world.step(3.0)
    assert world.log(grant.attempt_id) == "one\ntw\u00f6\n".encode()
    world.queue.complete(grant.attempt_id, grant.token, {})
    world.ray.jobs[grant.attempt_id].log = "one\ntw\u00f6\nthe end\n"
    world.ray.end(grant.attempt_id, RayState.SUCCEEDED)
    world.step(0.1)
    assert world.log(grant.attempt_id).endswith(b"the end\n")
    assert world.queue.attempts(job.id)[0].closed
    world.ray.restart_head()
    world.step(3.0)
    assert world.log(grant.attempt_id).endswith(b"the end\n")


def test_trouble_with_one_attempt_does_not_stop_the_others(world: World) -> None:
    first = world.submit()
    world.step()
    grant = world.claim(first)
    world.ray.failing = True
    second = world.submit()
    world.pass_time(60, beat=grant)
    assert f"{second.id}-a1" in world.ray.runs
    assert world.state(first) == JobState.RUNNING


def test_a_turn_that_fails_does_not_end_the_dispatcher(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    turns: list[float] = []

    def step(self: Dispatcher, now: float) -> None:
        turns.append(now)
        if len(turns) == 3:
            stop.set()
        raise RuntimeError("a bug")

    monkeypatch.setattr(Dispatcher, "step", step)
    monkeypatch.setattr(stop, "wait", lambda _: None)
    world.dispatcher.run(stop)
    assert len(turns) == 3


def test_a_log_that_is_never_to_be_had_does_not_hold_the_cluster(world: World) -> None:
    job, waiting = world.submit(workers=2), world.submit(workers=2)
    world.step()
    grant = world.claim(job)
    world.queue.complete(grant.attempt_id, grant.token, {})
    world.ray.end(grant.attempt_id, RayState.SUCCEEDED)
    world.ray.broken_logs = True
    world.pass_time(100)
    assert world.state(waiting) == JobState.QUEUED
    world.pass_time(40)
    assert world.state(waiting) == JobState.STARTING
    assert world.queue.attempts(job.id)[0].closed
    assert b"end of the log could not be had" in world.log(grant.attempt_id)


def test_an_ended_attempt_of_which_ray_says_nothing_does_not_hold_the_cluster(world: World) -> None:
    job, waiting = world.submit(workers=2), world.submit(workers=2)
    world.step()
    grant = world.claim(job)
    world.queue.complete(grant.attempt_id, grant.token, {})
    world.ray.failing = True
    world.pass_time(150)
    assert grant.attempt_id in world.ray.stops
    assert world.state(waiting) == JobState.STARTING
    assert "abandoned" in [event.kind for event in world.queue.events(job.id)]


def test_the_longer_a_log_takes_the_more_rarely_it_is_asked_for(world: World) -> None:
    job = world.submit()
    world.step()
    grant = world.claim(job)
    world.ray.log_takes_s = 1.0
    world.step(3.0)
    assert world.ray.fetches == [grant.attempt_id]
    world.pass_time(15, beat=grant)
    assert world.ray.fetches == [grant.attempt_id]
    world.pass_time(10, beat=grant)
    assert world.ray.fetches == [grant.attempt_id] * 2


def test_slow_turns_do_not_keep_the_silent_alive(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = world.submit()
    world.step()
    grant = world.claim(job)
    status = world.ray.status
    monkeypatch.setattr(world.ray, "status", lambda name: (world.clock.advance(20.0), status(name))[1])
    for _ in range(4):
        world.step()
    assert world.queue.attempts(job.id)[0].state == "lost"
    assert world.queue.attempts(job.id)[0].failure["message"] == "no heartbeat for 30 s"  # type: ignore[index]
    assert grant.attempt_id in world.ray.runs


@pytest.mark.parametrize("error", [ValueError("a bug"), UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogate")])
def test_an_attempt_that_nobody_can_handle_stops_no_other_and_keeps_its_lease(world: World, error: Exception) -> None:
    poison = world.submit(max_retries=0)
    world.step()
    world.claim(poison)
    world.ray.broken[f"{poison.id}-a1"] = error
    other = world.submit()
    world.step()
    assert world.state(other) == JobState.STARTING
    grant = world.claim(other)
    world.pass_time(50, beat=grant)
    assert (world.state(poison), world.state(other)) == (JobState.FAILED, JobState.RUNNING)


def test_trouble_in_settling_one_attempt_stops_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    poison, other = world.submit(), world.submit()
    world.step()
    ends = lifecycle.end_failed

    def end_failed(tx: Transaction, job: Job, *rest: object, **more: object) -> Job:
        if job.id == poison.id:
            raise RuntimeError("a bug")
        return ends(tx, job, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(lifecycle, "end_failed", end_failed)
    for job in (poison, other):
        world.ray.end(f"{job.id}-a1", RayState.FAILED)
    world.step()
    assert (world.state(poison), world.state(other)) == (JobState.STARTING, JobState.QUEUED)


def test_a_job_that_cannot_be_started_stops_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    poison, other = world.submit(), world.submit()
    begin = lifecycle.begin_attempt

    def begin_attempt(tx: Transaction, job: Job, workers: int, code_hash: str, now: float) -> Attempt:
        if job.id == poison.id:
            raise RuntimeError("a bug")
        return begin(tx, job, workers, code_hash, now)

    monkeypatch.setattr(lifecycle, "begin_attempt", begin_attempt)
    world.step()
    assert (world.state(poison), world.state(other)) == (JobState.QUEUED, JobState.STARTING)


def test_a_database_that_refuses_is_no_trouble_of_one_attempt(world: World) -> None:
    job = world.submit()
    world.step()
    world.ray.broken[f"{job.id}-a1"] = QueueUnavailableError("locked")
    with pytest.raises(QueueUnavailableError):
        world.step()


@pytest.mark.parametrize("claimed", [False, True])
def test_restarts_of_the_cluster_use_up_no_retry_and_cost_no_back_off(world: World, claimed: bool) -> None:
    job = world.submit(max_retries=0)
    for number in (1, 2, 3):
        world.step()
        assert world.ray.runs[-1] == f"{job.id}-a{number}"
        if claimed:
            world.claim(job, number)
            world.step()
        world.ray.restart_head()
        world.restart()
        # After the lease: lost, closed, started again.
        world.pass_time(45)
    assert world.queue.get(job.id).attempt == 4
    lost = [attempt.failure for attempt in world.queue.attempts(job.id)[:3]]
    assert {failure["class"] for failure in lost if failure} == {"restart"}
    delays = {e.detail["delay_s"] for e in world.queue.events(job.id) if e.kind == "retrying"}
    assert delays == {0.0}


def test_a_cancel_between_two_attempts_waits_for_the_first_to_be_gone(world: World) -> None:
    job = world.submit()
    world.step()
    grant = world.claim(job)
    world.queue.fail(grant.attempt_id, grant.token, {"class": "infra", "message": "disk"})
    world.ray.obeys_stop = False
    asked = world.queue.cancel(job.id, "ann")
    assert (asked.state, asked.cancel_requested) == (JobState.QUEUED, True)
    assert world.queue.cancel(job.id, "ann") == asked
    world.pass_time(60)
    assert (world.state(job), world.queue.get(job.id).reason) == (JobState.QUEUED, "being cancelled")
    world.ray.end(grant.attempt_id, RayState.STOPPED)
    world.step()
    world.pass_time(10)
    assert world.state(job) == JobState.CANCELLED
    assert world.ray.runs == [grant.attempt_id]


def test_a_clock_set_forward_between_two_services_uses_up_no_time(world: World) -> None:
    job, ended = world.submit(time_limit="100s"), world.submit()
    world.step()
    grant, done = world.claim(job), world.claim(ended)
    world.pass_time(10, beat=grant)
    world.ray.obeys_stop = False
    world.queue.complete(done.attempt_id, done.token, {})
    world.clock.advance(3 * 3600)
    world.restart()
    world.step()
    assert not world.queue.attempts(ended.id)[0].closed
    # What lies between two heartbeats counts as a minute at most.
    assert world.queue.attempts(job.id)[0].used_at(world.clock.now) == 70.0
    world.clock.advance(-6 * 3600)
    world.restart()
    world.pass_time(40, beat=grant)
    assert (world.state(job), world.queue.attempts(job.id)[0].used_s) == (JobState.RUNNING, 45.0)


def test_a_turn_that_takes_long_is_followed_by_a_longer_rest(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rests = list[float]()

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            rests.append(timeout or 0.0)
            if len(rests) == 2:
                self.set()
            return self.is_set()

    seconds = iter([0.0, 0.3, 10.0, 10.01])
    monkeypatch.setattr("segfleet.queue.dispatcher.time.thread_time", lambda: next(seconds))
    world.dispatcher.run(Stop())
    assert rests == [pytest.approx(1.2), world.settings.poll_s]
