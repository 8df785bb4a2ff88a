"""SQL of the history, inside one transaction of the queue's database."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, func, insert, select

from segfleet.queue.model import Event, JobEvent
from segfleet.queue.rows import event_of
from segfleet.queue.tables import events, jobs


class EventRows:
    """Appends to the history and reads it.

    Args:
        connection: With the transaction begun.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, **values: Any) -> None:
        """Append a line."""
        self._connection.execute(insert(events).values(values))

    def of_job(self, job_id: str, after: int = 0, limit: int | None = None) -> list[Event]:
        """The lines of a job behind the line of this `seq`, oldest first: at most so many, or all.

        A job's row is locked while its history is written, so its lines become visible in the order of their `seq`.
        """
        c = events.c
        query = select(events).where((c.job_id == job_id) & (c.seq > after)).order_by(c.seq).limit(limit)
        return [event_of(row) for row in self._connection.execute(query)]

    def checkpoints_of(self, job_id: str) -> list[tuple[int, int]]:
        """(attempt number, step) of every checkpoint in the job's history, oldest first."""
        c = events.c
        query = select(c.attempt, c.detail).where((c.job_id == job_id) & (c.kind == "checkpoint")).order_by(c.seq)
        return [(row.attempt, row.detail["step"]) for row in self._connection.execute(query)]

    def newest(self) -> int:
        """`seq` of the newest line that can be seen; 0: there is none."""
        return int(self._connection.scalar(select(func.max(events.c.seq))) or 0)

    def after(self, seq: int, limit: int) -> list[JobEvent]:
        """Lines of all jobs behind the line of this `seq`, in the order of their `seq`.

        On PostgreSQL a line may become visible after one of a higher `seq`: see `segfleet.server.feed.Horizon`.
        """
        j = jobs.c
        query = (
            select(events, j.name, j.kind.label("job_kind"), j.owner, j.project)
            .join(jobs, j.id == events.c.job_id)
            .where(events.c.seq > seq)
            .order_by(events.c.seq)
            .limit(limit)
        )
        return [
            JobEvent(event_of(row), row.name, row.job_kind, row.owner, row.project)
            for row in self._connection.execute(query)
        ]

    def versions(self, job_ids: Collection[str]) -> dict[str, int]:
        """The current version of each of these jobs."""
        query = select(jobs.c.id, jobs.c.version).where(jobs.c.id.in_(job_ids))
        return {row.id: row.version for row in self._connection.execute(query)}
