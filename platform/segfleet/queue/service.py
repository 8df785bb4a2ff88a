"""The queue's verbs: what users and operators ask of jobs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from segfleet.access import audit
from segfleet.errors import (
    IdempotencyConflictError,
    IllegalTransitionError,
    Problem,
    QuotaExceededError,
    SpecError,
)
from segfleet.queue import fencing, intake, lifecycle
from segfleet.queue.board import Board
from segfleet.queue.clock import Clock
from segfleet.queue.desk import AttemptDesk
from segfleet.queue.model import EVERY_JOB, Attempt, Document, Event, Job, Wanted, gang_of
from segfleet.queue.policy import beyond_limits, check_rules, difference, force, is_forced, policy_of
from segfleet.queue.scheduling.admission import never_fits
from segfleet.queue.scheduling.values import Gang, Quota
from segfleet.queue.states import JobState, StopFor, is_terminal
from segfleet.queue.store import LostRaceError, Store, Transaction


class Queue(AttemptDesk):
    """All operations on jobs; safe to share between threads.

    Args:
        store: The database.
        clock: Seconds since the epoch.
        storage: Folder under which each job gets one of its own.
    """

    def __init__(self, store: Store, clock: Clock, storage: Path) -> None:
        super().__init__(store, clock, storage)
        self.board = Board()

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

    def events(self, job_id: str) -> tuple[Event, ...]:
        """A job's history, oldest first.

        Raises:
            UnknownJobError: no such job.
        """
        with self.store.read() as tx:
            return tuple(tx.events_of(tx.job(job_id).id))

    def attempts(self, job_id: str) -> tuple[Attempt, ...]:
        """A job's attempts, oldest first.

        Raises:
            UnknownJobError: no such job.
        """
        with self.store.read() as tx:
            return tuple(tx.attempts_of(tx.job(job_id).id))

    def cancel(self, job_id: str, who: str) -> Job:
        """Cancel a job: at once if it has nothing on the cluster, else as soon as its attempt is gone from there.

        A completion that arrives before the attempt is gone still wins: the job then ends as succeeded.

        Raises:
            UnknownJobError: no such job.
            IllegalTransitionError: it has already succeeded or failed.
        """
        with self.store.write() as tx:
            job, now = tx.job(job_id), self.clock()
            if job.state == JobState.CANCELLED or (job.cancel_requested and not is_terminal(job.state)):
                return job
            if is_terminal(job.state):
                raise IllegalTransitionError(job_id, job.state, "cancel", "it has already ended")
            is_idle = job.state in (JobState.QUEUED, JobState.PAUSED)
            if is_idle and all(attempt.closed for attempt in tx.attempts_of(job_id)):
                return lifecycle.cancel(tx, job, who=who, now=now)
            lifecycle.note(tx, job, now=now, kind="cancel_requested", who=who)
            return tx.change_job(job, {"cancel_requested": True, "reason": "being cancelled", "updated_at": now})

    def pause(self, job_id: str, who: str) -> Job:
        """Take a job out of the line: at once while it waits, else after its next checkpoint, which it keeps.

        Raises:
            UnknownJobError: no such job.
            IllegalTransitionError: it has ended, or is being cancelled.
        """
        with self.store.write() as tx:
            job, now = tx.job(job_id), self.clock()
            if job.state == JobState.PAUSED or job.stop_for == StopFor.PAUSE:
                return job
            if is_terminal(job.state) or job.cancel_requested:
                raise IllegalTransitionError(job_id, job.state, "pause", "it has ended, or is being cancelled")
            if job.state == JobState.QUEUED:
                return lifecycle.move(
                    tx, job, JobState.PAUSED, now=now, kind="paused", who=who, reason=lifecycle.PAUSED
                )
            attempt = tx.attempts_of(job_id)[-1]
            if job.state == JobState.RUNNING:
                return lifecycle.ask_to_stop(
                    tx, job, attempt, StopFor.PAUSE, who=who, now=now, reason="pauses at its next checkpoint"
                )
            # Starting, or on its way out for another job already: it will end up paused instead of queued.
            lifecycle.note(tx, job, now=now, kind="pause_requested", who=who)
            return tx.change_job(job, {"stop_for": StopFor.PAUSE, "updated_at": now})

    def resume(self, job_id: str, who: str) -> Job:
        """Put a paused job back into the line, at the place of its age. One that is back already stays as it is.

        Raises:
            UnknownJobError: no such job.
            IllegalTransitionError: it is not paused.
        """
        with self.store.write() as tx:
            job, now = tx.job(job_id), self.clock()
            if job.state == JobState.QUEUED and not job.cancel_requested:
                return self._seen(job)
            if job.state != JobState.PAUSED or job.cancel_requested:
                is_going = job.cancel_requested and not is_terminal(job.state)
                hint = "it is being cancelled" if is_going else "only paused jobs can be resumed"
                raise IllegalTransitionError(job_id, job.state, "resume", hint)
            moved = lifecycle.move(
                tx,
                job,
                JobState.QUEUED,
                now=now,
                kind="resumed",
                who=who,
                reason=lifecycle.FRESH,
                not_before=None,
                start_by=None if job.start_by is None else intake.start_by(job.spec, now),
            )
            return self._seen(moved)

    def set_priority(self, job_id: str, who: str, priority: int) -> Job:
        """Change a job's priority; the next turn of the scheduler goes by it.

        Args:
            job_id: The job.
            who: Who asks.
            priority: 0 to 100.

        Raises:
            UnknownJobError: no such job.
            IllegalTransitionError: it has ended.
        """
        with self.store.write() as tx:
            job, now = tx.job(job_id), self.clock()
            if is_terminal(job.state):
                raise IllegalTransitionError(job_id, job.state, "change the priority of", "it has already ended")
            detail = {"before": job.priority, "after": priority}
            lifecycle.note(tx, job, now=now, kind="priority", who=who, detail=detail)
            return self._seen(tx.change_job(job, {"priority": priority, "updated_at": now}))

    def retry(self, job_id: str, who: str, *, from_start: bool = False) -> Job:
        """Queue a failed or cancelled job again, with a fresh budget of retries and time.

        Asked again before the job has started, it changes nothing more.

        Args:
            job_id: The job.
            who: Who asks.
            from_start: Forget the checkpoint, or a search's trials, instead of going on from there.

        Raises:
            UnknownJobError: no such job.
            IllegalTransitionError: the job has not failed and was not cancelled, or its checkpoint was deleted.
        """
        with self.store.write() as tx:
            job, now = tx.job(job_id), self.clock()
            if job.state == JobState.QUEUED and tx.events_of(job_id)[-1].kind == "retry_requested":
                return self._seen(job)
            if job.state not in (JobState.FAILED, JobState.CANCELLED):
                hint = "only failed and cancelled jobs can be retried"
                raise IllegalTransitionError(job_id, job.state, "retry", hint)
            if not from_start and job.checkpoint is None and tx.retention.has_lost_latest(job_id):
                hint = "retention has deleted its checkpoint, so it must start over: add --from-start"
                raise IllegalTransitionError(job_id, job.state, "retry", hint)
            forgotten: Document = {"checkpoint": None, "progress": None} if from_start else {}
            if from_start:
                tx.trials.clear(job_id)
            moved = lifecycle.move(
                tx,
                job,
                JobState.QUEUED,
                now=now,
                kind="retry_requested",
                who=who,
                detail={"from_start": from_start},
                budget_from=job.attempt,
                cancel_requested=False,
                error=None,
                finished_at=None,
                not_before=None,
                start_by=intake.start_by(job.spec, now),
                reason=lifecycle.FRESH,
                **forgotten,
            )
            return self._seen(moved)

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
            audit.name_subject(difference(before, checked))
            tx.set_policy(scope, name, checked)
        return {"scope": scope, "name": name, "rules": checked}

    # Inside

    def _seen(self, job: Job) -> Job:
        wait = self.board.waits.get(job.id)
        if job.state != JobState.QUEUED or wait is None:
            return job
        return replace(job, reason=wait.reason, place=wait.place, starts_at=wait.starts_at)


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
