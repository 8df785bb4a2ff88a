"""The queue's values: what a job, an attempt and an event are. Times are seconds since the epoch."""

from __future__ import annotations

import hashlib
import posixpath
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from segfleet.queue.scheduling.values import Gang
from segfleet.queue.states import ALIVE, AttemptState, JobState, StopFor
from segfleet.spec.location import split_location
from segfleet.spec.search import most_parallel
from segfleet.spec.training import usable_workers

Document = dict[str, Any]

# More than this between two heartbeats is an absence of the service or a moved clock, not known to be work.
LONGEST_STEP_S = 60.0
_NOT_OF_THE_WORK = frozenset({"name", "processes", "reuse", "queue"})
_ID_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
JOB_ID = re.compile(r"job-[a-z2-7]{8}")
ATTEMPT_ID = re.compile(r"job-[a-z2-7]{8}-a[1-9][0-9]{0,5}")


def new_job_id() -> str:
    """A fresh id, `job-` and 40 random bits; safe in shells, paths and URLs."""
    return "job-" + "".join(secrets.choice(_ID_LETTERS) for _ in range(8))


def attempt_id(job_id: str, number: int) -> str:
    """The attempt's id, which is also its submission id at Ray."""
    return f"{job_id}-a{number}"


def clean_text(text: str) -> str:
    """Text that every database takes: without NUL characters and halves of surrogate pairs."""
    return text.replace("\0", "").encode("utf-8", errors="replace").decode()


def gang_of(spec: Mapping[str, Any]) -> Gang:
    """What a resolved spec asks of the cluster: its workers, or one CPU for a job without workers.

    A search runs with the workers of one trial, and faster with those of several. An elastic training runs with any
    number that divides its batch.
    """
    if spec.get("kind") == "search":
        one, parallel = gang_of(spec["base"]), most_parallel(spec)
        most = one.workers * parallel
        return Gang(one.workers, one.cpus, one.gpus, most, tuple(range(one.workers, most + 1, one.workers)))
    resources = spec.get("resources")
    if not isinstance(resources, Mapping):
        return Gang(workers=1, cpus=1, gpus=0)
    each = int(resources["cpus_per_worker"]), int(resources["gpus_per_worker"])
    workers = resources["workers"]
    if isinstance(workers, int):
        return Gang(workers, *each)
    if "train" not in spec:
        return Gang(workers["min"], *each, workers["max"])
    sizes = usable_workers(workers["min"], workers["max"], spec["train"]["global_batch"], spec["model"]["arch"])
    return Gang(sizes[0], *each, sizes[-1], sizes)


def lane_of(spec: Mapping[str, Any]) -> str | None:
    """The lane of a resolved spec: jobs of one lane write to one place, and run one at a time. None: any may run."""
    if spec["kind"] != "prepare":
        return None
    place = split_location(spec["out"])
    path = posixpath.normpath(place.path) if place.scheme == "file" else place.path
    return hashlib.sha256("\0".join((place.scheme, place.host, path)).encode()).hexdigest()


