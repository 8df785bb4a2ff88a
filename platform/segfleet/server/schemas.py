"""Shapes of requests and answers; from these FastAPI makes the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from segfleet.queue.desk import Command
from segfleet.queue.model import Attempt, Event, Job, JobEvent
from segfleet.queue.scheduling.values import Gang
from segfleet.queue.states import FailureClass
from segfleet.server.goodput_schemas import FaultAnswer, GoodputAnswer
from segfleet.server.paging import Page

MAX_DEPTH = 32


def _plain(document: dict[str, Any]) -> dict[str, Any]:
    """Refuse what JSON text can hold but no database can store, or no reader can parse back."""
    _check_plain(document, 0)
    return document


def _check_plain(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    match value:
        case float() if value - value != 0:
            raise ValueError("NaN and infinities are not allowed; send null")
        case str() if "\0" in value or not _is_unicode(value):
            raise ValueError("text with NUL or half a surrogate pair")
        case int() if not -(2**63) <= value < 2**63:
            raise ValueError("an integer beyond 64 bits")
        case dict():
            for key, inner in value.items():
                _check_plain(key, depth)
                _check_plain(inner, depth + 1)
        case list():
            for inner in value:
                _check_plain(inner, depth + 1)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


PlainData = Annotated[dict[str, Any], AfterValidator(_plain)]
Text = Annotated[str, Field(max_length=8000), AfterValidator(lambda text: (_check_plain(text, 0), text)[1])]


class Body(BaseModel):
    """Base of every request: strict, closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True)


class SpecBody(Body):
    """A job spec as the user wrote it."""

    spec: PlainData


class RetryBody(Body):
    """How to retry."""

    from_start: bool = Field(False, description="forget the checkpoint")


class PriorityBody(Body):
    """A new priority."""

    priority: Annotated[int, Field(ge=0, le=100)]


class PolicyBody(Body):
    """All rules of a project, a user or the cluster."""

    rules: PlainData


class EmptyBody(Body):
    """Nothing."""


class ClaimBody(Body):
    """An attempt's one-time code; empty ones are refused like wrong ones."""

    code: Annotated[str, Field(max_length=200)] = ""
    instance: Annotated[str, Field(max_length=200)] = ""


class HeartbeatBody(Body):
    """A sign of life."""

    progress: PlainData | None = None


class CheckpointPointer(BaseModel):
    """What the queue and a later attempt rely on; an attempt may add more."""

    model_config = ConfigDict(strict=True)

    path: Annotated[str, Field(max_length=4096)]
    step: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


def _pointer(document: dict[str, Any]) -> dict[str, Any]:
    CheckpointPointer.model_validate(document)
    return document


class CheckpointBody(Body):
    """A checkpoint that is durable."""

    checkpoint: Annotated[PlainData, AfterValidator(_pointer)]


class CompleteBody(Body):
    """The result of a job."""

    result: PlainData


_OF_THE_SERVICE = frozenset(
    {FailureClass.RESTART, FailureClass.TIME_LIMIT, FailureClass.DEPENDENCY, FailureClass.START_DEADLINE}
)


def _own_to_tell(failure: FailureClass) -> FailureClass:
    if failure in _OF_THE_SERVICE:
        raise ValueError("only the service can tell that")
    return failure


class Failure(Body):
    """Why an attempt failed; what only the service can know (restart, or a limit of the queue) is refused."""

    class_: Annotated[FailureClass, AfterValidator(_own_to_tell)] = Field(alias="class", strict=False)
    message: Text


class FailBody(Body):
    """The bad end of an attempt."""

    failure: Failure


class JobAnswer(BaseModel):
    """A job as the service shows it; times are seconds since the epoch."""

    id: str
    name: str
    kind: str
    owner: str
    project: str
    state: Literal["queued", "starting", "running", "preempting", "paused", "succeeded", "failed", "cancelled"]
    reason: str = Field(description="why it waits or how it ended")
    place: int | None = Field(description="in the line, from 1, while queued")
    priority: int
    starts_at: float | None = Field(description="estimated start while queued; null: nobody can tell")
    start_by: float | None = Field(description="fails if it has not started by then; null: no deadline, or started")
    needs: dict[str, int] = Field(description="workers, CPUs and GPUs of one attempt; elastic: at least")
    created_at: float
    updated_at: float
    started_at: float | None
    finished_at: float | None
    attempt: int = Field(description="number of the latest attempt; 0 before the first")
    version: int = Field(description="rises with every change, also of progress; the first part of the ETag")
    cancel_requested: bool
    progress: dict[str, Any] | None
    checkpoint: dict[str, Any] | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None = Field(description="class and message of the last failed attempt")

    @classmethod
    def fields_of(cls, job: Job) -> dict[str, Any]:
        """The answer's fields, read off a job."""
        fields = {name: getattr(job, name) for name in JobAnswer.model_fields if name != "needs"}
        return {**fields, "state": str(job.state), "needs": needs_of(job.gang)}


