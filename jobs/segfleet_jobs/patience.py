"""Waiting out an MLflow server that is away, slow, or answers nonsense."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

import mlflow
from mlflow.exceptions import MlflowException

from segfleet.errors import ServiceError

PATIENCE_S = 1800.0
LONGEST_PAUSE_S = 15.0
# What a job is at while it can do nothing else.
WAITING = "waiting for MLflow"
_PASSING = frozenset({"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"})
T = TypeVar("T")


def is_passing(error: Exception) -> bool:
    """Whether the same call may succeed later: nobody answered, or what came was no answer."""
    if isinstance(error, MlflowException):
        return error.error_code in _PASSING
    if isinstance(error, json.JSONDecodeError):
        return True
    # Files go over plain requests, whose exceptions are OSErrors that know their request.
    if not isinstance(error, OSError) or not hasattr(error, "request"):
        return False
    status = getattr(getattr(error, "response", None), "status_code", 500)
    return bool(status >= 500 or status == 429)


class Wait(Protocol):
    """Makes a call of MLflow, again while it is away."""

    def __call__(self, call: Callable[[], T]) -> T:
        """The call's result."""


class Patience:
    """Does what may be done twice until MLflow has taken it.

    Args:
        most_s: How long one call may take, all tries together, before another try is not made any more.
        on_wait: Called whenever there is something to wait for.

    Attributes:
        waited_s: Seconds so far that went into tries that failed and the pauses after them.
    """

    def __init__(self, most_s: float = PATIENCE_S, on_wait: Callable[[], None] | None = None) -> None:
        self._most_s, self._on_wait = most_s, on_wait
        self.waited_s = 0.0

    def __call__(self, call: Callable[[], T]) -> T:
        """The call's result.

        Raises:
            ServiceError: MLflow stayed away, or refuses.
        """
        give_up, pause_s = time.monotonic() + self._most_s, min(0.5, LONGEST_PAUSE_S)
        while True:
            tried_at = time.monotonic()
            try:
                return call()
            except Exception as error:
                if not (is_passing(error) or isinstance(error, MlflowException) or hasattr(error, "request")):
                    raise
                if not is_passing(error) or time.monotonic() >= give_up:
                    raise ServiceError(f"MLflow at {mlflow.get_tracking_uri()!r} cannot be used: {error}") from error
            if self._on_wait is not None:
                self._on_wait()
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            self.waited_s += time.monotonic() - tried_at


def patiently(call: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """Do what may be done twice, waiting out an MLflow server that is away.

    Raises:
        ServiceError: it stayed away, or refuses.
    """
    return Patience(patience_s)(call)
