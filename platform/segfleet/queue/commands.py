"""What users ask of jobs that are there: cancel, pause, resume, retry, another priority."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from segfleet.errors import IllegalTransitionError, JobChangedError
from segfleet.queue import intake, lifecycle
from segfleet.queue.board import Board
from segfleet.queue.clock import Clock
from segfleet.queue.desk import AttemptDesk
from segfleet.queue.model import Document, Job
from segfleet.queue.states import JobState, StopFor, is_terminal
from segfleet.queue.store import Store, Transaction

Versions = Collection[int] | None


class JobCommands(AttemptDesk):
    """Changes of jobs. Each takes the versions that its caller knows the job in: None stands for any.

    Args:
        store: The database.
        clock: Seconds since the epoch.
        storage: Folder under which each job gets one of its own.
    """

    def __init__(self, store: Store, clock: Clock, storage: Path) -> None:
        super().__init__(store, clock, storage)
        self.board = Board()

    def cancel(self, job_id: str, who: str, versions: Versions = None) -> Job:
        """Cancel a job: at once if it has nothing on the cluster, else as soon as its attempt is gone from there.

        A completion that arrives before the attempt is gone still wins: the job then ends as succeeded.

        Raises:
            UnknownJobError: no such job.
            JobChangedError: the job has none of the versions.
            IllegalTransitionError: it has already succeeded or failed.
        """
        with self.store.write() as tx:
            job, now = _known(tx, job_id, versions), self.clock()
            if job.state == JobState.CANCELLED or (job.cancel_requested and not is_terminal(job.state)):
                return job
            if is_terminal(job.state):
                raise IllegalTransitionError(job_id, job.state, "cancel", "it has already ended")
            is_idle = job.state in (JobState.QUEUED, JobState.PAUSED)
            if is_idle and all(attempt.closed for attempt in tx.attempts_of(job_id)):
                return lifecycle.cancel(tx, job, who=who, now=now)
            lifecycle.note(tx, job, now=now, kind="cancel_requested", who=who)
            return tx.change_job(job, {"cancel_requested": True, "reason": "being cancelled", "updated_at": now})

    def pause(self, job_id: str, who: str, versions: Versions = None) -> Job:
        """Take a job out of the line: at once while it waits, else after its next checkpoint, which it keeps.

        Raises:
            UnknownJobError: no such job.
            JobChangedError: the job has none of the versions.
            IllegalTransitionError: it has ended, or is being cancelled.
        """
        with self.store.write() as tx:
            job, now = _known(tx, job_id, versions), self.clock()
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

    def resume(self, job_id: str, who: str, versions: Versions = None) -> Job:
        """Put a paused job back into the line, at the place of its age. One that is back already stays as it is.

        Raises:
            UnknownJobError: no such job.
            JobChangedError: the job has none of the versions.
            IllegalTransitionError: it is not paused.
        """
        with self.store.write() as tx:
            job, now = _known(tx, job_id, versions), self.clock()
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

    def set_priority(self, job_id: str, who: str, priority: int, versions: Versions = None) -> Job:
        """Change a job's priority; the next turn of the scheduler goes by it.

        Args:
            job_id: The job.
            who: Who asks.
            priority: 0 to 100.
            versions: Of the job, as its caller knows it.

        Raises:
            UnknownJobError: no such job.
            JobChangedError: the job has none of the versions.
            IllegalTransitionError: it has ended.
        """
        with self.store.write() as tx:
            job, now = _known(tx, job_id, versions), self.clock()
            if is_terminal(job.state):
                raise IllegalTransitionError(job_id, job.state, "change the priority of", "it has already ended")
            detail = {"before": job.priority, "after": priority}
            lifecycle.note(tx, job, now=now, kind="priority", who=who, detail=detail)
            return self._seen(tx.change_job(job, {"priority": priority, "updated_at": now}))

    def retry(self, job_id: str, who: str, *, from_start: bool = False, versions: Versions = None) -> Job:
        """Queue a failed or cancelled job again, with a fresh budget of retries and time.

        Asked again before the job has started, it changes nothing more.

        Args:
            job_id: The job.
            who: Who asks.
            from_start: Forget the checkpoint, or a search's trials, instead of going on from there.
            versions: Of the job, as its caller knows it.

        Raises:
            UnknownJobError: no such job.
            JobChangedError: the job has none of the versions.
            IllegalTransitionError: the job has not failed and was not cancelled, or its checkpoint was deleted.
        """
        with self.store.write() as tx:
            job, now = _known(tx, job_id, versions), self.clock()
            if job.state == JobState.QUEUED and tx.events.of_job(job_id)[-1].kind == "retry_requested":
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

    def _seen(self, job: Job) -> Job:
        wait = self.board.waits.get(job.id)
        if job.state != JobState.QUEUED or wait is None:
            return job
        return replace(job, reason=wait.reason, place=wait.place, starts_at=wait.starts_at)


def _known(tx: Transaction, job_id: str, versions: Versions) -> Job:
    job = tx.job(job_id)
    if versions is not None and job.version not in versions:
        raise JobChangedError(job_id, str(job.version), job.state)
    return job
