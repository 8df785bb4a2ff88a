"""The queue's door to SQL: every statement is here, and nothing here decides anything."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, delete, func, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from segfleet.access import audit
from segfleet.access.rows import AccessRows
from segfleet.access.session_rows import SessionRows
from segfleet.errors import QueueUnavailableError, UnknownJobError
from segfleet.promotion.rows import PromotionRows
from segfleet.queue.database import WRITE, exclusive, migrate, open_engine
from segfleet.queue.event_rows import EventRows
from segfleet.queue.goodput_rows import GoodputRows
from segfleet.queue.leader_rows import LeaderRows
from segfleet.queue.line_rows import LineRows
from segfleet.queue.metric_rows import MetricRows
from segfleet.queue.model import Attempt, Dependency, Document, Job, Wanted
from segfleet.queue.node_rows import NodeRows
from segfleet.queue.rows import attempt_of, job_of
from segfleet.queue.states import HOLDING, JobState
from segfleet.queue.tables import attempts, dependencies, idempotency, jobs, policies
from segfleet.queue.trial_rows import TrialRows
from segfleet.retention.rows import SCOPE as RETENTION
from segfleet.retention.rows import RetentionRows
from segfleet.telemetry import DATABASE_ERRORS
from segfleet.web.rows import PageRows
from segfleet.webhooks.rows import WebhookRows


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


# Every turn of the scheduler asks with them, and SQLAlchemy takes milliseconds to make one.
_PARENT, _CHILD = jobs.alias("parent"), jobs.alias("child")


class Transaction:
    """Reads and writes inside one database transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.access = AccessRows(connection)
        self.sessions = SessionRows(connection)
        self.pages = PageRows(connection)
        self.goodput = GoodputRows(connection)
        self.promotions = PromotionRows(connection)
        self.line = LineRows(connection)
        self.events = EventRows(connection)
        self.trials = TrialRows(connection)
        self.leaders = LeaderRows(connection)
        self.nodes = NodeRows(connection)
        self.metrics = MetricRows(connection)
        self.retention = RetentionRows(connection)
        self.webhooks = WebhookRows(connection)

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
        return job_of(row)

    def list_jobs(self, wanted: Wanted, limit: int) -> list[Job]:
        """The newest jobs first."""
        c = jobs.c
        query = select(jobs).order_by(c.seq.desc()).limit(limit)
        if wanted.states:
            query = query.where(c.state.in_(wanted.states))
        for column, value in ((c.project, wanted.project), (c.owner, wanted.owner), (c.kind, wanted.kind)):
            if value is not None:
                query = query.where(column == value)
        if wanted.name is not None:
            query = query.where(c.name.contains(wanted.name, autoescape=True))
        if wanted.before is not None:
            query = query.where(c.seq < wanted.before)
        return [job_of(row) for row in self._connection.execute(query)]

    def known_jobs(self, job_ids: Collection[str]) -> set[str]:
        """Those of the ids that are jobs."""
        return set(self._connection.scalars(select(jobs.c.id).where(jobs.c.id.in_(job_ids))))

    def count_jobs(self) -> dict[JobState, int]:
        """Number of jobs in each state that has any."""
        query = select(jobs.c.state, func.count()).group_by(jobs.c.state)
        return {JobState(state): count for state, count in self._connection.execute(query)}

    def count_waiting(self, *, project: str | None = None, owner: str | None = None) -> int:
        """Number of jobs of a project or a user that wait to run."""
        query = select(func.count()).where(jobs.c.state.in_((JobState.QUEUED, JobState.PAUSED)))
        for column, value in ((jobs.c.project, project), (jobs.c.owner, owner)):
            if value is not None:
                query = query.where(column == value)
        return int(self._connection.scalar(query) or 0)

    def count_overtaking(self, job: Job, now: float) -> None:
        """Note that this job goes before the first of each project's that could have run now.

        Only the first: behind it, a job waits for its own project's turn, and counting that would turn a long queue
        into one of age alone.
        """
        c = jobs.c
        free = (c.state == JobState.QUEUED) & c.cancel_requested.is_(False) & (c.priority == job.priority)
        ready = c.not_before.is_(None) | (c.not_before <= now)
        held = select(dependencies.c.job_id).where(dependencies.c.is_met.is_(False))
        firsts = select(func.min(c.seq)).where(free & ready & c.id.not_in(held)).group_by(c.project)
        overtaken = list(self._connection.scalars(firsts))
        self._connection.execute(
            update(jobs).where(c.seq.in_(overtaken) & (c.seq < job.seq)).values(overtaken=c.overtaken + 1)
        )

    def insert_dependency(self, job_id: str, parent_id: str, condition: str) -> None:
        """Let a job wait for another."""
        self._connection.execute(
            insert(dependencies).values(job_id=job_id, parent_id=parent_id, condition=condition, is_met=False)
        )

    def open_dependencies(self) -> list[Dependency]:
        """What queued jobs wait for."""
        d = dependencies.c
        query = (
            select(d.job_id, d.parent_id, d.condition, _PARENT.c.state)
            .join(_PARENT, _PARENT.c.id == d.parent_id)
            .join(_CHILD, _CHILD.c.id == d.job_id)
            .where(d.is_met.is_(False) & _CHILD.c.state.in_((JobState.QUEUED, JobState.PAUSED)))
            .order_by(d.job_id, d.parent_id)
        )
        return [
            Dependency(row.job_id, row.parent_id, row.condition, JobState(row.state))
            for row in self._connection.execute(query)
        ]

    def meet_dependency(self, job_id: str, parent_id: str) -> None:
        """The job need not wait for that one any longer."""
        d = dependencies.c
        same = (d.job_id == job_id) & (d.parent_id == parent_id)
        self._connection.execute(update(dependencies).where(same).values(is_met=True))

    def policies(self) -> list[tuple[str, str, Document]]:
        """(scope, name, rules) of all that the operator has set."""
        scheduling = policies.c.scope != RETENTION
        query = select(policies).where(scheduling).order_by(policies.c.scope, policies.c.name)
        return [(row.scope, row.name, row.rules) for row in self._connection.execute(query)]

    def set_policy(self, scope: str, name: str, rules: Document) -> None:
        """Replace the rules of a project, a user or the cluster; empty rules remove them."""
        p = policies.c
        self._connection.execute(delete(policies).where((p.scope == scope) & (p.name == name)))
        if rules:
            self._connection.execute(insert(policies).values(scope=scope, name=name, rules=rules))

    def ended_use(self, since: float) -> list[Row[Any]]:
        """Project, resources and times of the attempts that have ended since then."""
        j, a = jobs.c, attempts.c
        query = (
            select(j.project, a.workers, j.cpus, j.gpus, a.created_at, a.finished_at)
            .join(attempts, a.job_id == j.id)
            .where(a.finished_at > since)
        )
        return list(self._connection.execute(query))

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
        return None if row is None else attempt_of(row)

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
        return [job_of(row) for row in self._connection.execute(query)]

    def budget_attempts(self, job: Job) -> list[Attempt]:
        """The attempts since the job's budget began, oldest first."""
        return [attempt for attempt in self.attempts_of(job.id) if attempt.number > job.budget_from]

    def used_s(self, job_id: str, budget_from: int, now: float) -> float:
        """Seconds that the attempts after number `budget_from` have run until now."""
        return sum(attempt.used_at(now) for attempt in self.attempts_of(job_id) if attempt.number > budget_from)

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
        return [attempt_of(row) for row in self._connection.execute(query)]


