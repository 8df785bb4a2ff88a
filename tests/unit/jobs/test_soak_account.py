"""The account of a soak finds what must not be; its faults come in an order that the seed gives."""

from __future__ import annotations

from typing import Any

import pytest

from soak_account import Account, goodput_of, judge_job, judge_record, percentiles
from soak_faults import KINDS, draws


def job(state: str = "succeeded", **changes: Any) -> dict[str, Any]:
    first = {"id": "j-a1", "created_at": 0.0, "claimed_at": 1.0, "finished_at": 5.0}
    second = {"id": "j-a2", "created_at": 5.0, "claimed_at": 6.0, "finished_at": 9.0}
    return {"id": "j", "state": state, "attempts": [first, second], "error": None, "reason": "", **changes}


def judged(found: dict[str, Any], ends: int = 1, may_end: tuple[str, ...] = ("succeeded",)) -> Account:
    account = Account()
    events = [{"target": "running"}, *[{"target": found["state"]}] * ends]
    judge_job(account, found, events, set(may_end))
    return account


def test_a_job_that_ended_once_as_it_may_is_good() -> None:
    account = judged(job())
    judge_record(account, "j", [3, 1, 2], wanted=3, num_runs=1, versions=1)
    assert account.is_good
    assert (account.ends["succeeded"], account.attempts) == (1, 2)
    assert judged(job("cancelled"), may_end=("succeeded", "cancelled")).is_good


def test_what_must_not_be_is_found() -> None:
    assert judged(job("failed")).lost == ["j failed: None"]
    assert judged(job("cancelled")).lost
    assert judged(job("running"), ends=0).human_acts
    assert judged(job(), ends=2).doubled
    overlapping = job()
    overlapping["attempts"][1]["claimed_at"] = 4.0
    assert judged(overlapping).doubled
    overlapping["attempts"][0]["finished_at"] = None
    assert judged(overlapping).doubled


@pytest.mark.parametrize(
    ("steps", "runs", "versions", "field"),
    [
        ([1, 3], 1, 1, "lost"),
        ([1, 2, 3], 0, 1, "lost"),
        ([1, 2, 3], 1, 0, "lost"),
        ([1, 2, 2, 3], 1, 1, "doubled"),
        ([1, 2, 3], 2, 1, "doubled"),
        ([1, 2, 3], 1, 2, "doubled"),
    ],
)
def test_a_record_with_holes_or_twice_is_found(steps: list[int], runs: int, versions: int, field: str) -> None:
    account = Account()
    judge_record(account, "j", steps, wanted=3, num_runs=runs, versions=versions)
    assert getattr(account, field)
    assert not account.is_good


def test_figures() -> None:
    assert percentiles([]) == (None, None)
    assert percentiles([10.0, 20.0]) == (15.0, 19.5)
    seconds = {"step": 6.0, "validation": 2.0, "restart": 8.0, "paused": 100.0}
    assert goodput_of([{"goodput": {"seconds": seconds}}, {"goodput": None}]) == 0.5
    assert goodput_of([]) == 0.0


def test_the_order_of_faults_is_the_seeds_and_leaves_none_out() -> None:
    first, again, other = draws(7), draws(7), draws(8)
    drawn = [first() for _ in range(len(KINDS))]
    assert sorted(drawn) == sorted(KINDS)
    assert len(KINDS) >= 15
    assert drawn == [again() for _ in drawn]
    assert drawn != [other() for _ in drawn]
