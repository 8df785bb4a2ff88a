"""The queue's door to SQL: every statement is here, and nothing here decides anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, func, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from segfleet.errors import QueueUnavailableError, UnknownJobError
from segfleet.queue.database import WRITE, leadership, migrate, open_engine
from segfleet.queue.model import Attempt, Document, Event, Job, Needs
from segfleet.queue.scheduler import Candidate
from segfleet.queue.states import HOLDING, AttemptState, JobState
from segfleet.queue.tables import attempts, events, idempotency, jobs


class LostRaceError(QueueUnavailableError):
    """Somebody else wrote first; nothing of this transaction was stored."""

    def __str__(self) -> str:
        return f"{self.args[0]} was changed at the same moment; try again"


@dataclass(frozen=True, slots=True)
class Credentials:
    """SHA-256 digests, in hex, of what an attempt must show."""

    code: str
    token: str | None
    instance: str | None


class Transaction:
    """Reads and writes inside one database transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def insert_job(self, values: Document) -> Job:
        """Add a job; `seq` is the database's."""
        self._connection.execute(insert(jobs).values(values))
        return self.job(values["id"])

    def job(self, job_id: str) -> Job:
        """Read a job; in a write transaction PostgreSQL keeps its row locked (SQLite has locked the whole file).

        Raises:
            UnknownJobError: no such job.
        """
        query = select(jobs).where(jobs.c.id == job_id)
        if self._connection.get_execution_options().get(WRITE):
            query = query.with_for_update()
        row = self._connection.execute(query).one_or_none()
        if row is None:
            raise UnknownJobError(job_id)
        return _job(row)

    def list_jobs(self, state: JobState | None, project: str | None, limit: int) -> list[Job]:
        """The newest jobs first."""
        query = select(jobs).order_by(jobs.c.seq.desc()).limit(limit)
        if state is not None:
            query = query.where(jobs.c.state == state)
        if project is not None:
            query = query.where(jobs.c.project == project)
        return [_job(row) for row in self._connection.execute(query)]

    def candidates(self) -> list[Candidate]:
        """All queued jobs that are not being cancelled, without the weight of their specs."""
        c = jobs.c
        waiting = (c.state == JobState.QUEUED) & c.cancel_requested.is_(False)
        query = select(c.id, c.seq, c.priority, c.cpus, c.gpus, c.not_before).where(waiting)
        blocking = {attempt.job_id: attempt.id for attempt in self.open_attempts() if not attempt.is_alive}
        return [
            Candidate(
                row.id, row.seq, row.priority, Needs(row.cpus, row.gpus), row.not_before, blocking.get(row.id, "")
            )
            for row in self._connection.execute(query)
        ]

    def count_jobs(self) -> dict[JobState, int]:
        """Number of jobs in each state that has any."""
        query = select(jobs.c.state, func.count()).group_by(jobs.c.state)
        return {JobState(state): count for state, count in self._connection.execute(query)}

    def change_job(self, job: Job, changes: Document) -> Job:
        """Write changed fields, if the job is still as it was read.

        Raises:
            LostRaceError: somebody else wrote first.
        """
        same = (jobs.c.id == job.id) & (jobs.c.state == job.state) & (jobs.c.version == job.version)
        result = self._connection.execute(update(jobs).where(same).values(version=job.version + 1, **changes))
        if result.rowcount != 1:
            raise LostRaceError(job.id)
        return self.job(job.id)

    def insert_attempt(self, values: Document) -> Attempt:
        """Add an attempt."""
        self._connection.execute(insert(attempts).values(values))
        attempt = self.attempt(values["id"])
        assert attempt is not None
        return attempt

    def attempt(self, attempt_id: str) -> Attempt | None:
        """Read an attempt."""
        row = self._connection.execute(select(attempts).where(attempts.c.id == attempt_id)).one_or_none()
        return None if row is None else _attempt(row)

    def credentials(self, attempt_id: str) -> Credentials:
        """Digests of an existing attempt's secrets."""
        c = attempts.c
        row = self._connection.execute(
            select(c.code_hash, c.token_hash, c.instance_hash).where(c.id == attempt_id)
        ).one()
        return Credentials(row.code_hash, row.token_hash, row.instance_hash)

    def change_attempt(self, attempt_id: str, changes: Document) -> None:
        """Write changed fields of an attempt."""
        self._connection.execute(update(attempts).where(attempts.c.id == attempt_id).values(changes))

    def attempts_of(self, job_id: str) -> list[Attempt]:
        """All attempts of a job, oldest first."""
        return self._attempts(select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.number))

    def open_attempts(self) -> list[Attempt]:
        """Attempts that are alive, or that Ray may not be done with."""
        return self._attempts(select(attempts).where(attempts.c.closed.is_(False)).order_by(attempts.c.created_at))

    def holding_jobs(self) -> list[Job]:
        """Jobs with an attempt that is alive, and jobs whose ended attempt Ray may not be done with."""
        unclosed = select(attempts.c.job_id).where(attempts.c.closed.is_(False))
        query = select(jobs).where(jobs.c.state.in_(HOLDING) | jobs.c.id.in_(unclosed))
        return [_job(row) for row in self._connection.execute(query)]

    def budget_attempts(self, job: Job) -> list[Attempt]:
        """The attempts since the job's budget began, oldest first."""
        return [attempt for attempt in self.attempts_of(job.id) if attempt.number > job.budget_from]

    def checkpoints_of(self, job_id: str) -> list[tuple[int, int]]:
        """(attempt number, step) of every checkpoint in the job's history, oldest first."""
        c = events.c
        query = select(c.attempt, c.detail).where((c.job_id == job_id) & (c.kind == "checkpoint")).order_by(c.seq)
        return [(row.attempt, row.detail["step"]) for row in self._connection.execute(query)]

    def add_event(self, **values: Any) -> None:
        """Append to the history."""
        self._connection.execute(insert(events).values(values))

    def events_of(self, job_id: str) -> list[Event]:
        """The history of a job, oldest first."""
        query = select(events).where(events.c.job_id == job_id).order_by(events.c.seq)
        return [_event(row) for row in self._connection.execute(query)]

    def find_key(self, owner: str, key: str) -> tuple[str, str] | None:
        """(job id, spec hash) that an idempotency key stands for."""
        c = idempotency.c
        row = self._connection.execute(select(c.job_id, c.spec_hash).where((c.owner == owner) & (c.key == key))).first()
        return None if row is None else (row.job_id, row.spec_hash)

    def insert_key(self, owner: str, key: str, job_id: str, spec_hash: str) -> None:
        """Bind an idempotency key to a job.

        Raises:
            LostRaceError: the key was bound in the meantime.
        """
        try:
            self._connection.execute(
                insert(idempotency).values(owner=owner, key=key, job_id=job_id, spec_hash=spec_hash)
            )
        except IntegrityError as error:
            raise LostRaceError(key) from error

    def _attempts(self, query: Select[Any]) -> list[Attempt]:
        return [_attempt(row) for row in self._connection.execute(query)]


