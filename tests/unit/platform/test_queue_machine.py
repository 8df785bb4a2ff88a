"""The queue under fire: crashes, lost answers, zombies and second claims in every order Hypothesis can think of."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test

from factories import POSTGRES, fresh_database, train_document
from fakes import FakeJob
from kube_server import KubeWorld
from segfleet.cluster.launcher import RayJobStatus, RayState
from segfleet.errors import AttemptFencedError, IdempotencyConflictError, IllegalTransitionError, QueueError
from segfleet.queue import fencing, intake, lifecycle, reconcile, scene
from segfleet.queue.event_rows import EventRows
from segfleet.queue.model import Attempt, Event, Grant, Job
from segfleet.queue.scheduling import admission
from segfleet.queue.scheduling.values import Gang
from segfleet.queue.service import Queue
from segfleet.queue.states import HOLDING, TRANSITIONS, AttemptState, FailureClass, JobState, is_terminal
from segfleet.queue.store import Transaction
from segfleet.spec.sections import duration_s
from world import World

# On a file system in memory, where there is one: thousands of durable commits need no disk to prove logic.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
# A cluster that is away most of the time would leave little to find.
MOSTLY = st.sampled_from([True, True, True, False])
SETTINGS = settings(
    max_examples=8,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


class QueueMachine(RuleBasedStateMachine):
    """Users, drivers (live and zombie), a service that dies, and a cluster that forgets and lies."""

    backend = "sqlite"
    world_type: type[World] = World
    cpus = 3  # an elastic job of 1, 2 or 4 workers must not get them all
    grants = Bundle("grants")
    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.before = sys.exception()  # Hypothesis repeats a failing run while it handles the failure
        # With random ids the database would order equal times by chance, and Hypothesis could not repeat a run.
        self.patch = pytest.MonkeyPatch()
        ids = (f"job-{a}{b}aaaaaa" for a in "abcdefghijklmnopqrstuvwxyz" for b in "abcdefghijklmnopqrstuvwxyz")
        self.patch.setattr(intake, "new_job_id", lambda: next(ids))
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY))
        self.world = self.world_type(self.folder, fresh_database(self.backend, self.folder))
        self.world.ray.cpus = self.cpus
        rules = {"preempt_for_priority": True, "min_run": "1s", "grace": "10s"}
        self.world.queue.set_policy("cluster", "cluster", rules)
        self.acknowledged: set[str] = set()
        self.keys: dict[str, tuple[str, int]] = {}
        self.drivers: dict[str, FakeJob] = {}
        self.claims: dict[str, str] = {}
        self.completions: dict[str, int] = {}

    # Users

    @rule(target=jobs, key=st.sampled_from("xyz"), workers=st.integers(1, 2), lost_ack=st.booleans())
    def submit_with_key(self, key: str, workers: int, lost_ack: bool) -> Any:
        try:
            job, replayed = self.world.queue.submit(train_document(workers), owner="ann", key=key)
        except IdempotencyConflictError:
            assert self.keys[key][1] != workers
            return multiple()
        assert replayed == (key in self.keys)
        assert self.keys.setdefault(key, (job.id, workers)) == (job.id, workers)
        self.acknowledged.add(job.id)
        return multiple() if lost_ack else job.id

    @rule(target=jobs, priority=st.integers(49, 51), retries=st.integers(0, 2))
    def submit(self, priority: int, retries: int) -> str:
        job = self.world.submit(priority=priority, max_retries=retries)
        self.acknowledged.add(job.id)
        return job.id

    @rule(target=jobs, most=st.integers(2, 4), within=st.sampled_from([None, "2s", "20s"]))
    def submit_elastic(self, most: int, within: str | None) -> str:
        document = train_document(start_within=within)
        document["train"]["global_batch"] = 4
        document["resources"]["workers"] = {"min": 1, "max": most}
        job, _ = self.world.queue.submit(document, owner="ann")
        self.acknowledged.add(job.id)
        return job.id

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        before = self.world.queue.get(job_id).state
        try:
            self.world.queue.cancel(job_id, "ann")
        except IllegalTransitionError:
            assert before in (JobState.SUCCEEDED, JobState.FAILED)

    @rule(job_id=jobs, from_start=st.booleans())
    def retry(self, job_id: str, from_start: bool) -> None:
        before = self.world.queue.get(job_id).state
        try:
            self.world.queue.retry(job_id, "ann", from_start=from_start)
        except IllegalTransitionError:
            assert before not in (JobState.FAILED, JobState.CANCELLED)

    @rule(job_id=jobs)
    def pause(self, job_id: str) -> None:
        before = self.world.queue.get(job_id)
        try:
            self.world.queue.pause(job_id, "ann")
        except IllegalTransitionError:
            assert is_terminal(before.state) or before.cancel_requested

    @rule(job_id=jobs)
    def resume(self, job_id: str) -> None:
        before = self.world.queue.get(job_id).state
        try:
            self.world.queue.resume(job_id, "ann")
        except IllegalTransitionError:
            assert before != JobState.PAUSED

    @rule(job_id=jobs, priority=st.integers(48, 52))
    def change_priority(self, job_id: str, priority: int) -> None:
        before = self.world.queue.get(job_id).state
        try:
            self.world.queue.set_priority(job_id, "ann", priority)
        except IllegalTransitionError:
            assert is_terminal(before)

    # Time, the service and the cluster

    @rule(seconds=st.sampled_from([0.5, 3.0, 12.0]), turns=st.integers(1, 4))
    def turns(self, seconds: float, turns: int) -> None:
        for _ in range(turns):
            self._turn(seconds)

    @rule()
    def all_drivers_fall_silent(self) -> None:
        for _ in range(6):
            self._turn(12.0)

    @rule()
    def kill_and_restart_the_service(self) -> None:
        before = [self.world.queue.get(job_id) for job_id in sorted(self.acknowledged)]
        self.world.restart()
        after = [self.world.queue.get(job_id) for job_id in sorted(self.acknowledged)]
        assert [(job.state, job.version, job.spec) for job in after] == [
            (job.state, job.version, job.spec) for job in before
        ]

    @rule(behaviour=st.sampled_from(["lost", "lost_answer", "refused"]))
    def next_submission(self, behaviour: str) -> None:
        self.world.ray.next_submits = [behaviour]

    @rule()
    def kill_the_service_in_mid_dispatch(self) -> None:
        post = self.world.dispatcher._post
        self.world.dispatcher._post = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
        try:
            self.world.step()
        except KeyboardInterrupt:
            self.world.restart()
        else:
            self.world.dispatcher._post = post  # type: ignore[method-assign]

    @rule()
    def head_restarts(self) -> None:
        self._meet_drivers()
        self.world.ray.restart_head()

    @rule(reachable=MOSTLY, failing=MOSTLY.map(lambda good: not good), obeys_stop=MOSTLY)
    def cluster_mood(self, reachable: bool, failing: bool, obeys_stop: bool) -> None:
        self.world.ray.reachable, self.world.ray.failing, self.world.ray.obeys_stop = reachable, failing, obeys_stop

    @rule(which=st.integers(0, 9), end=st.sampled_from([RayState.FAILED, RayState.SUCCEEDED]))
    def a_driver_dies(self, which: int, end: RayState) -> None:
        running = [job for job in self.world.ray.jobs.values() if not RayJobStatus(job.state).is_terminal]
        if running:
            running[which % len(running)].state = end

    # Drivers, which live on whatever Ray believes

    @rule(target=grants, which=st.integers(0, 9), instance=st.sampled_from(["a" * 16, "b" * 16]))
    def claim(self, which: int, instance: str) -> Any:
        self._meet_drivers()
        if not self.drivers:
            return multiple()
        attempt_id = list(self.drivers)[-1 - which % len(self.drivers)]
        try:
            grant = self.world.queue.claim(attempt_id, self.drivers[attempt_id].env["SEGFLEET_CODE"], instance)
        except AttemptFencedError:
            return multiple()
        assert self.claims.setdefault(attempt_id, instance) == instance
        self._accepted(grant)
        return grant

    @rule(grant=grants)
    def beat(self, grant: Grant) -> None:
        self._write(grant, lambda: self.world.queue.heartbeat(grant.attempt_id, grant.token, {"step": 1}))

    @rule(grant=grants, step=st.integers(0, 3))
    def checkpoint(self, grant: Grant, step: int) -> None:
        document = {"path": grant.attempt_id, "step": step, "sha256": "0", "bytes": 1}
        self._write(grant, lambda: self.world.queue.set_checkpoint(grant.attempt_id, grant.token, document))

    @rule(grant=grants, failure=st.sampled_from(FailureClass))
    def fail(self, grant: Grant, failure: FailureClass) -> None:
        document = {"class": failure.value, "message": "x"}
        self._write(grant, lambda: self.world.queue.fail(grant.attempt_id, grant.token, document))

    @rule(grant=grants)
    def make_room(self, grant: Grant) -> None:
        self._write(grant, lambda: self.world.queue.yield_(grant.attempt_id, grant.token))

    @rule(grant=grants)
    def complete(self, grant: Grant) -> None:
        before = self.world.queue.get(grant.job_id).state
        if self._write(grant, lambda: self.world.queue.complete(grant.attempt_id, grant.token, {"by": grant.fence})):
            assert self.world.queue.get(grant.job_id).result == {"by": grant.fence}
            if before != JobState.SUCCEEDED:
                self.completions[grant.job_id] = self.completions.get(grant.job_id, 0) + 1

    @rule(grant=grants)
    def another_token(self, grant: Grant) -> None:
        with pytest.raises(AttemptFencedError):
            self.world.queue.heartbeat(grant.attempt_id, "0" * 64)

    # What must hold after every step

    @invariant()
    def what_must_hold_after_every_step(self) -> None:
        with self.world.queue.store.read() as tx:
            for job_id in self.acknowledged:
                job, attempts, events = tx.job(job_id), tx.attempts_of(job_id), tx.events.of_job(job_id)
                self._history_is_legal(job, events)
                self._one_attempt_at_a_time_under_rising_fences(job, attempts)
                self._budgets_hold(job, events)
                self._deadline_holds(job, attempts, events)
            holding = {job.id: job.gang for job in tx.holding_jobs()}
            open_attempts = [attempt for attempt in tx.open_attempts() if attempt.job_id in holding]
            used = sum(attempt.workers * holding[attempt.job_id].cpus for attempt in open_attempts)
            assert used <= self.world.ray.cpus

    def _history_is_legal(self, job: Job, events: list[Event]) -> None:
        state = JobState.QUEUED
        for event in events:
            if event.source is not None and event.target is not None:
                assert event.source == state
                assert event.target in TRANSITIONS[event.source]
                state = event.target
        assert state == job.state

    def _one_attempt_at_a_time_under_rising_fences(self, job: Job, attempts: list[Attempt]) -> None:
        assert [attempt.number for attempt in attempts] == list(range(1, job.attempt + 1))
        fences = [attempt.fence for attempt in attempts]
        assert fences == sorted(set(fences))
        alive = [attempt for attempt in attempts if attempt.is_alive]
        assert len(alive) == (1 if job.state in HOLDING else 0)
        assert all(attempt.fence == job.fence for attempt in alive)
        assert sum(not attempt.closed for attempt in attempts) <= 1
        assert all(attempt.workers in job.gang.sizes or not job.gang.sizes for attempt in attempts)
        assert all(job.gang.workers <= attempt.workers <= job.gang.max_workers for attempt in attempts)

    def _deadline_holds(self, job: Job, attempts: list[Attempt], events: list[Event]) -> None:
        """Only who waits has a start deadline, and it fails nobody else, nor before its time."""
        begun = [event for event in events if event.kind in ("submitted", "resumed", "retry_requested", "starting")]
        assert job.start_by is None or (begun[-1].kind != "starting" and not is_terminal(job.state))
        # A driver may call its failure so too.
        is_told = bool(attempts) and (attempts[-1].failure or {}).get("class") == "start_deadline"
        if (
            job.error is not None
            and job.error["class"] == "start_deadline"
            and job.state == JobState.FAILED
            and not is_told
        ):
            assert begun[-1].kind != "starting"
            assert events[-1].at - begun[-1].at >= duration_s(job.spec["queue"]["start_within"])

    def _budgets_hold(self, job: Job, events: list[Event]) -> None:
        losses, furthest = 0, -1
        for event in events:
            if event.kind == "retry_requested":
                losses, furthest = 0, -1
            elif event.kind == "checkpoint" and event.detail["step"] > furthest:
                losses, furthest = 0, event.detail["step"]
            elif event.kind in ("retrying", "failed") and event.detail["class"] == "infra":
                losses += 1
            assert losses <= job.spec["queue"]["max_retries"] + 1
        # Success is what an attempt itself has told, once.
        assert self.completions.get(job.id, 0) == (job.state == JobState.SUCCEEDED)

    def teardown(self) -> None:
        """When the faults stop, every job ends in bounded time; after a failure nothing more is asked."""
        try:
            if sys.exception() is not self.before:
                return
            self.cluster_mood(reachable=True, failing=False, obeys_stop=True)
            self.world.ray.next_submits = []
            for _ in range(600):
                if all(is_terminal(self.world.queue.get(job_id).state) for job_id in self.acknowledged):
                    return
                for job_id in self.acknowledged:
                    if self.world.queue.get(job_id).state == JobState.PAUSED:
                        self.world.queue.resume(job_id, "ann")
                self._well_behaved_drivers()
                self._turn(6.0)
            raise AssertionError("jobs are stuck")
        finally:
            self.patch.undo()
            self.world.queue.store.close()
            shutil.rmtree(self.folder)

    # Inside

    def _turn(self, seconds: float) -> None:
        self.world.step(seconds)
        self._meet_drivers()

    def _meet_drivers(self) -> None:
        for attempt_id, job in self.world.ray.jobs.items():
            self.drivers[attempt_id] = job

    def _write(self, grant: Grant, write: Any) -> bool:
        try:
            write()
        except AttemptFencedError:
            return False
        except QueueError:
            return True
        self._accepted(grant)
        return True

    def _accepted(self, grant: Grant) -> None:
        """An accepted write carries the latest fence of its job, and its attempt has not been given up."""
        attempts = self.world.queue.attempts(grant.job_id)
        assert attempts[-1].fence == grant.fence
        ended = (AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.PREEMPTED)
        assert attempts[-1].state in (AttemptState.RUNNING, *ended)

    def _well_behaved_drivers(self) -> None:
        for attempt_id, job in list(self.world.ray.jobs.items()):
            if RayJobStatus(job.state).is_terminal:
                continue
            try:
                instance = self.claims.setdefault(attempt_id, "a" * 16)
                grant = self.world.queue.claim(attempt_id, job.env["SEGFLEET_CODE"], instance)
                self.world.queue.complete(attempt_id, grant.token, {"by": grant.fence})
            except AttemptFencedError:
                pass
            job.state = RayState.SUCCEEDED


class KueueWorld(KubeWorld):
    kube: ClassVar[dict[str, Any]] = {"queue": "team"}


class KubeMachine(QueueMachine):
    """With Kubernetes for a cluster, where Secrets get lost as well as RayJobs."""

    world_type = KubeWorld

    @rule(behaviours=st.lists(st.sampled_from(["ok", "lost", "lost_answer", "refused"]), max_size=3))
    def next_requests(self, behaviours: list[str]) -> None:
        self.world.ray.next_submits = behaviours


class KueueMachine(KubeMachine):
    """Kueue admits, and takes nodes back, as it likes; nothing here bounds what is sent."""

    world_type = KueueWorld
    cpus = 10**6

    @rule(which=st.integers(0, 9), is_held=st.booleans())
    def kueue_decides(self, which: int, is_held: bool) -> None:
        if self.world.ray.jobs:
            list(self.world.ray.jobs.values())[which % len(self.world.ray.jobs)].is_held = is_held

    def _well_behaved_drivers(self) -> None:
        for job in self.world.ray.jobs.values():
            job.is_held = False
        super()._well_behaved_drivers()


BACKENDS = ["sqlite", "postgres"] if POSTGRES else ["sqlite"]
KUBES = [KubeMachine, KueueMachine]


def attack(backend: str, rules: settings, kind: type[QueueMachine] = QueueMachine) -> None:
    machine = type("Machine", (kind,), {"backend": backend})
    run_state_machine_as_test(machine, settings=rules)  # type: ignore[no-untyped-call]


def test_no_order_of_faults_breaks_the_queue() -> None:
    attack("sqlite", SETTINGS)


@pytest.mark.integration
@pytest.mark.parametrize("backend", BACKENDS)
def test_many_more_orders_of_faults_on_every_database(backend: str) -> None:
    attack(backend, settings(SETTINGS, max_examples=60, stateful_step_count=40))


@pytest.mark.parametrize("kind", KUBES)
def test_no_order_of_faults_of_kubernetes_breaks_the_queue(kind: type[QueueMachine]) -> None:
    attack("sqlite", settings(SETTINGS, max_examples=2), kind)


@pytest.mark.integration
@pytest.mark.parametrize("kind", KUBES)
def test_many_more_orders_of_faults_of_kubernetes(kind: type[QueueMachine]) -> None:
    attack("sqlite", settings(SETTINGS, max_examples=12, stateful_step_count=40), kind)


def _forget_fence(tx: Any, attempt_id: str, token: str, replay: AttemptState | None = None) -> Any:
    attempt = tx.attempt(attempt_id)
    if not fencing.is_token(tx, attempt_id, token):
        raise AttemptFencedError(attempt_id, "wrong token")
    return tx.job(attempt.job_id), attempt


def _forget_token(tx: Any, attempt_id: str, token: str, replay: AttemptState | None = None) -> Any:
    attempt = tx.attempt(attempt_id)
    return tx.job(attempt.job_id), attempt


def _cancel_over_anything(tx: Any, job: Any, *, who: str, now: float, detail: Any = None) -> Any:
    return tx.change_job(job, {"state": JobState.CANCELLED, "cancel_requested": True})


def _pause_at_once(queue: Queue, job_id: str, who: str) -> Job:
    with queue.store.write() as tx:
        return tx.change_job(tx.job(job_id), {"state": JobState.PAUSED})


def _open_again(tx: Any, job: Job, attempt: Attempt, *more: Any, **named: Any) -> Job:
    ended = END_FAILED(tx, job, attempt, *more, **named)
    tx.change_attempt(attempt.id, {"state": AttemptState.RUNNING})
    return ended


def _same_fence(tx: Any, job: Job, *more: Any) -> Attempt:
    attempt = BEGIN_ATTEMPT(tx, job, *more)
    tx.change_attempt(attempt.id, {"fence": job.fence})
    return attempt


def _keep_deadline(tx: Any, job: Job, *more: Any) -> Attempt:
    attempt = BEGIN_ATTEMPT(tx, job, *more)
    tx.change_job(tx.job(job.id), {"start_by": job.start_by})
    return attempt


END_FAILED, BEGIN_ATTEMPT = lifecycle.end_failed, lifecycle.begin_attempt
BUGS: dict[str, tuple[Any, str, Any]] = {
    "fence not checked": (fencing, "fenced", _forget_fence),
    "token not checked": (fencing, "fenced", _forget_token),
    "the fence does not rise": (lifecycle, "begin_attempt", _same_fence),
    "cancel leaves no history": (lifecycle, "cancel", _cancel_over_anything),
    "transitions leave no history": (EventRows, "add", lambda *_, **__: None),
    "a lost attempt lives on": (lifecycle, "end_failed", _open_again),
    "endless retries": (lifecycle.retry, "decide", lambda *_: lifecycle.retry.Retry(0.0)),
    "endless back-off": (lifecycle.retry.Budget, "delay_s", lambda *_: 1e12),
    "ended attempts are never closed": (reconcile, "decide_ended", lambda *_: reconcile.Leave()),
    "the scheduler does not see what runs": (scene, "holdings", lambda *_: []),
    "keys are forgotten": (Transaction, "find_key", lambda *_: None),
    "pause does not wait for the attempt": (Queue, "pause", _pause_at_once),
    "elastic jobs get what is free": (Gang, "usable", lambda gang, workers: min(workers, gang.max_workers)),
    "a start deadline outlives the start": (lifecycle, "begin_attempt", _keep_deadline),
}


@pytest.mark.integration
@pytest.mark.parametrize("bug", BUGS)
def test_the_machine_finds_planted_bugs(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that finds nothing might be looking at nothing."""
    monkeypatch.setattr(*BUGS[bug])
    # The guard against a clock that was put back would mend an endless back-off.
    monkeypatch.setattr(admission, "LONGEST_DELAY_S", 1e13)
    hunt = settings(
        SETTINGS, phases=(Phase.generate,), max_examples=150, stateful_step_count=40, report_multiple_bugs=False
    )
    found = (AssertionError, pytest.fail.Exception, IllegalTransitionError, QueueError, ExceptionGroup)
    with pytest.raises(found) as caught:
        attack("sqlite", hunt)
    assert "Timeout" not in str(caught.value), "it was not found in time"
