"""What is tried again of MLflow's calls, for how long, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    REQUEST_LIMIT_EXCEEDED,
    TEMPORARILY_UNAVAILABLE,
)

from segfleet.errors import ServiceError
from segfleet_jobs import patience as patience_module
from segfleet_jobs.patience import Patience, is_passing


class Clock:
    """Time that passes by sleeping only."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(patience_module, "time", clock)
    return clock


def failing(*errors: Exception) -> Callable[[], str]:
    left = list(errors)

    def call() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return call


def of_status(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(response=response)


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (MlflowException("a", INTERNAL_ERROR), True),
        (MlflowException("a", TEMPORARILY_UNAVAILABLE), True),
        (MlflowException("a", REQUEST_LIMIT_EXCEEDED), True),
        (MlflowException("a", INVALID_PARAMETER_VALUE), False),
        (MlflowException("a", PERMISSION_DENIED), False),
        (requests.ConnectionError("reset"), True),
        (requests.exceptions.ChunkedEncodingError("cut off"), True),
        (of_status(500), True),
        (of_status(503), True),
        (of_status(429), True),
        (of_status(403), False),
        (json.JSONDecodeError("half", "{", 1), True),
        (OSError(28, "No space left on device"), False),
        (KeyError("bug"), False),
    ],
)
def test_what_may_pass(error: Exception, passes: bool) -> None:
    assert is_passing(error) is passes


def test_waiting_is_counted_and_told(clock: Clock) -> None:
    told: list[float] = []
    patience = Patience(on_wait=lambda: told.append(clock.now))
    assert patience(failing(*[requests.ConnectionError()] * 7)) == "done"
    assert patience(failing()) == "done"
    assert patience.waited_s == 0.5 + 1 + 2 + 4 + 8 + 15 + 15
    assert len(told) == 7


def test_patience_ends(clock: Clock) -> None:
    with pytest.raises(ServiceError, match="reset"):
        Patience(60.0)(failing(*[requests.ConnectionError("reset")] * 100))
    assert 60 <= clock.now < 80


def test_no_patience_is_one_try(clock: Clock) -> None:
    with pytest.raises(ServiceError):
        Patience(0.0)(failing(requests.ConnectionError()))
    assert clock.now == 0.0


@pytest.mark.parametrize("error", [MlflowException("no", PERMISSION_DENIED), of_status(403)])
def test_a_refusal_is_not_waited_out(error: Exception, clock: Clock) -> None:
    with pytest.raises(ServiceError):
        Patience()(failing(error))
    assert clock.now == 0.0


def test_an_error_of_our_own_stays_what_it_is(clock: Clock) -> None:
    with pytest.raises(KeyError):
        Patience()(failing(KeyError("bug")))
