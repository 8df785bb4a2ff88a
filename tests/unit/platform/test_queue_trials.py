"""Trials in the queue's database: counted once, moved forward only, written by the living attempt alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from searching import search_spec
from segfleet.cluster.launcher import RayState
from segfleet.errors import AttemptFencedError, QueueError, UnknownJobError
from segfleet.queue.candidates import holdings
from segfleet.queue.model import Grant, Job
from segfleet.queue.states import JobState
from segfleet.queue.trials import MOVES, TrialDesk
from segfleet.spec.resolve import to_document
from world import World

PARAMS = {"model.patch_size": 8, "train.crop": 64}
POINTER = {"path": "/s/step-5", "step": 5, "sha256": "a" * 64, "bytes": 10}


class Search:
    """A running search and the calls of its attempt."""

    def __init__(self, world: World, **changes: Any) -> None:
        self.world = world
        self.job: Job = world.queue.submit(to_document(search_spec(**changes)), owner="ann")[0]
        self.start(1)

    def start(self, number: int) -> None:
        for _ in range(200):
            self.world.step(2.0)
            if f"{self.job.id}-a{number}" in self.world.ray.jobs:
                break
        self.grant: Grant = self.world.claim(self.job, number)

    @property
    def desk(self) -> TrialDesk:
        return self.world.queue.trials

    @property
    def who(self) -> tuple[str, str]:
        return self.grant.attempt_id, self.grant.token

    def add(self, number: int = 1, **changes: Any) -> dict[str, Any]:
        values = {"kind": "trial", "params": PARAMS, "num_steps": 40, **changes}
        return self.desk.add(*self.who, number, **values)

    def move(self, state: Any, number: int = 1, **changes: Any) -> dict[str, Any]:
        return self.desk.move(*self.who, number, state, **changes)

    def report(self, validation: int, value: float | None, number: int = 1) -> dict[str, Any]:
        step = 10 * validation
        report = {"validation": validation, "step": step, "value": value, "miou": value, "seconds": 1.5 * validation}
        return self.desk.report(*self.who, number, report)

    def checkpoint(self, step: int, number: int = 1) -> dict[str, Any]:
        return self.desk.set_checkpoint(*self.who, number, {**POINTER, "step": step})

    def fail(self, kind: str = "infra") -> None:
        self.world.queue.fail(*self.who, {"class": kind, "message": "gone"})
        self.world.ray.end(self.grant.attempt_id, RayState.FAILED)

    def trials(self) -> list[dict[str, Any]]:
        return self.desk.of_job(self.job.id)[1]


@pytest.fixture
def world(tmp_path: Path, queue_url: str) -> World:
    return World(tmp_path, queue_url)


@pytest.fixture
def search(world: World) -> Search:
    return Search(world)


def test_a_trials_life(search: Search) -> None:
    added = search.add()
    assert (added["state"], added["attempt"], added["step"], added["reports"]) == ("waiting", 1, 0, [])
    assert search.move("running", mlflow_run="c" * 32)["started_at"] is not None
    search.report(1, 0.2)
    search.report(2, 0.5)
    search.report(3, None)
    search.report(4, 0.4)
    figures = {"parameters": 5_000_000_000, "images_per_s": 3.5, "peak_memory_mib": 900.0}
    search.desk.measured(*search.who, 1, figures)
    search.desk.measured(*search.who, 1, dict.fromkeys(figures))
    ended = search.move("succeeded", worker_seconds=33.0)
    assert (ended["best_value"], ended["best_step"], ended["step"]) == (0.5, 20, 40)
    assert [report["validation"] for report in ended["reports"]] == [1, 2, 3, 4]
    assert ended.items() >= figures.items()
    assert (ended["worker_seconds"], ended["mlflow_run"]) == (33.0, "c" * 32)
    assert ended["finished_at"] is not None
    assert search.trials() == search.desk.of_attempt(*search.who) == [ended]


def test_every_call_may_be_made_again(search: Search) -> None:
    assert search.add() == search.add()
    for state in ("running", "running"):
        moved = search.move(state, worker_seconds=7.0)
    assert (moved["state"], moved["worker_seconds"]) == ("running", 7.0)
    search.report(1, 0.5)
    assert search.report(1, 0.9)["reports"][0]["value"] == 0.5
    assert search.checkpoint(10) == search.checkpoint(10)
    first = search.move("stopped", why="behind the others")
    assert search.move("stopped", why="said again") == first
    # Also by an attempt that does not know that it was said.
    search.fail()
    search.start(2)
    assert search.move("stopped") == search.report(1, 0.1) == first
    events = [event for event in search.world.queue.events(search.job.id) if event.kind == "checkpoint"]
    assert len(events) == 1


def test_a_number_belongs_to_one_trial(search: Search) -> None:
    search.add()
    changes: list[dict[str, Any]] = [{"params": {"train.crop": 64}}, {"kind": "final"}, {"num_steps": 41}]
    for change in changes:
        with pytest.raises(QueueError, match=r"trial 1 of .* is there already"):
            search.add(**change)


@pytest.mark.parametrize("source", MOVES)
def test_a_trial_moves_forward_only(search: Search, source: str) -> None:
    path = {"waiting": [], "running": ["running"]}.get(source, ["running", source])
    for number, target in enumerate(MOVES, start=1):
        search.add(number)
        for state in path:
            search.move(state, number)
        if target in MOVES[source] or (target == source and target != "waiting"):
            assert search.move(target, number)["state"] == target
            continue
        with pytest.raises(QueueError, match=f"is {source}, it cannot become {target}"):
            search.move(target, number)
        assert search.trials()[-1]["state"] == source


def test_worker_time_never_falls(search: Search) -> None:
    search.add()
    assert search.move("running", worker_seconds=50.0)["worker_seconds"] == 50.0
    assert search.move("running", worker_seconds=20.0)["worker_seconds"] == 50.0
    assert search.move("running")["worker_seconds"] == 50.0


def test_less_is_better_if_the_spec_says_so(world: World) -> None:
    search = Search(world, search={"mode": "min"})
    search.add()
    search.move("running")
    for validation, value in enumerate((0.5, 0.2, 0.3), start=1):
        found = search.report(validation, value)
    assert (found["best_value"], found["best_step"]) == (0.2, 20)


def test_what_does_not_run_tells_nothing(search: Search) -> None:
    with pytest.raises(QueueError, match="has no trial 1"):
        search.move("running")
    search.add()
    for tell in (lambda: search.report(1, 0.5), lambda: search.checkpoint(5)):
        with pytest.raises(QueueError, match="is waiting, not running"):
            tell()
    search.move("running")
    with pytest.raises(QueueError, match="has 0 reports, 2 is not the next"):
        search.report(2, 0.5)
    with pytest.raises(QueueError, match="has 40 steps, 41 is beyond them"):
        search.checkpoint(41)
    search.checkpoint(10)
    with pytest.raises(QueueError, match="checkpoint of step 9 of trial 1 comes after that of step 10"):
        search.checkpoint(9)


def test_a_later_attempt_takes_over_and_the_earlier_one_writes_nothing_more(search: Search) -> None:
    search.add()
    search.move("running")
    search.checkpoint(20)
    before, early = search.trials(), search.grant
    search.fail()
    search.start(2)
    late, search.grant = search.grant, early
    for tell in (
        lambda: search.add(2),
        lambda: search.move("failed"),
        lambda: search.report(1, 0.5),
        lambda: search.checkpoint(30),
        lambda: search.desk.measured(*search.who, 1, {"parameters": 1}),
        lambda: search.desk.of_attempt(*search.who),
        lambda: search.desk.checkpoint(*search.who, 1),
    ):
        with pytest.raises(AttemptFencedError):
            tell()
    assert search.trials() == before
    search.grant = late
    assert search.desk.checkpoint(*search.who, 1) == {**POINTER, "step": 20, "attempt": early.attempt_id}
    assert search.move("running")["attempt"] == 2
    # It may have had to fall back to an older checkpoint; the trial's step does not fall.
    assert search.checkpoint(10)["step"] == 20


def test_checkpoints_of_trials_are_progress_of_the_search(world: World) -> None:
    search = Search(world, queue={"max_retries": 1})
    for number in (1, 2):
        search.add(number, num_steps=100)
        search.move("running", number)
    for attempt in range(1, 5):
        # Each attempt after the first brings the second trial further, but never as far as the first one stands.
        search.checkpoint(100 if attempt == 1 else 10 * attempt, 1 if attempt == 1 else 2)
        search.fail()
        search.start(attempt + 1)
    search.fail()
    assert world.state(search.job) == JobState.FAILED


@pytest.mark.parametrize("from_start", [False, True])
def test_a_retry_goes_on_and_one_from_start_forgets_the_trials(search: Search, from_start: bool) -> None:
    search.add()
    search.move("running")
    search.move("succeeded")
    search.fail("user")
    assert search.world.state(search.job) == JobState.FAILED
    other = Search(search.world)
    other.add()
    search.world.queue.retry(search.job.id, "ann", from_start=from_start)
    assert [trial["state"] for trial in search.trials()] == ([] if from_start else ["succeeded"])
    assert [trial["state"] for trial in other.trials()] == ["waiting"]


def test_only_searches_have_trials(world: World) -> None:
    job = world.submit()
    with pytest.raises(QueueError, match="of kind 'train': only searches have trials"):
        world.queue.trials.of_job(job.id)
    with pytest.raises(UnknownJobError):
        world.queue.trials.of_job("job-aaaaaaaa")
    world.step()
    grant = world.claim(job)
    with pytest.raises(QueueError, match="only searches have trials"):
        world.queue.trials.add(grant.attempt_id, grant.token, 1, "trial", {}, 1)
    assert world.queue.trials.of_attempt(grant.attempt_id, grant.token) == []


def test_trials_are_of_one_search_and_in_order(search: Search) -> None:
    for number in (3, 1, 2):
        search.add(number, params={"train.crop": 64 + number})
    other = Search(search.world)
    other.add(1)
    assert [trial["number"] for trial in search.trials()] == [1, 2, 3]
    assert len(other.trials()) == 1


def test_a_search_can_be_preempted(search: Search) -> None:
    with search.world.queue.store.read() as tx:
        attempts, jobs = tx.open_attempts(), {job.id: job for job in tx.holding_jobs()}
    (held,) = holdings(jobs, attempts, {}, 60.0, search.world.clock())
    assert held.may_be_preempted
    search.world.queue.pause(search.job.id, "ann")
    assert search.world.queue.heartbeat(*search.who) == "preempt"
    assert search.world.queue.yield_(*search.who).state == JobState.PAUSED


def test_the_search_runs_its_own_module(search: Search) -> None:
    assert search.world.ray.jobs[search.grant.attempt_id].command.endswith("-m segfleet_jobs.search")
