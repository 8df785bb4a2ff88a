"""States of jobs and attempts, and the table of transitions that everything else obeys."""

from __future__ import annotations

from enum import StrEnum

from segfleet.errors import IllegalTransitionError


class JobState(StrEnum):
    """Where a job is; why it is there stands in the job's `reason` and `error`.

    queued -> starting -> running -> succeeded | failed | cancelled. A lost attempt leads from starting or running back
    to queued. `succeeded` is left by nothing; `failed` and `cancelled` only by a person's retry.
    """

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AttemptState(StrEnum):
    """Where an attempt is: starting (sent to the cluster), running (has claimed its job), or how it ended."""

    STARTING = "starting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    LOST = "lost"
    CANCELLED = "cancelled"


class FailureClass(StrEnum):
    """What an attempt died of; the retry policy knows nothing else about it."""

    USER = "user"
    DATA = "data"
    NAN = "nan"
    OOM = "oom"
    INFRA = "infra"
    RESTART = "restart"
    CANCELLED = "cancelled"
    TIME_LIMIT = "time_limit"


TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.STARTING, JobState.CANCELLED}),
    JobState.STARTING: frozenset({JobState.RUNNING, JobState.QUEUED, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset({JobState.SUCCEEDED, JobState.QUEUED, JobState.FAILED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset({JobState.QUEUED}),
}
TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
HOLDING = frozenset({JobState.STARTING, JobState.RUNNING})
ALIVE = frozenset({AttemptState.STARTING, AttemptState.RUNNING})


def is_terminal(state: JobState) -> bool:
    """Whether the job stays there unless a person asks for a retry."""
    return state in TERMINAL


def check_transition(job_id: str, source: JobState, target: JobState) -> None:
    """Refuse a step that the table does not hold.

    Raises:
        IllegalTransitionError: naming both states.
    """
    if target not in TRANSITIONS[source]:
        raise IllegalTransitionError(job_id, source, f"move to {target}")
