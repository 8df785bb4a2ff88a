"""Where a job's time went: scripted histories of kills, hangs, preemptions, pauses, retries and odd clocks."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from factories import RUNNING
from segfleet.queue.goodput import Goodput, split
from segfleet.queue.lives import MAX_LIVES, OWN_PARTS, told
from segfleet.queue.model import Attempt, Event, Job
from segfleet.queue.scheduling.values import Gang
from segfleet.queue.states import AttemptState, JobState

JOB = Job(
    seq=1,
    id="job-aaaaaaaa",
    name="x",
    kind="train",
    owner="ann",
    project="default",
    state=JobState.RUNNING,
    reason="",
    priority=50,
    gang=Gang(1, 1, 0),
    spec={},
    created_at=70.0,
    updated_at=100.0,
    started_at=100.0,
    finished_at=None,
    attempt=1,
    fence=1,
    budget_from=0,
    cancel_requested=False,
    progress=None,
    checkpoint=None,
    result=None,
    error=None,
    not_before=None,
    time_limit_s=None,
    start_by=None,
    overtaken=0,
    stop_for=None,
    version=1,
)


def ended(at: float, state: JobState = JobState.SUCCEEDED) -> Job:
    return replace(JOB, state=state, finished_at=at)


def life(begin: float, *, step: float = 0.0, load: float = 0.0, **changes: Any) -> dict[str, Any]:
    """A life that spent these seconds in steps, one step a second, from the step `start` on."""
    start = changes.pop("start", 0)
    seconds = {"load": load, "step": step, **changes.pop("seconds", {})}
    saved = changes.pop("saved", start)
    unsaved = {"step": float(start + step - saved)}
    document = {"life": f"{begin}", "begin": begin, "elapsed": sum(seconds.values()), "part": "step"}
    steps = {"start": start, "step": int(start + step), "saved": saved}
    return {**document, "seconds": seconds, "unsaved": unsaved, **steps, **changes}


def attempt(number: int, claimed: float, finished: float | None, state: str, *lives: dict[str, Any]) -> Attempt:
    return replace(
        RUNNING,
        number=number,
        claimed_at=claimed,
        finished_at=finished,
        state=AttemptState(state),
        heartbeat_at=finished,
        lives=lives,
    )


def event(at: float, kind: str, attempt: int, target: str | None = None) -> Event:
    state = None if target is None else JobState(target)
    return Event(
        seq=0,
        job_id=JOB.id,
        at=at,
        kind=kind,
        who="service",
        attempt=attempt,
        source=None,
        target=state,
        detail={},
    )


def shares(job: Job, attempts: list[Attempt], events: list[Event], now: float = 1000.0) -> dict[str, float]:
    found = split(job, attempts, events, now)
    assert found is not None
    assert sum(found.seconds.values()) == pytest.approx(found.wall_s)
    return {part: round(seconds, 6) for part, seconds in found.seconds.items() if seconds > 1e-9}


def test_before_the_first_start_there_is_nothing_to_split() -> None:
    assert split(replace(JOB, started_at=None), [], [], 200.0) is None


def test_one_good_attempt() -> None:
    told = life(104.0, load=6.0, step=50.0, seconds={"data": 5.0, "validation": 10.0, "checkpoint": 2.0, "mlflow": 1.0})
    found = split(ended(180.0), [attempt(1, 100.0, 180.0, "succeeded", told)], [], 999.0)
    assert found is not None
    assert (found.first_wait_s, found.wall_s) == (30.0, 80.0)
    assert shares(ended(180.0), [attempt(1, 100.0, 180.0, "succeeded", told)], []) == {
        "load": 10.0,
        "data": 5.0,
        "step": 50.0,
        "validation": 10.0,
        "checkpoint": 2.0,
        "mlflow": 1.0,
        "other": 2.0,
    }
    assert found.share == pytest.approx(60 / 80)
    assert found.to_document()["seconds"]["step"] == 50.0
    assert "paused" not in found.to_document()["seconds"]


def test_a_killed_driver_costs_detection_restart_load_and_the_steps_after_the_checkpoint() -> None:
    first = life(102.0, step=40.0, saved=30)
    second = life(170.0, load=5.0, step=30.0, start=30)
    attempts = [attempt(1, 100.0, 150.0, "lost", first), attempt(2, 165.0, 205.0, "succeeded", second)]
    assert shares(ended(205.0), attempts, [event(150.0, "retrying", 1, "queued")]) == {
        "load": 2.0 + 5.0 + 5.0,
        "step": 30.0 + 30.0,
        "redone": 10.0,
        "detection": 8.0,
        "restart": 15.0,
    }


def test_a_killed_worker_starts_the_group_anew_inside_the_attempt() -> None:
    lives = life(100.0, step=40.0, saved=20), life(155.0, load=5.0, step=20.0, start=20)
    told_of = [event(143.0, "fault", 1)]
    expected = {"step": 40.0, "redone": 20.0, "detection": 3.0, "restart": 12.0, "load": 5.0}
    assert shares(ended(180.0), [attempt(1, 100.0, 180.0, "succeeded", *lives)], told_of) == expected
    # While the new group is not there yet, or if nobody has told of the fault.
    waiting = attempt(1, 100.0, None, "running", lives[0])
    assert shares(JOB, [waiting], told_of, 150.0) == {"step": 40.0, "detection": 3.0, "restart": 7.0}
    silent = shares(ended(180.0), [attempt(1, 100.0, 180.0, "succeeded", *lives)], [])
    assert (silent["restart"], "detection" in silent) == (15.0, False)


def test_a_hang_is_detection_from_the_last_account_to_the_end() -> None:
    attempts = [attempt(1, 100.0, 210.0, "failed", life(100.0, step=40.0))]
    events = [event(210.0, "failed", 1, "failed")]
    assert shares(ended(210.0, JobState.FAILED), attempts, events) == {"step": 40.0, "detection": 70.0}


def test_making_room_and_a_pause_are_no_faults() -> None:
    attempts = [
        attempt(1, 100.0, 120.0, "preempted", life(100.0, step=20.0, saved=20)),
        attempt(2, 150.0, 160.0, "preempted", life(150.0, step=10.0, start=20, saved=30)),
        attempt(3, 400.0, 410.0, "succeeded", life(400.0, step=10.0, start=30)),
    ]
    events = [
        event(120.0, "preempted", 1, "queued"),
        event(160.0, "paused", 2, "paused"),
        event(390.0, "resumed", 2, "queued"),
    ]
    assert shares(ended(410.0), attempts, events) == {"step": 40.0, "waiting": 40.0, "paused": 230.0}
    found = split(ended(410.0), attempts, events, 0.0)
    assert found is not None
    assert found.share == pytest.approx(40 / 80)


def test_a_persons_retry_from_the_start_makes_all_before_it_redone() -> None:
    attempts = [
        attempt(1, 100.0, 130.0, "failed", life(100.0, step=30.0, saved=20)),
        attempt(2, 500.0, 540.0, "succeeded", life(500.0, step=40.0)),
    ]
    events = [event(130.0, "failed", 1, "failed"), event(480.0, "retry_requested", 1, "queued")]
    expected = {"step": 40.0, "redone": 30.0, "stopped": 350.0, "waiting": 20.0}
    assert shares(ended(540.0), attempts, events) == expected


def test_a_damaged_checkpoint_costs_part_of_what_lies_before_it() -> None:
    attempts = [
        attempt(1, 100.0, 140.0, "lost", life(100.0, step=40.0, saved=30)),
        attempt(2, 140.0, 180.0, "succeeded", life(140.0, step=30.0, start=20, saved=50, seconds={"data": 10.0})),
    ]
    found = shares(ended(180.0), attempts, [event(140.0, "retrying", 1, "queued")])
    assert found == {"step": 20.0 + 30.0, "redone": 20.0, "data": 10.0}


def test_attempts_without_an_account() -> None:
    lost = replace(attempt(1, 100.0, 160.0, "lost"), heartbeat_at=130.0)
    assert shares(ended(160.0, JobState.FAILED), [lost], []) == {"load": 30.0, "detection": 30.0}
    other = replace(ended(160.0), kind="evaluate")
    assert shares(other, [attempt(1, 100.0, 160.0, "succeeded")], []) == {"work": 60.0}
    # One that never claimed is part of the way to the next that did.
    unclaimed = replace(attempt(2, 0.0, 150.0, "lost"), claimed_at=None)
    attempts = [attempt(1, 100.0, 110.0, "lost"), unclaimed, attempt(3, 160.0, 170.0, "succeeded")]
    events = [event(110.0, "retrying", 1, "queued"), event(150.0, "retrying", 2, "queued")]
    assert shares(replace(ended(170.0), kind="evaluate"), attempts, events) == {"work": 20.0, "restart": 50.0}


def test_a_job_cancelled_while_it_waits_for_its_retry() -> None:
    attempts = [attempt(1, 100.0, 120.0, "lost", life(100.0, step=20.0))]
    events = [event(120.0, "retrying", 1, "queued"), event(150.0, "cancelled", 1, "cancelled")]
    assert shares(ended(150.0, JobState.CANCELLED), attempts, events) == {"step": 20.0, "restart": 30.0}


def test_a_running_job_is_in_the_part_that_it_told_of_last() -> None:
    running = attempt(1, 100.0, None, "running", life(100.0, step=20.0, part="validation"))
    assert shares(JOB, [running], [], 125.0) == {"step": 20.0, "validation": 5.0}
    assert shares(JOB, [attempt(1, 100.0, None, "running")], [], 125.0) == {"load": 25.0}


@pytest.mark.parametrize("shift", [-3600.0, -30.0, 30.0, 3600.0])
def test_clocks_that_jump_lose_and_double_no_second(shift: float) -> None:
    first, second = life(100.0, step=40.0, saved=30), life(170.0 + shift, step=30.0, start=30)
    attempts = [attempt(1, 100.0, 150.0, "lost", first), attempt(2, 165.0 + shift, 205.0 + shift, "succeeded", second)]
    events = [event(150.0, "retrying", 1, "queued")]
    found = split(ended(205.0 + shift), attempts, events, 0.0)
    assert found is not None
    assert found.wall_s >= 0
    assert sum(found.seconds.values()) == pytest.approx(found.wall_s)
    assert all(seconds >= 0 for seconds in found.seconds.values())


@pytest.mark.parametrize("seed", range(60))
def test_the_parts_sum_to_the_wall_time_whatever_happened(seed: int) -> None:
    draw = random.Random(seed)
    at, step, attempts, events = 100.0, 0, list[Attempt](), list[Event]()
    for number in range(1, draw.randint(1, 6) + 1):
        claimed = at = at + draw.uniform(0.0, 40.0)
        lives = []
        for _ in range(draw.randint(0, 3)):
            start, at = draw.randint(0, step), at + draw.uniform(0.0, 20.0)
            own = {part: draw.uniform(0.0, 30.0) for part in draw.sample(OWN_PARTS, 4)}
            step = start + draw.randint(0, 50)
            # Accounts may be late, long or short: clocks differ.
            account = {"elapsed": sum(own.values()) * draw.choice((0.5, 1.0, 1.2)), "seconds": own, "unsaved": own}
            saved = draw.randint(start, step)
            lives.append(life(at + draw.uniform(-5.0, 5.0), start=start, saved=saved, **account) | {"step": step})
            at += sum(own.values())
            if draw.random() < 0.5:
                events.append(event(at + draw.uniform(-3.0, 9.0), "fault", number))
        at += draw.uniform(0.0, 60.0)
        how = draw.choice(("lost", "failed", "preempted", "succeeded"))
        attempts.append(attempt(number, claimed, at, how, *lives))
        kind, target = draw.choice((("retrying", "queued"), ("preempted", "queued"), ("preempted", "paused")))
        events.append(event(at, kind, number, target))
    found = split(ended(at + draw.uniform(-10.0, 50.0)), attempts, events, 0.0)
    assert found is not None
    assert sum(found.seconds.values()) == pytest.approx(found.wall_s, rel=1e-9)
    assert sum(found.to_document()["seconds"].values()) == pytest.approx(found.wall_s, rel=0.01)
    assert min(found.seconds.values()) >= 0
    assert found.share is None or 0 <= found.share <= 1 + 1e-9


def test_an_account_longer_than_its_time_is_laid_into_it() -> None:
    attempts = [attempt(1, 100.0, 120.0, "succeeded", life(100.0, step=30.0, seconds={"data": 10.0}))]
    assert shares(ended(120.0), attempts, []) == {"step": 15.0, "data": 5.0}


def account(elapsed: float, name: str = "one", **changes: Any) -> dict[str, Any]:
    steps = {"start": 0, "step": 5, "saved": 2}
    seconds = {"step": elapsed}
    return {"life": name, "elapsed": elapsed, "part": "step", "seconds": seconds, "unsaved": {}, **steps, **changes}


def test_a_life_begins_where_the_quickest_of_its_beats_shows() -> None:
    lives = told((), account(10.0), 113.0)
    assert lives is not None
    assert lives[0]["begin"] == 103.0
    lives = told(lives, account(20.0), 121.0)
    assert lives is not None
    assert (len(lives), lives[0]["begin"], lives[0]["elapsed"]) == (1, 101.0, 20.0)
    lives = told(lives, account(5.0, "two"), 150.0)
    assert lives is not None
    assert [one["begin"] for one in lives] == [101.0, 145.0]
    # A late beat of the life before, or one that was overtaken.
    assert told(lives, account(25.0), 151.0) is None
    assert told(lives, account(4.0, "two"), 151.0) is None


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        "x",
        {},
        account(-1.0),
        account(float("nan")),
        account(1.0, seconds=None),
        account(1.0, seconds={"step": "x"}),
        account(1.0, step=None),
        account(1.0, step=1e300),
    ],
)
def test_what_is_no_account_is_passed_over(broken: object) -> None:
    assert told((), broken, 100.0) is None


def test_an_account_keeps_to_the_known_parts_and_their_number_is_bounded() -> None:
    lives = told((), account(1.0, part="lunch", seconds={"lunch": 1.0, "data": 2.0}, more=1), 100.0)
    assert lives is not None
    assert (lives[0]["part"], lives[0]["seconds"]) == ("other", {"data": 2.0})
    assert "more" not in lives[0]
    many = [{**lives[0], "life": str(number)} for number in range(MAX_LIVES)]
    assert told(many, account(1.0, "new"), 100.0) is None


def test_no_time_has_no_share() -> None:
    assert Goodput(0.0, 0.0, dict.fromkeys(("step", "validation", "work", "paused", "stopped"), 0.0)).share is None
