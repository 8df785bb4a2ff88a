"""From the queue's rows to what the scheduler looks at, and from jobs that others wait for to a verdict."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from segfleet.queue.model import Attempt, Dependency, Job
from segfleet.queue.rows import gang_of_row
from segfleet.queue.scheduling.shares import Usage, dominant_share
from segfleet.queue.scheduling.values import Candidate, Gang, Holding, Node
from segfleet.queue.states import AttemptState, JobState, is_terminal

# Only trainings, and searches made of them, go on from a checkpoint; stopping any other would throw its work away.
_RESUMABLE = frozenset({"train", "search"})


@dataclass(frozen=True, slots=True)
class Met:
    """The job need not wait for that one any longer."""

    dependency: Dependency


@dataclass(frozen=True, slots=True)
class Broken:
    """The job will never start: what it waited for has ended otherwise."""

    dependency: Dependency
    message: str


def judge(dependency: Dependency) -> Met | Broken | None:
    """Whether a dependency is met, broken, or still open (None)."""
    state, condition = dependency.parent_state, dependency.condition
    if not is_terminal(state):
        return None
    if condition == "any" or (state == JobState.SUCCEEDED) == (condition == "ok"):
        return Met(dependency)
    wanted = "succeed" if condition == "ok" else "fail"
    return Broken(dependency, f"skipped: {dependency.parent_id} was to {wanted}, it is {state}")


def candidates(
    rows: Iterable[Any],
    used_s: Mapping[str, float],
    blocking: Mapping[str, str],
    open_dependencies: Iterable[Dependency],
    lanes: Mapping[str, str],
) -> list[Candidate]:
    """Queued jobs as the scheduler sees them.

    Args:
        rows: From the store.
        used_s: Seconds that each job's attempts have used of its time limit; missing: none.
        blocking: Ended attempts, by job, whose process may still be there.
        open_dependencies: What jobs still wait for.
        lanes: By lane, the job that is in it now.
    """
    rows = list(rows)
    after: dict[str, list[str]] = {}
    for dependency in open_dependencies:
        after.setdefault(dependency.job_id, []).append(f"{dependency.parent_id} ({dependency.parent_state})")
    found = []
    first = _first_in_lanes(rows, after, lanes)
    for row in rows:
        hindrance = f"after {', '.join(after[row.id])}" if row.id in after else ""
        if not hindrance and row.id in blocking:
            hindrance = f"waits until {blocking[row.id]} is gone from the cluster"
        if not hindrance and row.lane is not None and first.get(row.lane, row.id) != row.id:
            hindrance = f"after {first[row.lane]}, which writes to the same place"
        limit = row.time_limit_s
        found.append(
            Candidate(
                job_id=row.id,
                seq=row.seq,
                gang=gang_of_row(row),
                priority=row.priority,
                project=row.project,
                user=row.owner,
                not_before=row.not_before,
                hindrance=hindrance,
                time_left_s=None if limit is None else max(limit - used_s.get(row.id, 0.0), 0.0),
                overtaken=row.overtaken,
            )
        )
    return found


def _first_in_lanes(rows: Iterable[Any], after: Collection[str], lanes: Mapping[str, str]) -> dict[str, str]:
    """By lane, the job that is in it, or else the one whose turn it is."""
    waiting = [row for row in rows if row.lane is not None and row.id not in after]
    waiting.sort(key=lambda row: (-row.priority, row.seq), reverse=True)
    return {row.lane: row.id for row in waiting} | dict(lanes)


def holdings(
    jobs: Mapping[str, Job], attempts: Iterable[Attempt], used_s: Mapping[str, float], grace_s: float, now: float
) -> list[Holding]:
    """Attempts that hold resources: the living ones, and ended ones that the cluster may not be done with.

    Args:
        jobs: Their jobs, by id.
        attempts: Open attempts.
        used_s: As for `candidates`.
        grace_s: Time that an attempt has to make room.
        now: Seconds since the epoch.
    """
    found = []
    for attempt in attempts:
        job = jobs.get(attempt.job_id)
        if job is None:
            continue
        ends = [] if job.time_limit_s is None else [now + max(job.time_limit_s - used_s.get(job.id, 0.0), 0.0)]
        if attempt.stop_asked_at is not None:
            ends.append(attempt.stop_asked_at + grace_s)
        found.append(
            Holding(
                job_id=job.id,
                seq=job.seq,
                gang=job.gang,
                workers=attempt.workers,
                since=attempt.claimed_at if attempt.claimed_at is not None else attempt.created_at,
                priority=job.priority,
                project=job.project,
                user=job.owner,
                ends_by=min(ends, default=None),
                is_stopping=not attempt.is_alive or job.cancel_requested or job.stop_for is not None,
                may_be_preempted=job.kind in _RESUMABLE and attempt.state == AttemptState.RUNNING,
            )
        )
    return found


def usages(rows: Iterable[Any], nodes: Iterable[Node]) -> list[Usage]:
    """Use of ended attempts, from the store's rows."""
    cluster = tuple(nodes)
    return [
        Usage(
            row.project,
            dominant_share(Gang(row.workers, row.cpus, row.gpus), row.workers, cluster),
            row.created_at,
            row.finished_at,
        )
        for row in rows
    ]


def live_usages(held: Iterable[Holding], nodes: Iterable[Node]) -> list[Usage]:
    """Use of what runs."""
    cluster = tuple(nodes)
    return [Usage(h.project, dominant_share(h.gang, h.workers, cluster), h.since, None) for h in held]
