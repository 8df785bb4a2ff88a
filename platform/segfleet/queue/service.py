"""The queue's verbs: what users ask of jobs, and what attempts ask with their tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from segfleet.errors import (
    IdempotencyConflictError,
    IllegalTransitionError,
    Problem,
    QueueError,
    SpecError,
)
from segfleet.queue import fencing, lifecycle
from segfleet.queue.clock import Clock
from segfleet.queue.model import Attempt, Document, Event, Grant, Job, Needs, clean_text
from segfleet.queue.scheduler import Capacity, Wait, never_fits
from segfleet.queue.states import AttemptState, FailureClass, JobState, is_terminal
from segfleet.queue.store import LostRaceError, Store

MIN_INSTANCE_CHARS = 16
MAX_MESSAGE_CHARS = 4000


@dataclass(frozen=True, slots=True)
class Board:
    """What the dispatcher's last turn saw; a view for people, rebuilt each turn and never stored.

    Attributes:
        capacity: Totals of the cluster; None: not reachable, or not yet asked.
        trouble: Why the cluster is not reachable; empty: it is.
        waits: Place and reason of each queued job.
    """

    capacity: Capacity | None = None
    trouble: str = ""
    waits: Mapping[str, Wait] = field(default_factory=dict)


class Queue:
    """All operations on jobs; safe to share between threads.

    Args:
        store: The database.
        clock: Seconds since the epoch.
        storage: Folder under which each job gets one of its own.
    """

    def __init__(self, store: Store, clock: Clock, storage: Path) -> None:
        self.store = store
        self.clock = clock
        self.board = Board()
        self._storage = storage

    # What users ask

    def check(self, needs: Needs) -> None:
        """Refuse a job that the whole cluster could not hold; passes while the cluster's size is not known.

        Raises:
            SpecError: it needs more than there is.
        """
        capacity = self.board.capacity
        if capacity is not None and (excess := never_fits(needs, capacity)):
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
            SpecError: the job needs more than the whole cluster has.
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
                if known_digest != digest:
                    raise IdempotencyConflictError(key, job_id)
                return self._seen(tx.job(job_id)), True
            needs = Needs.of(spec)
            self.check(needs)
            job = lifecycle.create(tx, spec, needs, owner, self.clock())
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

    def list(self, state: JobState | None = None, project: str | None = None, limit: int = 100) -> tuple[Job, ...]:
        """Jobs, the newest first."""
        with self.store.read() as tx:
            return tuple(self._seen(job) for job in tx.list_jobs(state, project, limit))

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
            if job.state == JobState.QUEUED and all(attempt.closed for attempt in tx.attempts_of(job_id)):
                return lifecycle.cancel(tx, job, who=who, now=now)
            lifecycle.note(tx, job, now=now, kind="cancel_requested", who=who)
            return tx.change_job(job, {"cancel_requested": True, "reason": "being cancelled", "updated_at": now})

    def retry(self, job_id: str, who: str, *, from_start: bool = False) -> Job:
        """Queue a failed or cancelled job again, with a fresh budget of retries and time.

        Args:
            job_id: The job.
            who: Who asks.
            from_start: Forget the checkpoint instead of resuming from it.

        Raises:
            UnknownJobError: no such job.
            IllegalTransitionError: the job has not failed and was not cancelled.
        """
        with self.store.write() as tx:
            job, now = tx.job(job_id), self.clock()
            if job.state not in (JobState.FAILED, JobState.CANCELLED):
                hint = "only failed and cancelled jobs can be retried"
                raise IllegalTransitionError(job_id, job.state, "retry", hint)
            forgotten: Document = {"checkpoint": None, "progress": None} if from_start else {}
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
                reason=lifecycle.FRESH,
                **forgotten,
            )
            return self._seen(moved)

    # What attempts ask

    def claim(self, attempt_id: str, code: str, instance: str) -> Grant:
        """Trade an attempt's one-time code for its token.

        Only digests are stored, so the token is derived from code and instance: the same instance may ask again after
        a lost answer and gets the same token; nobody else gets any.

        Args:
            attempt_id: The attempt.
            code: From the attempt's environment.
            instance: Random text that the driver process makes up and keeps to itself, at least 16 characters.

        Raises:
            AttemptFencedError: wrong code, traded by another instance, or the attempt is over or being cancelled.
            QueueError: the instance is too short to be a secret.
        """
        if len(instance) < MIN_INSTANCE_CHARS:
            raise QueueError(f"instance needs at least {MIN_INSTANCE_CHARS} random characters")
        with self.store.write() as tx:
            job, attempt, token = fencing.trade_code(tx, attempt_id, code, instance)
            if attempt.state == AttemptState.STARTING:
                job = lifecycle.mark_running(tx, job, attempt, fencing.digests(token, instance), self.clock())
            return Grant(
                job_id=job.id,
                attempt_id=attempt_id,
                token=token,
                fence=attempt.fence,
                spec=job.spec,
                checkpoint=job.checkpoint,
                storage=str(self._storage / job.id),
            )

    def heartbeat(self, attempt_id: str, token: str, progress: Document | None = None) -> Literal["continue", "cancel"]:
        """A sign of life with news of the progress document, answered with what to do.

        Raises:
            AttemptFencedError: the attempt has lost its right to write: it must stop.
        """
        with self.store.write() as tx:
            job, attempt = fencing.fenced(tx, attempt_id, token)
            now = self.clock()
            sign = {"heartbeat_at": now, "beats": attempt.beats + 1, "used_s": attempt.used_at(now)}
            tx.change_attempt(attempt.id, sign)
            if progress is not None:
                tx.change_job(job, {"progress": {**(job.progress or {}), **progress}, "updated_at": now})
            return "cancel" if job.cancel_requested else "continue"

    def set_checkpoint(self, attempt_id: str, token: str, checkpoint: Document) -> Job:
        """Point the job at a checkpoint that is complete and durable.

        Within one attempt the step only rises; an equal document is accepted again. A later attempt may begin below
        the last step, when it had to fall back to an older checkpoint.

        Args:
            attempt_id: The attempt.
            token: Its token.
            checkpoint: {"path", "step", "sha256", "bytes"} and optionally "metric".

        Raises:
            AttemptFencedError: the attempt has lost its right to write.
            QueueError: the step is not above the one this attempt has already set.
        """
        with self.store.write() as tx:
            job, attempt = fencing.fenced(tx, attempt_id, token)
            document = {**checkpoint, "attempt": attempt.id}
            last = job.checkpoint
            if document == last:
                return job
            if last is not None and last["attempt"] == attempt.id and checkpoint["step"] <= last["step"]:
                raise QueueError(
                    f"checkpoint of step {checkpoint['step']} comes after that of step {last['step']} of {attempt.id}"
                )
            now = self.clock()
            lifecycle.note(tx, job, now=now, kind="checkpoint", who=attempt.id, detail=document)
            return tx.change_job(job, {"checkpoint": document, "updated_at": now})

    def complete(self, attempt_id: str, token: str, result: Document) -> Job:
        """Deliver the job's result: the only way to succeed. Asked again after a lost answer, it says the same.

        Raises:
            AttemptFencedError: the attempt has lost its right to write.
        """
        with self.store.write() as tx:
            job, attempt = fencing.fenced(tx, attempt_id, token, replay=AttemptState.SUCCEEDED)
            if attempt.state == AttemptState.SUCCEEDED:
                return job
            return lifecycle.succeed(tx, job, attempt, result, self.clock())

    def fail(self, attempt_id: str, token: str, failure: Mapping[str, str]) -> Job:
        """Report that the attempt cannot go on; the retry policy decides what follows.

        While the job is being cancelled, the report only ends the attempt's lease: `cancelled` waits until Ray
        confirms that no process is left.

        Args:
            attempt_id: The attempt.
            token: Its token.
            failure: {"class": one of `FailureClass`, "message": str}.

        Raises:
            AttemptFencedError: the attempt has lost its right to write.
            QueueError: no such class of failure.
        """
        kind, message = _failure(failure)
        with self.store.write() as tx:
            job, attempt = fencing.fenced(tx, attempt_id, token, replay=AttemptState.FAILED)
            if attempt.state == AttemptState.FAILED or job.cancel_requested:
                return job
            return self._seen(lifecycle.end_failed(tx, job, attempt, kind, message, now=self.clock(), lost=False))

    def authorize(self, attempt_id: str, token: str) -> Job:
        """The job of an attempt that may write now; for effects outside this database, such as the registry's.

        Raises:
            AttemptFencedError: the attempt has lost its right to write.
        """
        with self.store.read() as tx:
            return fencing.fenced(tx, attempt_id, token)[0]

    def is_token(self, attempt_id: str, token: str) -> bool:
        """Whether the token is the attempt's own, whatever has become of the attempt since."""
        with self.store.read() as tx:
            return fencing.is_token(tx, attempt_id, token)

    # Inside

    def _seen(self, job: Job) -> Job:
        wait = self.board.waits.get(job.id)
        if job.state != JobState.QUEUED or wait is None:
            return job
        return replace(job, reason=wait.reason, place=wait.place)


def _failure(document: Mapping[str, str]) -> tuple[FailureClass, str]:
    try:
        return FailureClass(document["class"]), clean_text(str(document["message"]))[:MAX_MESSAGE_CHARS]
    except (KeyError, ValueError) as error:
        known = ", ".join(FailureClass)
        raise QueueError(f"a failure needs 'message' and a 'class' among {known}: got {dict(document)!r}") from error
