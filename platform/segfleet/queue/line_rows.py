"""SQL of the line of jobs, inside one transaction of the queue's database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, select

from segfleet.queue.model import Job
from segfleet.queue.rows import job_of
from segfleet.queue.states import JobState
from segfleet.queue.tables import jobs


class LineRows:
    """Reads who waits, since when it is late, and who was in a lane before.

    Args:
        connection: With the transaction begun.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def queued(self) -> list[Row[Any]]:
        """All queued jobs that are not being cancelled: what the scheduler asks of them, without their specs."""
        c = jobs.c
        columns = (c.id, c.seq, c.priority, c.project, c.owner, c.workers, c.max_workers, c.cpus, c.gpus, c.not_before)
        waiting = (c.state == JobState.QUEUED) & c.cancel_requested.is_(False)
        more = (c.sizes, c.overtaken, c.budget_from, c.attempt, c.time_limit_s, c.lane)
        query = select(*columns, *more).where(waiting)
        return list(self._connection.execute(query))

    def late(self, now: float) -> list[str]:
        """Queued jobs that were to start by now, and have not."""
        c = jobs.c
        late = (c.start_by <= now) & (c.state == JobState.QUEUED) & c.cancel_requested.is_(False)
        return list(self._connection.scalars(select(c.id).where(late).order_by(c.seq)))

    def succeeded_in(self, lane: str) -> list[Job]:
        """Jobs of a lane that have succeeded, the latest first."""
        c = jobs.c
        query = select(jobs).where((c.lane == lane) & (c.state == JobState.SUCCEEDED))
        return [job_of(row) for row in self._connection.execute(query.order_by(c.finished_at.desc(), c.seq.desc()))]
