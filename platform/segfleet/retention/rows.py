"""SQL of retention, inside one transaction of the queue's database."""

from __future__ import annotations

import json
import re
from typing import Any

from sqlalchemy import Connection, Row, Text, cast, delete, exists, insert, select

from segfleet.queue.model import JOB_ID, Document
from segfleet.queue.states import JobState
from segfleet.queue.tables import attempts, events, jobs, policies

ENDED = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
DELETED = "checkpoint_deleted"
SCOPE, _NAME = "retention", "cluster"


class RetentionRows:
    """Reads and writes of what retention goes by.

    Args:
        connection: With the transaction begun.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def rules(self) -> Document:
        """The operator's rules; empty: none are set."""
        p = policies.c
        return self._connection.scalar(select(p.rules).where((p.scope == SCOPE) & (p.name == _NAME))) or {}

    def set_rules(self, rules: Document) -> None:
        """Replace the rules; empty ones remove them."""
        p = policies.c
        self._connection.execute(delete(policies).where((p.scope == SCOPE) & (p.name == _NAME)))
        if rules:
            self._connection.execute(insert(policies).values(scope=SCOPE, name=_NAME, rules=rules))

    def ended(self, before: float) -> list[Row[Any]]:
        """Id and end of the jobs that ended before then and have nothing on the cluster, the oldest first."""
        j, a = jobs.c, attempts.c
        is_open = exists().where((a.job_id == j.id) & a.closed.is_(False))
        done = j.state.in_(ENDED) & (j.finished_at <= before) & ~is_open
        return list(self._connection.execute(select(j.id, j.finished_at).where(done).order_by(j.finished_at, j.seq)))

    def needs(self) -> dict[str, str]:
        """A job that has not ended and names it in its spec, as one to follow or otherwise, by job."""
        j = jobs.c
        found = {}
        for row in self._connection.execute(select(j.id, j.spec).where(j.state.not_in(ENDED))):
            for named in re.findall(JOB_ID, json.dumps(row.spec)):
                found[named] = row.id
        return found

    def needed_by(self, job_id: str) -> str:
        """As `needs`, for one job; empty: nobody."""
        j = jobs.c
        names = j.state.not_in(ENDED) & cast(j.spec, Text).contains(job_id)
        return self._connection.scalar(select(j.id).where(names).limit(1)) or ""

    def has_lost_latest(self, job_id: str) -> bool:
        """Whether the job, or a trial of it, lost the checkpoint to go on from since it last began anew."""
        c = events.c
        told = (c.job_id == job_id) & c.kind.in_((DELETED, "retry_requested"))
        is_lost = False
        for row in self._connection.execute(select(c.kind, c.detail).where(told).order_by(c.seq)):
            if row.kind == DELETED:
                is_lost = is_lost or row.detail["is_latest"]
            elif row.detail["from_start"]:
                is_lost = False
        return is_lost
