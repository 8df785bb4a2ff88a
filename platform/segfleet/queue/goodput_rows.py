"""SQL of the split of jobs' time, inside one transaction of the queue's database."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, delete, func, insert, select

from segfleet.queue.goodput import FAULT_KINDS, GAP_KINDS, PARTS
from segfleet.queue.model import Event
from segfleet.queue.rows import event_of
from segfleet.queue.tables import events, goodput


class GoodputRows:
    """Reads what a split is made from, and keeps the splits of jobs that no attempt is at.

    Args:
        connection: With the transaction begun.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def history_of(self, job_id: str) -> list[Event]:
        """The lines of a job's history that a split needs, oldest first."""
        c = events.c
        query = select(events).where((c.job_id == job_id) & c.kind.in_(GAP_KINDS)).order_by(c.seq)
        return [event_of(row) for row in self._connection.execute(query)]

    def faults_of(self, job_id: str, limit: int) -> list[Event]:
        """The latest faults of a job's workers, oldest first."""
        c = events.c
        query = select(events).where((c.job_id == job_id) & c.kind.in_(FAULT_KINDS)).order_by(c.seq.desc())
        return [event_of(row) for row in self._connection.execute(query.limit(limit))][::-1]

    def count_faults(self, job_id: str, attempt: int) -> int:
        """How many faults of an attempt's workers the history holds."""
        c = events.c
        same = (c.job_id == job_id) & (c.attempt == attempt) & c.kind.in_(FAULT_KINDS)
        return int(self._connection.scalar(select(func.count()).where(same)) or 0)

    def keep(self, job_id: str, seconds: Mapping[str, float]) -> None:
        """Put a job's split in place of an earlier one."""
        self._connection.execute(delete(goodput).where(goodput.c.job_id == job_id))
        self._connection.execute(insert(goodput).values(job_id=job_id, **seconds))

    def sums(self) -> dict[str, float]:
        """Seconds by part, over all jobs."""
        row = self._connection.execute(select(*(func.sum(goodput.c[part]) for part in PARTS))).one()
        return {part: float(value or 0.0) for part, value in zip(PARTS, row, strict=True)}