def needs_of(gang: Gang) -> dict[str, int]:
    """What a gang occupies with its fewest workers, in all; for an elastic one also the most workers."""
    most = {"max_workers": gang.max_workers} if gang.max_workers > gang.workers else {}
    return {"workers": gang.workers, "cpus": gang.workers * gang.cpus, "gpus": gang.workers * gang.gpus, **most}


class AttemptAnswer(BaseModel):
    """One try of a job."""

    id: str
    number: int
    state: str
    created_at: float
    claimed_at: float | None
    heartbeat_at: float | None
    finished_at: float | None
    workers: int
    failure: dict[str, Any] | None

    @classmethod
    def of(cls, attempt: Attempt) -> AttemptAnswer:
        """The answer for an attempt; its fence and session are the queue's own business."""
        fields = {name: getattr(attempt, name) for name in cls.model_fields}
        return cls(**{**fields, "state": str(attempt.state)})


class JobDetailAnswer(JobAnswer):
    """A job with its spec and its attempts."""

    spec: dict[str, Any]
    attempts: list[AttemptAnswer]
    goodput: GoodputAnswer | None = Field(description="where the time went; null before the first start")
    faults: list[FaultAnswer] = Field(description="of its workers, the latest 20, the oldest first")


class SubmittedAnswer(JobAnswer):
    """A submitted job."""

    spec: dict[str, Any]
    replayed: bool = Field(description="the idempotency key was known: this is its job")
    forced: list[str] = Field(description="where the operator's values stand instead of the user's")


class JobsAnswer(Page):
    """A page of jobs, the newest first."""

    jobs: list[JobAnswer]


class PolicyAnswer(BaseModel):
    """The rules of a project, a user or the cluster."""

    scope: str
    name: str
    rules: dict[str, Any]


class PoliciesAnswer(BaseModel):
    """All rules that are set."""

    policies: list[PolicyAnswer]


class EventAnswer(BaseModel):
    """One line of a job's history."""

    seq: int = Field(description="its number in the history of all jobs")
    at: float
    kind: str
    who: str
    attempt: int
    source: str | None
    target: str | None
    detail: dict[str, Any]

    @classmethod
    def of(cls, event: Event) -> EventAnswer:
        """The answer for an event."""
        return cls(**{name: getattr(event, name) for name in cls.model_fields})


class HistoryAnswer(EventAnswer):
    """A line of the history of all jobs."""

    job: str
    name: str
    job_kind: str
    owner: str
    project: str

    @classmethod
    def of_line(cls, line: JobEvent) -> HistoryAnswer:
        """The answer for a line."""
        fields = EventAnswer.of(line.event).model_dump()
        fields |= {"job": line.event.job_id, "name": line.name, "job_kind": line.job_kind}
        return cls(**fields, owner=line.owner, project=line.project)


class EventsAnswer(Page):
    """A page of a job's history, the oldest first."""

    events: list[EventAnswer]


class OutlookAnswer(BaseModel):
    """Where a job would stand in the line if it were submitted now."""

    place: int = Field(description="from 1; 0: it would start at once")
    reason: str = Field(description="why it would wait; empty: it would not")
    starts_at: float | None = Field(
        description="seconds since the epoch, if all before it took as long as their limits; null: nobody can tell"
    )


class CheckAnswer(BaseModel):
    """A valid spec with every default filled in, what one attempt of it occupies, and how long it would wait."""

    spec: dict[str, Any]
    needs: dict[str, int]
    forced: list[str] = Field(description="where the operator's values stand instead of the user's")
    outlook: OutlookAnswer | None = Field(
        description="null if nobody can tell: no cluster answers, its quotas are Kueue's, or too many jobs wait"
    )


class GrantAnswer(BaseModel):
    """What an attempt gets for its code."""

    job_id: str
    attempt_id: str
    token: str
    fence: int
    spec: dict[str, Any]
    checkpoint: dict[str, Any] | None
    storage: str
    workers: int
    earlier: dict[str, Any] | None
    mlflow: dict[str, str] = Field(description="variables that let the attempt in at the MLflow server")


class CommandAnswer(BaseModel):
    """What an attempt is to do."""

    command: Command


class CheckpointAnswer(BaseModel):
    """The job's latest checkpoint."""

    checkpoint: dict[str, Any] | None


class DoneAnswer(BaseModel):
    """It is done."""

    ok: Literal[True] = True