def work_of(spec: Mapping[str, Any]) -> Document:
    """What of a preparation's resolved spec decides on its result, besides the raw data."""
    return {key: value for key, value in spec.items() if key not in _NOT_OF_THE_WORK}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which jobs a list is to have; what is not given leaves none out.

    Attributes:
        states: Any of them; none: all.
        name: Anywhere in the job's name.
        before: Submitted before the job of this `seq`: where the page before has ended.
    """

    states: tuple[JobState, ...] = ()
    project: str | None = None
    owner: str | None = None
    kind: str | None = None
    name: str | None = None
    before: int | None = None


EVERY_JOB = Wanted()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One submitted spec and all that has become of it.

    Attributes:
        seq: Order of submission; the age that breaks ties of priority, whatever the clocks did.
        reason: Why it waits, or how it ended, for a person; never decides anything.
        place: Place in the line, from 1, while queued.
        starts_at: Estimated start while queued; None: nobody can tell.
        spec: The resolved document.
        attempt: Number of the latest attempt, 0 before the first.
        fence: Fencing number of the latest attempt.
        budget_from: Attempts up to this number no longer count against the retry budget and the time limit.
        progress: Latest progress document of a heartbeat.
        checkpoint: Pointer to the latest checkpoint, with the `attempt` that set it.
        result: Document of the completion call.
        error: {"class", "message", "attempt"} of the last failed attempt, also while the job waits for its retry; with
            "cause" and "advice" where its log names a known cause.
        not_before: Back-off after a lost attempt: not started earlier.
        time_limit_s: Over all attempts of a budget; None: unlimited.
        overtaken: Later jobs of its priority that started while it was the first of its project.
        start_by: It fails if it has not started by then; None: it has no such deadline, or has started.
        stop_for: Why its attempt is asked to stop; None: it is not.
        version: Counts the job's writes; every transition is a compare-and-set on it.
    """

    seq: int
    id: str
    name: str
    kind: str
    owner: str
    project: str
    state: JobState
    reason: str
    priority: int
    gang: Gang
    spec: Document
    created_at: float
    updated_at: float
    started_at: float | None
    finished_at: float | None
    attempt: int
    fence: int
    budget_from: int
    cancel_requested: bool
    progress: Document | None
    checkpoint: Document | None
    result: Document | None
    error: Document | None
    not_before: float | None
    time_limit_s: float | None
    start_by: float | None
    overtaken: int
    stop_for: StopFor | None
    version: int
    place: int | None = None
    starts_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try of a job: one Ray job, one fencing number.

    Attributes:
        id: `JOB-aN`.
        fence: Rises with each attempt of the job; a write under a lower one is refused.
        ray_session: Ray session that accepted the submission; None: not known to be accepted.
        claimed_at: When the driver traded its code for the token.
        heartbeat_at: Last sign of life, by the service's clock.
        beats: Count of signs of life; liveness is judged by its changes, not by clock times.
        used_s: Seconds it ran, summed up from heartbeat to heartbeat.
        workers: How many it runs with.
        stop_asked_at: When it was asked to make room or to pause.
        failure: {"class", "message"} if it failed or was lost.
        closed: Ray is done with it and its log is copied to the end.
        lives: What its groups of workers told of their time, oldest first; see `lives.told`.
        groups: Number of the latest group of workers in each scope; see `fencing.begin_group`.
    """

    id: str
    job_id: str
    number: int
    fence: int
    state: AttemptState
    ray_session: str | None
    created_at: float
    claimed_at: float | None
    heartbeat_at: float | None
    finished_at: float | None
    beats: int
    used_s: float
    workers: int
    stop_asked_at: float | None
    failure: Document | None
    closed: bool
    lives: tuple[Document, ...] = ()
    groups: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_alive(self) -> bool:
        """Whether it may still write."""
        return self.state in ALIVE

    def used_at(self, now: float) -> float:
        """Seconds it has run until now, as far as its heartbeats show."""
        if not self.is_alive or self.heartbeat_at is None:
            return self.used_s
        return self.used_s + min(max(now - self.heartbeat_at, 0.0), LONGEST_STEP_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of a job's append-only history.

    Attributes:
        kind: submitted, starting, running, checkpoint, preempting, preempted, retrying, pause_requested, paused,
            resumed, priority, cancel_requested, retry_requested, succeeded, failed, cancelled, abandoned, explained,
            fault, straggler, damage.
        source: State before; None: the event changed no state.
        target: State after; None: the event changed no state.
        who: User, attempt id or `service`.
    """

    seq: int
    job_id: str
    at: float
    kind: str
    who: str
    attempt: int
    source: JobState | None
    target: JobState | None
    detail: Document


@dataclass(frozen=True, slots=True)
class JobEvent:
    """A line of history, and whose."""

    event: Event
    name: str
    job_kind: str
    owner: str
    project: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What an attempt gets for its one-time code.

    Attributes:
        token: Bearer token of every later call; known to the attempt alone.
        checkpoint: Where to resume, None: from the start.
        storage: Folder of the job; the attempt writes below its own subfolder.
        workers: How many it runs with; an elastic job may have had others in an earlier attempt.
        earlier: {"job_id", "result"} of the latest equal job that has succeeded; None: no such, or not to be reused.
    """

    job_id: str
    attempt_id: str
    token: str
    fence: int
    spec: Document
    checkpoint: Document | None
    storage: str
    workers: int
    earlier: Document | None


@dataclass(frozen=True, slots=True)
class Dependency:
    """A job that waits for the end of another.

    Attributes:
        condition: `ok`, `failed` or `any`.
        parent_state: Of the other, now.
    """

    job_id: str
    parent_id: str
    condition: str
    parent_state: JobState
