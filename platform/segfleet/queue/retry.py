"""What follows a failed attempt: a pure decision on failure classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from segfleet.queue.states import FailureClass

FIRST_DELAY_S = 2.0
LONGEST_DELAY_S = 300.0
OOM_RETRIES = 1


@dataclass(frozen=True, slots=True)
class Retry:
    """Back to the queue, not to be started for `delay_s` seconds."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Stop:
    """The job has failed for good."""

    reason: str


def decide(failure: FailureClass, counts: Mapping[FailureClass, int], max_retries: int) -> Retry | Stop:
    """Whether a failed attempt is followed by another.

    Args:
        failure: What the attempt died of.
        counts: Failed attempts by class since the job's budget began, this one included.
        max_retries: New attempts allowed after losses to infrastructure.
    """
    count = max(counts.get(failure, 0), 1)
    match failure:
        case FailureClass.INFRA:
            if count > max_retries:
                return Stop(f"lost {count} attempts to infrastructure, queue.max_retries is {max_retries}")
            return Retry(back_off_s(count))
        case FailureClass.OOM:
            if count > OOM_RETRIES:
                return Stop("out of memory again; lower train.global_batch or train.crop")
            return Retry(back_off_s(count))
        case FailureClass.TIME_LIMIT:
            return Stop("queue.time_limit is used up")
        case _:
            return Stop("not retried: it would fail again in the same way")


def back_off_s(count: int) -> float:
    """Pause after the `count`-th loss (from 1): 2 s, doubling up to 300 s."""
    doublings = min(count - 1, 20)
    return float(min(FIRST_DELAY_S * 2**doublings, LONGEST_DELAY_S))
