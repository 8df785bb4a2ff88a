"""States of jobs and attempts, and the table of transitions that everything else obeys."""

from __future__ import annotations

from enum import StrEnum

from segfleet.errors import IllegalTransitionError


class JobState(StrEnum):
    """Where a job is; why it is there stands in the job's `reason` and `error`.

    queued -> starting -> running -> succeeded | failed | cancelled. A lost attempt leads from starting or running back
    to queued. A running job that makes room, has to leave its node or is to pause is `preempting` until its
    checkpoint is written, then queued or paused. `succeeded` is left by nothing; `failed` and `cancelled` only by a
    person's retry.
    """

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    PREEMPTING = "preempting"
    PAUSED = "paused"
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
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"


class StopFor(StrEnum):
    """Why a job that runs well is asked to stop: to make room for another, by a person's pause, or as its node goes."""

    ROOM = "room"
    PAUSE = "pause"
    DRAIN = "drain"


class FailureClass(StrEnum):
    """What an attempt died of; the retry policy knows nothing else about it."""

    USER = "user"
    DATA = "data"
    NAN = "nan"
    OOM = "oom"
    INFRA = "infra"
    NODE = "node"
    RESTART = "restart"
    CANCELLED = "cancelled"
    TIME_LIMIT = "time_limit"
    DEPENDENCY = "dependency"
    START_DEADLINE = "start_deadline"


TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.STARTING, JobState.PAUSED, JobState.FAILED, JobState.CANCELLED}),
    JobState.STARTING: frozenset(
        {JobState.RUNNING, JobState.QUEUED, JobState.PAUSED, JobState.FAILED, JobState.CANCELLED}
    ),
    JobState.RUNNING: frozenset(
        {JobState.PREEMPTING, JobState.SUCCEEDED, JobState.QUEUED, JobState.FAILED, JobState.CANCELLED}
    ),
    JobState.PREEMPTING: frozenset(
        {JobState.SUCCEEDED, JobState.QUEUED, JobState.PAUSED, JobState.FAILED, JobState.CANCELLED}
    ),
    JobState.PAUSED: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset({JobState.QUEUED}),
}
TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
HOLDING = frozenset({JobState.STARTING, JobState.RUNNING, JobState.PREEMPTING})
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
