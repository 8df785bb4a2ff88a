from __future__ import annotations

import pytest

from segfleet.queue.retry import Retry, Stop, back_off_s, decide
from segfleet.queue.states import FailureClass


@pytest.mark.parametrize(
    ("failure", "count", "max_retries", "delay_s"),
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
    failure: FailureClass, count: int, max_retries: int, delay_s: float | None
) -> None:
    decision = decide(failure, {failure: count}, max_retries)
    assert decision == Retry(delay_s) if delay_s is not None else isinstance(decision, Stop)


def test_classes_have_budgets_of_their_own() -> None:
    assert isinstance(decide(FailureClass.OOM, {FailureClass.INFRA: 3, FailureClass.OOM: 1}, 3), Retry)
    assert isinstance(decide(FailureClass.INFRA, {FailureClass.INFRA: 3, FailureClass.OOM: 1}, 3), Retry)


def test_back_off_doubles_from_two_seconds_to_five_minutes() -> None:
    assert [back_off_s(count) for count in (1, 2, 3, 7, 8, 9, 10_000)] == [2, 4, 8, 128, 256, 300, 300]
