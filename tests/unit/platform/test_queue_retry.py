from __future__ import annotations

from dataclasses import replace

import pytest

from factories import RUNNING
from segfleet.queue.model import Attempt
from segfleet.queue.retry import BUDGETS, Retry, Stop, count, decide
from segfleet.queue.states import AttemptState, FailureClass


@pytest.mark.parametrize(
    ("failure", "failures", "max_retries", "delay_s"),
    [
        (FailureClass.INFRA, 1, 3, 2.0),
        (FailureClass.INFRA, 3, 3, 8.0),
        (FailureClass.INFRA, 4, 3, None),
        (FailureClass.INFRA, 1, 0, None),
        (FailureClass.OOM, 1, 3, 2.0),
        (FailureClass.OOM, 1, 0, 2.0),
        (FailureClass.OOM, 2, 100, None),
        (FailureClass.USER, 1, 100, None),
        (FailureClass.DATA, 1, 100, None),
        (FailureClass.NAN, 1, 100, None),
        (FailureClass.TIME_LIMIT, 1, 100, None),
        (FailureClass.NODE, 1, 0, 1.0),
        (FailureClass.NODE, 10, 0, 300.0),
        (FailureClass.NODE, 11, 100, None),
        (FailureClass.RESTART, 1, 0, 0.0),
        (FailureClass.RESTART, 20, 0, 0.0),
        (FailureClass.RESTART, 21, 100, None),
    ],
)
def test_decision_by_class_and_count(
    failure: FailureClass, failures: int, max_retries: int, delay_s: float | None
) -> None:
    decision = decide(failure, {failure: failures}, max_retries)
    assert decision == Retry(delay_s) if delay_s is not None else isinstance(decision, Stop)


def test_classes_have_budgets_of_their_own() -> None:
    assert isinstance(decide(FailureClass.OOM, {FailureClass.INFRA: 3, FailureClass.OOM: 1}, 3), Retry)
    assert isinstance(decide(FailureClass.INFRA, {FailureClass.INFRA: 3, FailureClass.OOM: 1}, 3), Retry)


def test_back_off_doubles_from_two_seconds_to_five_minutes() -> None:
    delay_s = BUDGETS[FailureClass.INFRA].delay_s
    assert [delay_s(losses) for losses in (1, 2, 3, 7, 8, 9, 10_000)] == [2, 4, 8, 128, 256, 300, 300]


def attempt(number: int, failure: FailureClass | None) -> Attempt:
    document = None if failure is None else {"class": failure.value, "message": "x"}
    return replace(RUNNING, number=number, state=AttemptState.LOST, failure=document)


def test_losses_count_from_the_attempt_that_last_came_further() -> None:
    lost = [attempt(number, FailureClass.INFRA) for number in (1, 2, 3, 4)]
    assert count(lost, [])[FailureClass.INFRA] == 4
    assert count(lost, [(1, 10), (3, 20)])[FailureClass.INFRA] == 2
    # Falling back and doing the same steps again is no advance.
    assert count(lost, [(1, 10), (2, 5), (3, 10), (4, 7)])[FailureClass.INFRA] == 4


def test_a_checkpoint_excuses_losses_but_no_fault_of_the_job() -> None:
    ends = [FailureClass.OOM, FailureClass.RESTART, FailureClass.INFRA, FailureClass.NODE, FailureClass.OOM, None]
    counts = count([attempt(number, end) for number, end in enumerate(ends, 1)], [(5, 10)])
    assert counts == {FailureClass.OOM: 2, FailureClass.RESTART: 0, FailureClass.INFRA: 0, FailureClass.NODE: 0}


def test_a_job_that_brings_the_head_down_each_time_is_stopped_with_a_question() -> None:
    falls = [attempt(number, FailureClass.RESTART) for number in range(1, 22)]
    decision = decide(FailureClass.RESTART, count(falls, []), 3)
    assert isinstance(decision, Stop)
    assert "bring the cluster's head down?" in decision.reason
    assert isinstance(decide(FailureClass.RESTART, count(falls, [(2, 10)]), 3), Retry)
