"""SQL of the web page's lists, inside one transaction of the queue's database."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Row, select

from segfleet.queue.model import Job
from segfleet.queue.rows import job_of
from segfleet.queue.states import TERMINAL
from segfleet.queue.tables import attempts, jobs

_BRIEF = ("seq", "id", "name", "kind", "owner", "project", "state", "priority", "started_at", "cpus", "gpus", "workers")


class PageRows:
    """Reads of many jobs at once.

    Args:
        connection: With the transaction begun.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def active(self) -> list[Row[Any]]:
        """Every job that has not ended, without its documents."""
        columns = [jobs.c[name] for name in _BRIEF]
        return list(
            self._connection.execute(select(*columns).where(jobs.c.state.not_in(TERMINAL)).order_by(jobs.c.seq))
        )

    def jobs(self, job_ids: Collection[str]) -> dict[str, Job]:
        """Whole jobs by id."""
        found = self._connection.execute(select(jobs).where(jobs.c.id.in_(job_ids)))
        return {row.id: job_of(row) for row in found}

    def held_workers(self) -> dict[str, int]:
        """With how many workers each job runs, of those whose attempt Ray may not be done with."""
        query = select(attempts.c.job_id, attempts.c.workers).where(attempts.c.closed.is_(False))
        return {row.job_id: row.workers for row in self._connection.execute(query)}