class Store:
    """A database of jobs, on SQLite or PostgreSQL.

    Args:
        url: SQLAlchemy URL. The file of an SQLite database is made with mode 0600.

    Raises:
        QueueUnavailableError: the database cannot be opened, or was made by a newer segfleet.
    """

    def __init__(self, url: str) -> None:
        self._engine: Engine = open_engine(url)
        try:
            migrate(self._engine)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()

    @property
    def is_shared(self) -> bool:
        """Whether other servers may use the database at the same time."""
        return self.kind != "sqlite"

    @property
    def kind(self) -> str:
        """`sqlite` | `postgresql`."""
        return self._engine.dialect.name

    def exclusive(self) -> AbstractContextManager[None]:
        """Be the only server on an embedded database; see `database.exclusive`."""
        return exclusive(self._engine)

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

        It stores the audit entry of the request that it serves, if there is one.

        Raises:
            QueueUnavailableError: the database is locked, full or gone; nothing was written.
        """
        entry = audit.pending()
        with self._transaction(self._engine.execution_options(**{WRITE: True})) as transaction:
            yield transaction
            if entry is not None:
                transaction.access.add_audit(entry.row(audit.DONE))
        if entry is not None:
            entry.is_stored = True

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Transaction]:
        try:
            with engine.begin() as connection:
                yield Transaction(connection)
        except (DBAPIError, PoolTimeoutError) as error:
            DATABASE_ERRORS.inc()
            reason = error.orig if isinstance(error, DBAPIError) else "all its connections are in use"
            message = f"the queue's database refuses: {reason}; nothing was stored, try again in a moment"
            raise QueueUnavailableError(message) from error
