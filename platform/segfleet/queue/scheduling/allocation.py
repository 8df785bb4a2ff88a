"""Give out what is free: in order, and whole gangs, up to the first job that does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from segfleet.queue.scheduling.admission import Ledger, count
from segfleet.queue.scheduling.pool import Layout, Places, Pool
from segfleet.queue.scheduling.values import Candidate, Gang, Holding, Node


@dataclass(slots=True)
class Allocation:
    """What a pass has given out so far.

    Attributes:
        layout: Who stands where, the starts of this pass included.
        ledger: What the quotas leave.
        starts: Jobs that start now, with their workers, in the order of decision.
        waiting: The first job that does not fit and all behind it, but for those beyond their quota.
        reasons: Why each other job waits, by id.
    """

    layout: Layout
    ledger: Ledger
    starts: dict[Candidate, int] = field(default_factory=dict)
    waiting: list[Candidate] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> Candidate | None:
        """The first job that does not fit; everything behind it is backfill."""
        return self.waiting[0] if self.waiting else None

    def start(self, job: Candidate, workers: int, places: Places, now: float) -> None:
        """Give a job room, or more room to one that starts already."""
        if job in self.starts:
            self.ledger.add(job, workers, jobs=0)
            self.layout.extend(job.job_id, workers, places)
        else:
            self.ledger.add(job, workers)
            self.layout.add(as_holding(job, workers, now), places)
        self.starts[job] = self.starts.get(job, 0) + workers


def allocate(line: Sequence[Candidate], layout: Layout, ledger: Ledger, now: float) -> Allocation:
    """Walk the line until a job does not fit: it is the head, and gets a reservation. What follows is backfill.

    A job beyond its quota is passed over, as holding the line for it would help nobody; but what is left of that quota
    is kept for it. Every job starts with its fewest workers, see `backfill.grow`.
    """
    result = Allocation(layout, ledger)
    for i, job in enumerate(line):
        if shortage := ledger.shortage(job):
            result.reasons[job.job_id] = shortage
            ledger.keep(job, where_short=True)
            continue
        places = layout.pool.place(job.gang, job.gang.workers)
        if places is None:
            result.waiting = list(line[i:])
            result.reasons[job.job_id] = _short(job.gang, layout.pool, layout.nodes)
            ledger.keep(job)
            break
        result.start(job, job.gang.workers, places, now)
    return result


def as_holding(job: Candidate, workers: int, now: float) -> Holding:
    """What a job holds from its start at `now`."""
    return Holding(
        job_id=job.job_id,
        seq=job.seq,
        gang=job.gang,
        workers=workers,
        since=now,
        priority=job.priority,
        project=job.project,
        user=job.user,
        ends_by=None if job.time_left_s is None else now + job.time_left_s,
    )


def _short(gang: Gang, pool: Pool, nodes: Sequence[Node]) -> str:
    """What a gang lacks now, with the numbers."""
    short = []
    for what, wanted, free, total in (
        ("CPU", gang.workers * gang.cpus, pool.cpus, sum(node.cpus for node in nodes)),
        ("GPU", gang.workers * gang.gpus, pool.gpus, sum(node.gpus for node in nodes)),
    ):
        if wanted > free:
            short.append(f"{count(wanted, what)}, {max(free, 0)} of {total} free")
    if short:
        return "needs " + " and ".join(short)
    return f"needs {count(gang.workers, 'worker')}, the nodes have room for {pool.room(gang)}"
