"""SQL of the figures that are counted over all jobs, inside one transaction of the queue's database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, case, func, select

from segfleet.queue.states import AttemptState, JobState
from segfleet.queue.tables import attempts, deliveries, jobs

_ALIVE = (AttemptState.STARTING, AttemptState.RUNNING)


class MetricRows:
    """Reads sums and counts.

    Args:
        connection: With the transaction begun.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def jobs_by_project(self) -> list[Row[Any]]:
        """Project, state and number of jobs."""
        c = jobs.c
        return self._rows(select(c.project, c.state, func.count().label("number")).group_by(c.project, c.state))

    def waits(self, bounds: Sequence[float]) -> tuple[list[int], float]:
        """How long jobs waited for their first start.

        Args:
            bounds: Seconds, rising.

        Returns:
            Number of jobs that waited at most so long, for each bound and at last all of them; and all their seconds.
        """
        return self._histogram(jobs.c.started_at - jobs.c.created_at, jobs.c.started_at.is_not(None), bounds)

    def runs(self, bounds: Sequence[float]) -> tuple[list[int], float]:
        """How long succeeded jobs took from their first start to their end; see `waits`."""
        return self._histogram(jobs.c.finished_at - jobs.c.started_at, jobs.c.state == JobState.SUCCEEDED, bounds)

    def ended_attempts(self) -> list[Row[Any]]:
        """State, class of failure (None: no failure) and number of ended attempts."""
        a = attempts.c
        failure = a.failure["class"].as_string().label("failure")
        ended = select(a.state, failure, func.count().label("number")).where(a.state.not_in(_ALIVE))
        return self._rows(ended.group_by(a.state, failure))

    def use(self) -> list[Row[Any]]:
        """Project, workers, CPUs and GPUs of what is on the cluster, or may be."""
        a, j = attempts.c, jobs.c
        sums = [func.sum(a.workers * size).label(name) for name, size in (("cpus", j.cpus), ("gpus", j.gpus))]
        held = select(j.project, func.sum(a.workers).label("workers"), *sums).join(jobs, j.id == a.job_id)
        return self._rows(held.where(a.closed.is_(False)).group_by(j.project))

    def oldest_heartbeat(self) -> float | None:
        """Seconds since the epoch; None: no attempt runs."""
        running = attempts.c.state == AttemptState.RUNNING
        found: float | None = self._connection.scalar(select(func.min(attempts.c.heartbeat_at)).where(running))
        return found

    def deliveries(self) -> list[Row[Any]]:
        """State and number of the events for webhooks."""
        c = deliveries.c
        return self._rows(select(c.state, func.count().label("number")).group_by(c.state))

    def _histogram(
        self, seconds: ColumnElement[Any], condition: ColumnElement[bool], bounds: Sequence[float]
    ) -> tuple[list[int], float]:
        counts = [func.sum(case((seconds <= bound, 1), else_=0)) for bound in bounds]
        row = self._connection.execute(select(*counts, func.count(), func.sum(seconds)).where(condition)).one()
        return [int(count or 0) for count in row[:-1]], float(row[-1] or 0.0)

    def _rows(self, query: Any) -> list[Row[Any]]:
        return list(self._connection.execute(query))