class Store:
    """A database of jobs, on SQLite or PostgreSQL.

    Args:
        url: SQLAlchemy URL. The file of an SQLite database is made with mode 0600.

    Raises:
        QueueUnavailableError: the database cannot be opened, or was made by a newer segfleet.
    """

    def __init__(self, url: str) -> None:
        self._engine: Engine = open_engine(url)
        migrate(self._engine)

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()

    def leadership(self) -> AbstractContextManager[None]:
        """Be the one service that dispatches from this database.

        Raises:
            QueueUnavailableError: on entering, if another process has that right.
        """
        return leadership(self._engine)

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A transaction that writes nothing and waits for no writer's lock on a job.

        Raises:
            QueueUnavailableError: the database is locked or gone.
        """
        with self._transaction(self._engine) as transaction:
            yield transaction

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """One transaction that holds the right to write from its start, so that what it read stays true.

        Raises:
            QueueUnavailableError: the database is locked, full or gone; nothing was written.
        """
        with self._transaction(self._engine.execution_options(**{WRITE: True})) as transaction:
            yield transaction

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Transaction]:
        try:
            with engine.begin() as connection:
                yield Transaction(connection)
        except DBAPIError as error:
            raise QueueUnavailableError(
                f"the queue's database refuses: {error.orig}; nothing was stored, try again in a moment"
            ) from error


def _job(row: Row[Any]) -> Job:
    fields = dict(row._mapping)
    needs = Needs(fields.pop("cpus"), fields.pop("gpus"))
    return Job(**{**fields, "state": JobState(row.state), "needs": needs})


def _attempt(row: Row[Any]) -> Attempt:
    fields = {name: value for name, value in row._mapping.items() if not name.endswith("_hash")}
    return Attempt(**{**fields, "state": AttemptState(row.state)})


def _event(row: Row[Any]) -> Event:
    states = {
        name: None if row._mapping[name] is None else JobState(row._mapping[name]) for name in ("source", "target")
    }
    return Event(**{**row._mapping, **states})
