"""Let later jobs use what is idle, as far as that cannot delay those that are served first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from segfleet.queue.scheduling.allocation import Allocation
from segfleet.queue.scheduling.pool import Layout, Places, Pool, vacated, workers_on
from segfleet.queue.scheduling.values import Candidate, Gang, Holding, Node

# Kinds of gang that are tried as backfill in one pass; the line's far end can wait for the next.
MAX_BACKFILL_TRIALS = 1000


@dataclass(frozen=True, slots=True)
class Reservation:
    """What is kept for the first jobs that wait.

    Attributes:
        at: When the head fits at the latest, by the time limits of what runs; None: nobody can tell.
        moments: Jobs of which that can be told, and what is free then.
        idle: What those can never use of which it cannot be told.
        spare: What others may hold beyond `at` without anybody kept having to stand elsewhere.
    """

    at: float | None
    moments: tuple[tuple[Candidate, Pool], ...]
    idle: Pool
    spare: Pool

    def allows(self, job: Candidate, now: float) -> bool:
        """Whether a job is gone before the room it takes is needed."""
        return self.at is not None and job.time_left_s is not None and now + job.time_left_s <= self.at

    def beside(self, gang: Gang, places: Places) -> Reservation | None:
        """The reservation with a gang that stays at these places; None if it were in the way."""
        moments = [(job, pool.minus(gang, places)) for job, pool in self.moments]
        return _settled(self.at, moments, self.idle.minus(gang, places))


def reserve(kept: Sequence[Candidate], layout: Layout, now: float) -> Reservation:
    """The earliest time at which the first of some waiting jobs fits for certain, and what all of them leave.

    Attempts that are stopping count as gone: the room that is being made is not for those behind.
    """
    ends = [(end, i) for i, tenant in enumerate(layout.tenants) if (end := _end(tenant.holding, now)) is not None]
    ends.sort(reverse=True)
    time, pool, at, idle = now, layout.pool, None, Pool(layout.nodes)
    left = pool  # without those kept that have been given a moment already
    moments: list[tuple[Candidate, Pool]] = []
    for job in kept:
        while (found := left.place(job.gang, job.gang.workers)) is None and ends:
            time, i = ends.pop()
            pool, left = vacated(pool, [layout.tenants[i]]), vacated(left, [layout.tenants[i]])
        if found is None:
            idle = idle.meet(_never_needed(job.gang, layout))
            continue
        left = left.minus(job.gang, found)
        moments.append((job, pool))
        at = time if job is kept[0] else at
    settled = _settled(at, moments, idle)
    assert settled is not None  # each of them has just been placed
    return settled


def _settled(at: float | None, moments: Sequence[tuple[Candidate, Pool]], idle: Pool) -> Reservation | None:
    spare = idle
    taken: list[tuple[Gang, Places]] = []
    for job, pool in moments:
        for gang, places in taken:
            pool = pool.minus(gang, places)
        found = pool.place(job.gang, job.gang.workers)
        if found is None:
            return None
        taken.append((job.gang, found))
        spare = spare.meet(pool.minus(job.gang, found))
    return Reservation(at, tuple(moments), idle, spare)


def backfill(allocation: Allocation, serve: Callable[[Candidate], bool], now: float) -> Reservation | None:
    """Start what may start behind the head, in order.

    Args:
        allocation: Up to the head; more is given out here.
        serve: Asked to make room for the head, then for each job that does not start, as long as it can.
        now: Seconds since the epoch.

    Returns:
        What is kept for those that room is made for, or for the head alone; None: no job waits for room.
    """
    head, layout, ledger = allocation.head, allocation.layout, allocation.ledger
    if head is None:
        return None
    is_serving, kept = serve(head), [head]
    reservation = reserve(kept, layout, now)
    misfits: dict[tuple[Gang, bool], bool] = {}  # and whether there would be room
    for job in allocation.waiting[1:]:
        if shortage := ledger.shortage(job):
            allocation.reasons[job.job_id] = shortage
            ledger.keep(job, where_short=True)
            continue
        kind = job.gang, reservation.allows(job, now)
        found = None
        if kind not in misfits and len(misfits) < MAX_BACKFILL_TRIALS:
            found = _beside(job, layout.pool, reservation, now)
        if found is not None:
            places, reservation = found
            allocation.start(job, job.gang.workers, places, now)
            continue
        if kind not in misfits:
            misfits[kind] = layout.pool.place(job.gang, job.gang.workers) is not None
        allocation.reasons[job.job_id] = _behind(head, job, misfits[kind])
        is_serving = is_serving and serve(job)
        if is_serving:
            kept.append(job)
            ledger.keep(job)
            reservation = reserve(kept, layout, now)
    return reservation


def grow(allocation: Allocation, reservation: Reservation | None, now: float) -> None:
    """Give elastic jobs that start what is idle even then: more workers for one are never worth another's wait."""
    for job, workers in list(allocation.starts.items()):
        more = min(job.gang.max_workers - workers, allocation.ledger.allowed_workers(job))
        if more <= 0:
            continue
        pool = allocation.layout.pool
        if reservation is not None and not reservation.allows(job, now):
            pool = pool.meet(reservation.spare)
        more = job.gang.usable(workers + min(more, pool.room(job.gang))) - workers
        places = pool.place(job.gang, more)
        if not more or places is None:
            continue
        allocation.start(job, more, places, now)
        if reservation is not None and not reservation.allows(job, now):
            reservation = reservation.beside(job.gang, places)


def _beside(job: Candidate, pool: Pool, kept: Reservation, now: float) -> tuple[Places, Reservation] | None:
    """Where a job may start now, and the reservation that is left then; None: it may not."""
    workers = job.gang.workers
    if kept.allows(job, now):
        places = pool.place(job.gang, workers)
        return None if places is None else (places, kept)
    # First where those that come first would not have to move, then where they could stand elsewhere.
    for free in (kept.spare, kept.idle):
        places = pool.meet(free).place(job.gang, workers)
        if places is not None and (left := kept.beside(job.gang, places)) is not None:
            return places, left
    return None


def _behind(head: Candidate, job: Candidate, fits: bool) -> str:
    """Why a job waits that is not the head: there is no room, or what there is is kept."""
    if not fits:
        return f"behind {head.job_id}"
    return f"reserved for {head.job_id}" + ("" if job.time_left_s is not None else "; a queue.time_limit may let it by")


def _end(holder: Holding, now: float) -> float | None:
    """When what it holds is free at the latest; None: nobody can tell."""
    if holder.is_stopping:
        return now
    return None if holder.ends_by is None else max(holder.ends_by, now)


def _never_needed(gang: Gang, layout: Layout) -> Pool:
    """What is free now on each node beyond what a gang could ever use there, whoever leaves first."""
    nodes = []
    for node, free in zip(layout.nodes, layout.pool.nodes, strict=True):
        workers = min(workers_on(node, gang), gang.workers)
        nodes.append(Node(max(0, free.cpus - workers * gang.cpus), max(0, free.gpus - workers * gang.gpus)))
    return Pool(tuple(nodes))
