"""What follows a failed attempt: a pure decision on failure classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from segfleet.queue.model import Attempt
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


def count(attempts: Iterable[Attempt], checkpoints: Iterable[tuple[int, int]]) -> Counter[FailureClass]:
    """Failed attempts by class; losses to infrastructure only since the job last came further.

    Args:
        attempts: Those that count against the job's budget.
        checkpoints: (attempt number, step) of what they set, in the order of setting.
    """
    furthest, since = -1, 0
    for number, step in checkpoints:
        if step > furthest:
            furthest, since = step, number
    counts: Counter[FailureClass] = Counter()
    for attempt in attempts:
        if attempt.failure is not None:
            failure = FailureClass(attempt.failure["class"])
            counts[failure] += failure != FailureClass.INFRA or attempt.number >= since
    return counts


def decide(failure: FailureClass, counts: Mapping[FailureClass, int], max_retries: int) -> Retry | Stop:
    """Whether a failed attempt is followed by another.

    Args:
        failure: What the attempt died of.
        counts: Failed attempts by class from `count`, this one included.
        max_retries: New attempts in a row, without a new checkpoint between, allowed after losses to infrastructure.
    """
    failures = max(counts.get(failure, 0), 1)
    match failure:
        case FailureClass.INFRA:
            if failures > max_retries:
                return Stop(f"lost {failures} attempts without a new checkpoint, queue.max_retries is {max_retries}")
            return Retry(back_off_s(failures))
        case FailureClass.OOM:
            if failures > OOM_RETRIES:
                return Stop("out of memory again; lower train.global_batch or train.crop")
            return Retry(back_off_s(failures))
        case FailureClass.RESTART:
            return Retry(0.0)
        case FailureClass.TIME_LIMIT:
            return Stop("queue.time_limit is used up")
        case _:
            return Stop("not retried: it would fail again in the same way")


def back_off_s(losses: int) -> float:
    """Pause after the `losses`-th loss (from 1): 2 s, doubling up to 300 s."""
    doublings = min(losses - 1, 20)
    return float(min(FIRST_DELAY_S * 2**doublings, LONGEST_DELAY_S))
