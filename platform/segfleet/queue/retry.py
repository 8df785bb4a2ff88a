"""What follows a failed attempt: a pure decision on failure classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from segfleet.queue.model import Attempt
from segfleet.queue.states import FailureClass


@dataclass(frozen=True, slots=True)
class Budget:
    """How often a class of failure is followed by another attempt.

    Attributes:
        retries: New attempts; None: the job's own `queue.max_retries`.
        first_delay_s: Pause after the first, doubling with each.
        longest_delay_s: Bound of the pause.
        since_progress: Only failures since the job last came further count.
        advice: What to tell once it is used up.
    """

    retries: int | None
    first_delay_s: float
    longest_delay_s: float
    since_progress: bool
    advice: str

    def delay_s(self, failures: int) -> float:
        """Pause after the `failures`-th failure, from 1."""
        return min(self.first_delay_s * 2.0 ** min(failures - 1, 20), self.longest_delay_s)


# A class without a budget would fail again in the same way.
BUDGETS: dict[FailureClass, Budget] = {
    FailureClass.INFRA: Budget(None, 2.0, 300.0, True, "see queue.max_retries"),
    # Nobody's fault, so no pause for the first; a job that brings its machines or the head down is one all the same.
    FailureClass.NODE: Budget(10, 1.0, 300.0, True, "does the job bring its machines down?"),
    FailureClass.RESTART: Budget(20, 0.0, 0.0, True, "does the job bring the cluster's head down?"),
    FailureClass.OOM: Budget(1, 2.0, 2.0, False, "lower train.global_batch or train.crop"),
}


LONGEST_DELAY_S = max(budget.longest_delay_s for budget in BUDGETS.values())


@dataclass(frozen=True, slots=True)
class Retry:
    """Back to the queue, not to be started for `delay_s` seconds."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Stop:
    """The job has failed for good."""

    reason: str


def count(attempts: Iterable[Attempt], checkpoints: Iterable[tuple[int, int]]) -> Counter[FailureClass]:
    """Failed attempts by class; where the budget says so, only since the job last came further.

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
            budget = BUDGETS.get(failure)
            counts[failure] += budget is None or not budget.since_progress or attempt.number >= since
    return counts


def decide(failure: FailureClass, counts: Mapping[FailureClass, int], max_retries: int) -> Retry | Stop:
    """Whether a failed attempt is followed by another.

    Args:
        failure: What the attempt died of.
        counts: Failed attempts by class from `count`, this one included.
        max_retries: New attempts in a row, without a new checkpoint between, allowed after losses to infrastructure.
    """
    if failure == FailureClass.TIME_LIMIT:
        return Stop("queue.time_limit is used up")
    budget = BUDGETS.get(failure)
    if budget is None:
        return Stop("not retried: it would fail again in the same way")
    failures = max(counts.get(failure, 0), 1)
    allowed = max_retries if budget.retries is None else budget.retries
    if failures <= allowed:
        return Retry(budget.delay_s(failures))
    between = " without a new checkpoint" if budget.since_progress else ""
    return Stop(f"{failures} failures of class {failure}{between}, {allowed} retries allowed; {budget.advice}")
