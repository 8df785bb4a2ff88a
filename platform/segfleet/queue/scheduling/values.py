"""What the scheduler looks at and what it decides. Times are seconds since the epoch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Gang:
    """Equal workers that start together or not at all.

    Attributes:
        workers: The fewest that will do.
        cpus: Of each worker.
        gpus: Of each worker.
        max_workers: The most that help; equal to `workers` unless the job is elastic.
        sizes: The numbers of workers it can run with, rising, from `workers` to `max_workers`; empty: all between.
    """

    workers: int
    cpus: int
    gpus: int
    max_workers: int = 0
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_workers < self.workers:
            object.__setattr__(self, "max_workers", self.workers)

    def usable(self, workers: int) -> int:
        """The most of so many workers that it can run with; 0: it needs more."""
        if workers < self.workers:
            return 0
        if not self.sizes:
            return min(workers, self.max_workers)
        return self.sizes[bisect_right(self.sizes, workers) - 1]


@dataclass(frozen=True, slots=True)
class Node:
    """CPUs and GPUs of one machine."""

    cpus: int
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A queued job.

    Attributes:
        seq: Order of submission.
        not_before: End of its back-off.
        hindrance: Why it could not start even on an empty cluster now, such as a dependency; empty: nothing.
        time_left_s: What is left of its time limit; None: it has none.
        overtaken: Later jobs of its priority that have started while it was the first of its project in its band;
            those behind it are not kept waiting by others but by their own project.
    """

    job_id: str
    seq: int
    gang: Gang
    priority: int = 50
    project: str = "default"
    user: str = ""
    not_before: float | None = None
    hindrance: str = ""
    time_left_s: float | None = None
    overtaken: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """An attempt that holds resources.

    Attributes:
        workers: How many it runs with.
        since: Start of the attempt.
        ends_by: When its time limit, or its grace while it is stopping, is used up; None: it has none.
        is_stopping: Told to make room, or being cancelled.
        may_be_preempted: Able to go on later from where it stopped.
    """

    job_id: str
    seq: int
    gang: Gang
    workers: int
    since: float
    priority: int = 50
    project: str = "default"
    user: str = ""
    ends_by: float | None = None
    is_stopping: bool = False
    may_be_preempted: bool = True


@dataclass(frozen=True, slots=True)
class Quota:
    """What a project or a user may use; None: no guarantee, no bound.

    Attributes:
        workers: Guaranteed workers. What lies idle of them is lent, and reclaimed when needed. None: no guarantee, so
            that all a project holds is borrowed where others have one.
        gpus: Guaranteed GPUs, likewise.
        max_workers: Upper bound with what is borrowed.
        max_gpus: Upper bound with what is borrowed.
        max_running: Jobs at a time.
        max_queued: Jobs waiting, refused at submit beyond it.
    """

    workers: int | None = None
    gpus: int | None = None
    max_workers: int | None = None
    max_gpus: int | None = None
    max_running: int | None = None
    max_queued: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The operator's rules.

    Attributes:
        projects: Quotas by project.
        users: Quotas by user; guarantees are of projects only.
        weights: Share of each project relative to the others; 1 where not given.
        preempts_for_priority: A job of higher priority may stop lower ones.
        preempts_to_reclaim: A project within its guarantee may stop borrowers.
        min_run_s: No attempt is stopped for others before it has run so long.
        grace_s: Time to write a checkpoint before an attempt that makes room is stopped.
        entry_penalty_s: Counted as used by a project for each job at its start, until it has run so long, so that a
            burst of submissions cannot win before its use shows.
        max_overtaken: A job that so many later ones of its priority have overtaken is first among them; but jobs
            within a guarantee come before those that would borrow.
    """

    projects: Mapping[str, Quota] = field(default_factory=dict)
    users: Mapping[str, Quota] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    preempts_for_priority: bool = False
    preempts_to_reclaim: bool = False
    min_run_s: float = 600.0
    grace_s: float = 120.0
    entry_penalty_s: float = 600.0
    max_overtaken: int = 50


@dataclass(frozen=True, slots=True)
class Start:
    """Start this job now with so many workers."""

    job_id: str
    workers: int


@dataclass(frozen=True, slots=True)
class Preempt:
    """Tell this running job to write a checkpoint and make room."""

    job_id: str
    beneficiary: str
    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """This job waits.

    Attributes:
        place: In the line, from 1.
        reason: Why, for a person.
        starts_at: When it would start if everything took as long as its limit; None: nobody can tell.
    """

    job_id: str
    place: int
    reason: str
    starts_at: float | None = None


Decision = Start | Preempt | Wait
