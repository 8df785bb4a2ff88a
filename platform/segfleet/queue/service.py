"""The queue's verbs: what users and operators ask of jobs."""

from __future__ import annotations

import json

from segfleet.access import audit
from segfleet.errors import (
    IdempotencyConflictError,
    Problem,
    QuotaExceededError,
    SpecError,
)
from segfleet.queue import fencing, intake
from segfleet.queue.commands import JobCommands
from segfleet.queue.goodput import Goodput, split
from segfleet.queue.model import EVERY_JOB, Attempt, Document, Event, Job, Wanted, gang_of
from segfleet.queue.policy import beyond_limits, check_rules, difference, force, is_forced, policy_of
from segfleet.queue.scene import Outlook, outlook
from segfleet.queue.scheduling.admission import never_fits
from segfleet.queue.scheduling.values import Gang, Quota
from segfleet.queue.states import JobState
from segfleet.queue.store import LostRaceError, Transaction


class Queue(JobCommands):
    """All operations on jobs; safe to share between threads.

    Args:
        store: The database.
        clock: Seconds since the epoch.
        storage: Folder under which each job gets one of its own.
    """

    # What users ask

    def force(self, document: Document) -> tuple[Document, tuple[str, ...]]:
        """A user's document with the values that the operator forces, and the paths at which it was changed."""
        with self.store.read() as tx:
            return force(tx.policies(), document)

    def is_forced(self, project: str, path: str) -> bool:
        """Whether the operator fixes a field of the specs of a project's jobs, whatever the users write there."""
        with self.store.read() as tx:
            return is_forced(tx.policies(), project, path)

    def check(self, spec: Document, owner: str) -> None:
        """Refuse what `submit` would refuse now, and store nothing.

        Raises:
            SpecError: the job needs more than the whole cluster has or than the operator allows, or follows a job that
                is not there.
            QuotaExceededError: project or user have as many waiting jobs as they may.
        """
        with self.store.read() as tx:
            self._check(tx, spec, owner)

    def outlook(self, spec: Document, owner: str) -> Outlook | None:
        """Where a job that `check` passes would stand in the line if it were submitted now; None: nobody can tell.

        Raises:
            UnknownJobError: it follows a job that is not there.
        """
        with self.store.read() as tx:
            return outlook(tx, self.board.nodes, spec, owner, self.clock())

    def _check(self, tx: Transaction, spec: Document, owner: str) -> None:
        if problems := beyond_limits(tx.policies(), spec):
            raise SpecError(problems)
        self._check_size(gang_of(spec))
        _check_parents(tx, spec)
        _check_quota(tx, spec["queue"]["project"], owner)

    def _check_size(self, gang: Gang) -> None:
        """Refuse a job that the whole cluster could not hold; passes while the cluster's size is not known."""
        nodes = self.board.nodes
        if nodes is not None and (excess := never_fits(gang, nodes)):
            hint = "lower resources.workers, resources.cpus_per_worker or resources.gpus_per_worker"
            raise SpecError([Problem("resources", excess, hint)])

    def submit(self, spec: Document, *, owner: str, key: str | None = None) -> tuple[Job, bool]:
        """Store a resolved spec as a queued job.

        Args:
            spec: The resolved document.
            owner: Who submits; idempotency keys belong to an owner.
            key: The same key with the same spec gives the same job again.

        Returns:
            The job, and whether it was there already.

        Raises:
            IdempotencyConflictError: the key belongs to a job with another spec.
            SpecError, QuotaExceededError: as for `check`.
        """
        digest = fencing.digest(json.dumps(spec, sort_keys=True))
        try:
            return self._submit(spec, owner, key, digest)
        except LostRaceError:
            # PostgreSQL only: another request bound the key between our look and our write. It is there now.
            return self._submit(spec, owner, key, digest)

    def _submit(self, spec: Document, owner: str, key: str | None, digest: str) -> tuple[Job, bool]:
        with self.store.write() as tx:
            if key is not None and (known := tx.find_key(owner, key)) is not None:
                job_id, known_digest = known
                audit.name_subject(job_id)
                if known_digest != digest:
                    raise IdempotencyConflictError(key, job_id)
                return self._seen(tx.job(job_id)), True
            self._check(tx, spec, owner)
            job = intake.create(tx, spec, owner, self.clock())
            audit.name_subject(job.id)
            if key is not None:
                tx.insert_key(owner, key, job.id, digest)
            return self._seen(job), False

    def get(self, job_id: str) -> Job:
        """One job; a queued one says why it waits and at which place.

        Raises:
            UnknownJobError: no such job.
        """
        with self.store.read() as tx:
            return self._seen(tx.job(job_id))

    def list(self, wanted: Wanted = EVERY_JOB, limit: int = 100) -> tuple[Job, ...]:
        """Jobs, the newest first."""
        with self.store.read() as tx:
            return tuple(self._seen(job) for job in tx.list_jobs(wanted, limit))

    def counts(self) -> dict[JobState, int]:
        """Number of jobs in each state that has any."""
        with self.store.read() as tx:
            return tx.count_jobs()

    def events(self, job_id: str, after: int = 0, limit: int | None = None) -> tuple[Event, ...]:
        """A job's history behind the line of this `seq`, oldest first: at most so many lines, or all.

        Raises:
            UnknownJobError: no such job.
        """
        with self.store.read() as tx:
            return tuple(tx.events.of_job(tx.job(job_id).id, after, limit))

    def goodput(self, job_id: str) -> Goodput | None:
        """Where a job's time went so far; None before its first start.

        Raises:
            UnknownJobError: no such job.
        """
        with self.store.read() as tx:
            job = tx.job(job_id)
            return split(job, tx.attempts_of(job_id), tx.goodput.history_of(job_id), self.clock())

    def faults(self, job_id: str, limit: int = 20) -> tuple[Event, ...]:
        """The latest faults of a job's workers, oldest first.

        Raises:
            UnknownJobError: no such job.
        """
        with self.store.read() as tx:
            return tuple(tx.goodput.faults_of(tx.job(job_id).id, limit))

    def attempts(self, job_id: str) -> tuple[Attempt, ...]:
        """A job's attempts, oldest first.

        Raises:
            UnknownJobError: no such job.
        """
        with self.store.read() as tx:
            return tuple(tx.attempts_of(tx.job(job_id).id))

    # What operators ask

    def policies(self) -> tuple[Document, ...]:
        """All rules that are set: {"scope", "name", "rules"}."""
        with self.store.read() as tx:
            return tuple({"scope": scope, "name": name, "rules": rules} for scope, name, rules in tx.policies())

    def set_policy(self, scope: str, name: str, rules: Document) -> Document:
        """Replace the rules of the cluster, a project or a user; empty rules remove them. See `policy`.

        Raises:
            SpecError: unknown scope or rule, or a value out of range.
        """
        checked = check_rules(scope, name, rules)
        with self.store.write() as tx:
            before = next((known for *whose, known in tx.policies() if whose == [scope, name]), {})
            audit.name_subject(f"{scope} {name}: {difference(before, checked)}")
            tx.set_policy(scope, name, checked)
        return {"scope": scope, "name": name, "rules": checked}


def _check_parents(tx: Transaction, spec: Document) -> None:
    parents = [parent.partition(":")[0] for parent in spec["queue"]["after"]]
    known = tx.known_jobs(parents)
    problems = [
        Problem(f"queue.after[{i}]", f"there is no job {parent!r}")
        for i, parent in enumerate(parents)
        if parent not in known
    ]
    if len(set(parents)) < len(parents):
        problems.append(Problem("queue.after", "a job is named twice"))
    if problems:
        raise SpecError(problems)


def _check_quota(tx: Transaction, project: str, owner: str) -> None:
    policy, _ = policy_of(tx.policies())
    for kind, name, quota in (
        ("project", project, policy.projects.get(project, Quota())),
        ("user", owner, policy.users.get(owner, Quota())),
    ):
        if quota.max_queued is None:
            continue
        waiting = tx.count_waiting(project=name) if kind == "project" else tx.count_waiting(owner=name)
        if waiting >= quota.max_queued:
            raise QuotaExceededError(f"{kind} {name!r}", str(waiting), str(quota.max_queued))
