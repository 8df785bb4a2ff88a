from __future__ import annotations

from dataclasses import replace

from factories import RUNNING
from segfleet.queue.leases import LeaseWatch
from segfleet.queue.model import Attempt
from segfleet.queue.states import AttemptState

STARTING = replace(RUNNING, state=AttemptState.STARTING, claimed_at=None, heartbeat_at=None, beats=0)


def looks(watch: LeaseWatch, attempt: Attempt, *times: float) -> dict[str, str]:
    late: dict[str, str] = {}
    for now in times:
        late = watch.overdue([attempt], now)
    return late


def test_silence_longer_than_the_lease_is_overdue() -> None:
    watch = LeaseWatch(lease_s=10, start_deadline_s=60)
    assert looks(watch, RUNNING, 0, 4, 8, 10) == {}
    assert looks(watch, RUNNING, 10.5) == {RUNNING.id: "no heartbeat for 10 s"}


def test_each_heartbeat_renews_the_lease() -> None:
    watch = LeaseWatch(lease_s=10, start_deadline_s=60)
    for beats, now in enumerate(range(0, 100, 4)):
        assert watch.overdue([replace(RUNNING, beats=beats)], now) == {}


def test_a_fresh_watch_gives_everyone_a_whole_lease_whatever_the_stored_times_say() -> None:
    stale = replace(RUNNING, heartbeat_at=-1e6)
    watch = LeaseWatch(lease_s=10, start_deadline_s=60)
    assert looks(watch, stale, 0, 5, 9.5) == {}


def test_a_pause_of_the_service_itself_costs_nobody_the_lease() -> None:
    watch = LeaseWatch(lease_s=10, start_deadline_s=60)
    assert looks(watch, RUNNING, 0, 4, 604) == {}
    assert looks(watch, RUNNING, 608, 612) == {}
    assert looks(watch, RUNNING, 614.5) == {RUNNING.id: "no heartbeat for 10 s"}


def test_starting_has_a_deadline_of_its_own_that_begins_with_acceptance() -> None:
    watch = LeaseWatch(lease_s=100, start_deadline_s=20)
    unsent = replace(STARTING, ray_session=None)
    assert looks(watch, unsent, 0, 10, 19) == {}
    assert looks(watch, STARTING, 21, 40) == {}
    assert looks(watch, STARTING, 42) == {STARTING.id: "did not start within 20 s"}


def test_an_attempt_that_is_gone_is_forgotten() -> None:
    watch = LeaseWatch(lease_s=10, start_deadline_s=60)
    assert looks(watch, RUNNING, 0, 4) == {}
    assert watch.overdue([], 8) == {}
    assert looks(watch, RUNNING, 12, 16) == {}


def test_the_services_own_slow_turns_are_no_pause() -> None:
    watch = LeaseWatch(lease_s=10, start_deadline_s=60)
    for begun in (0.0, 9.0):
        assert watch.overdue([RUNNING], begun) == {}
        watch.rest(begun + 8.5)
    assert looks(watch, RUNNING, 18.0) == {RUNNING.id: "no heartbeat for 10 s"}


def test_a_turn_that_did_not_go_through_counts_as_a_pause() -> None:
    watch = LeaseWatch(lease_s=10, start_deadline_s=60)
    assert looks(watch, RUNNING, 0, 9, 18, 27) == {}
