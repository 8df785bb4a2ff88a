from __future__ import annotations

from dataclasses import replace

import pytest

from factories import RUNNING
from segfleet.queue.model import Attempt
from segfleet.queue.retry import Retry, Stop, back_off_s, count, decide
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
    assert [back_off_s(losses) for losses in (1, 2, 3, 7, 8, 9, 10_000)] == [2, 4, 8, 128, 256, 300, 300]


def attempt(number: int, failure: FailureClass | None) -> Attempt:
    document = None if failure is None else {"class": failure.value, "message": "x"}
    return replace(RUNNING, number=number, state=AttemptState.LOST, failure=document)


def test_losses_count_from_the_attempt_that_last_came_further() -> None:
    lost = [attempt(number, FailureClass.INFRA) for number in (1, 2, 3, 4)]
    assert count(lost, [])[FailureClass.INFRA] == 4
    assert count(lost, [(1, 10), (3, 20)])[FailureClass.INFRA] == 2
    # Falling back and doing the same steps again is no advance.
    assert count(lost, [(1, 10), (2, 5), (3, 10), (4, 7)])[FailureClass.INFRA] == 4


def test_a_checkpoint_excuses_no_other_class_and_restarts_are_a_class_of_their_own() -> None:
    ends = [FailureClass.OOM, FailureClass.RESTART, FailureClass.INFRA, FailureClass.OOM, None]
    counts = count([attempt(number, end) for number, end in enumerate(ends, 1)], [(4, 10)])
    assert counts == {FailureClass.OOM: 2, FailureClass.RESTART: 1, FailureClass.INFRA: 0}
    assert decide(FailureClass.RESTART, {FailureClass.RESTART: 100}, 0) == Retry(0.0)
