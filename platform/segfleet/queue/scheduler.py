"""Which queued job starts next: a pure function of the line, the cluster and the clock.

Order is priority (higher first), then age. Jobs start whole or not at all, and strictly in order: the first job that
does not fit holds back all behind it, so that a stream of small jobs cannot starve a big one. Two kinds of job are
passed over because holding the line for them would help nobody: those in back-off, and those larger than the cluster.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from segfleet.queue.model import Needs
from segfleet.queue.retry import LONGEST_DELAY_S


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the cluster has in all, busy or free."""

    cpus: int
    gpus: int
    nodes: int

    def holds(self, needs: Needs) -> bool:
        """Whether an empty cluster would have room."""
        return needs.cpus <= self.cpus and needs.gpus <= self.gpus


@dataclass(frozen=True, slots=True)
class Candidate:
    """A queued job as the scheduler sees it.

    Attributes:
        blocked_by: An ended attempt of the job whose process may still be there; empty: none.
    """

    job_id: str
    seq: int
    priority: int
    needs: Needs
    not_before: float | None = None
    blocked_by: str = ""


@dataclass(frozen=True, slots=True)
class Start:
    """Start this job now."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Wait:
    """This job waits: its place in the line (from 1) and why."""

    job_id: str
    place: int
    reason: str


def plan(
    jobs: Iterable[Candidate], capacity: Capacity | None, active: Iterable[Needs], now: float, unreachable: str = ""
) -> list[Start | Wait]:
    """Decide for every queued job whether it starts or why it waits.

    Args:
        jobs: All queued jobs, in any order.
        capacity: Totals of the cluster; None: not reachable.
        active: Needs of every attempt that holds resources.
        now: Seconds since the epoch.
        unreachable: What to tell about a cluster that is not reachable.

    Returns:
        One decision for each job, in the order of the line.
    """
    line = sorted(jobs, key=lambda job: (-job.priority, job.seq))
    if capacity is None:
        reason = unreachable or "cluster unreachable"
        return [Wait(job.job_id, place, reason) for place, job in enumerate(line, 1)]
    busy = list(active)
    free = Needs(capacity.cpus - sum(n.cpus for n in busy), capacity.gpus - sum(n.gpus for n in busy))
    decisions: list[Start | Wait] = []
    head = ""
    place = 0
    for job in line:
        reason = _passed_over(job, capacity, now)
        if not reason and head:
            reason = f"behind {head}"
        elif not reason and not _fits(job.needs, free):
            head = job.job_id
            reason = _shortage(job.needs, free, capacity)
        if reason:
            place += 1
            decisions.append(Wait(job.job_id, place, reason))
        else:
            free = Needs(free.cpus - job.needs.cpus, free.gpus - job.needs.gpus)
            decisions.append(Start(job.job_id))
    return decisions


def never_fits(needs: Needs, capacity: Capacity) -> str:
    """Why the cluster as it is can never run this, or an empty text."""
    if capacity.holds(needs):
        return ""
    return f"needs {_amount(needs)}, the cluster has {_amount(Needs(capacity.cpus, capacity.gpus))} in all"


def _passed_over(job: Candidate, capacity: Capacity, now: float) -> str:
    # A time further away than any back-off was written by a clock that has been set back since.
    if job.not_before is not None and now < job.not_before <= now + LONGEST_DELAY_S:
        return f"retry in {math.ceil(job.not_before - now)} s"
    if job.blocked_by:
        return f"waits until {job.blocked_by} is gone from the cluster"
    return never_fits(job.needs, capacity)


def _fits(needs: Needs, free: Needs) -> bool:
    return needs.cpus <= free.cpus and needs.gpus <= free.gpus


def _shortage(needs: Needs, free: Needs, capacity: Capacity) -> str:
    short = []
    if needs.cpus > free.cpus:
        short.append(f"{_count(needs.cpus, 'CPU')}, {max(free.cpus, 0)} of {capacity.cpus} free")
    if needs.gpus > free.gpus:
        short.append(f"{_count(needs.gpus, 'GPU')}, {max(free.gpus, 0)} of {capacity.gpus} free")
    return "needs " + " and ".join(short)


def _amount(needs: Needs) -> str:
    return f"{_count(needs.cpus, 'CPU')} and {_count(needs.gpus, 'GPU')}" if needs.gpus else _count(needs.cpus, "CPU")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
