"""SQL of the web page's lists, inside one transaction of the queue's database."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Row, select

from segfleet.queue.model import Job
from segfleet.queue.rows import job_of
from segfleet.queue.states import TERMINAL, JobState
from segfleet.queue.tables import attempts, jobs

_BRIEF = ("seq", "id", "name", "kind", "owner", "project", "state", "priority", "started_at", "cpus", "gpus", "workers")
_ACTIVE = tuple(state for state in JobState if state not in TERMINAL)
# Databases bound how many values a statement names.
_MOST_NAMED = 1000


class PageRows:
    """Reads of many jobs at once.

    Args:
        connection: With the transaction begun.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def standing(self) -> frozenset[tuple[int, str, int]]:
        """(seq, state, priority) of every job that has not ended: the index of the line holds all of it."""
        c = jobs.c
        query = select(c.seq, c.state, c.priority).where(c.state.in_(_ACTIVE))
        return frozenset((seq, state, priority) for seq, state, priority in self._connection.execute(query))

    def brief(self, seqs: Collection[int]) -> list[Row[Any]]:
        """Those of these jobs that have not ended, without their documents."""
        wanted = jobs.c.seq.in_(seqs) if len(seqs) <= _MOST_NAMED else jobs.c.state.in_(_ACTIVE)
        found = self._connection.execute(select(*(jobs.c[name] for name in _BRIEF)).where(wanted))
        return [row for row in found if row.seq in seqs and row.state not in TERMINAL]

    def jobs(self, job_ids: Collection[str]) -> dict[str, Job]:
        """Whole jobs by id."""
        found = self._connection.execute(select(jobs).where(jobs.c.id.in_(job_ids)))
        return {row.id: job_of(row) for row in found}

    def held_workers(self) -> dict[str, int]:
        """With how many workers each job runs, of those whose attempt Ray may not be done with."""
        query = select(attempts.c.job_id, attempts.c.workers).where(attempts.c.closed.is_(False))
        return {row.job_id: row.workers for row in self._connection.execute(query)}
