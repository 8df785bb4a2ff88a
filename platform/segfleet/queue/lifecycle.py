"""The life of a job: the only place where jobs and attempts change state.

Every function runs inside the caller's write transaction: the change, the attempt and the line of history are stored
together or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segfleet.queue import retry
from segfleet.queue.causes import Cause
from segfleet.queue.goodput import split
from segfleet.queue.model import Attempt, Document, Job, attempt_id
from segfleet.queue.states import HOLDING, AttemptState, FailureClass, JobState, StopFor, check_transition
from segfleet.queue.store import Transaction
from segfleet.webhooks import outbox

SERVICE = "service"
PAUSED = "paused; 'segfleet resume' puts it back"
FRESH = "waits for the scheduler's next turn"


def move(
    tx: Transaction,
    job: Job,
    target: JobState,
    *,
    now: float,
    kind: str,
    who: str,
    detail: Document | None = None,
    **changes: Any,
) -> Job:
    """Change a job's state by compare-and-set, write its history, and let webhooks know.

    Args:
        kind: What happened, for the history.
        who: User, attempt id or `service`.
        detail: Plain data for the history.
        changes: Other fields of the job.

    Raises:
        IllegalTransitionError: the table of transitions does not hold this step.
        LostRaceError: the job is no longer as it was read.
    """
    check_transition(job.id, job.state, target)
    moved = tx.change_job(job, {"state": target, "updated_at": now, **changes})
    tx.events.add(
        job_id=job.id,
        at=now,
        kind=kind,
        who=who,
        attempt=moved.attempt,
        source=job.state,
        target=target,
        detail=detail or {},
    )
    outbox.tell(tx.webhooks, moved, kind, detail or {}, now)
    if job.state in HOLDING and target not in HOLDING and moved.started_at is not None:
        _keep_goodput(tx, moved, now)
    return moved


def _keep_goodput(tx: Transaction, job: Job, now: float) -> None:
    spent = split(job, tx.attempts_of(job.id), tx.goodput.history_of(job.id), now)
    if spent is not None:
        tx.goodput.keep(job.id, spent.seconds)


def note(tx: Transaction, job: Job, *, now: float, kind: str, who: str, detail: Document | None = None) -> None:
    """Write a line of history that changes no state."""
    tx.events.add(
        job_id=job.id,
        at=now,
        kind=kind,
        who=who,
        attempt=job.attempt,
        source=None,
        target=None,
        detail=detail or {},
    )


def begin_attempt(tx: Transaction, job: Job, workers: int, code_hash: str, now: float) -> Attempt:
    """Open the next attempt of a queued job, under the next fencing number.

    Args:
        workers: How many it gets.
        code_hash: SHA-256 of the one-time code that the attempt will be sent.
    """
    number, fence = job.attempt + 1, job.fence + 1
    tx.count_overtaking(job, now)
    move(
        tx,
        job,
        JobState.STARTING,
        now=now,
        kind="starting",
        who=SERVICE,
        attempt=number,
        fence=fence,
        reason="sent to the cluster",
        not_before=None,
        start_by=None,
        overtaken=0,
    )
    return tx.insert_attempt(
        {
            "id": attempt_id(job.id, number),
            "job_id": job.id,
            "number": number,
            "fence": fence,
            "state": AttemptState.STARTING,
            "code_hash": code_hash,
            "created_at": now,
            "beats": 0,
            "used_s": 0.0,
            "workers": workers,
            "closed": False,
        }
    )


def mark_running(tx: Transaction, job: Job, attempt: Attempt, digests: Mapping[str, str], now: float) -> Job:
    """The attempt has claimed its job: `digests` are those of its token and instance."""
    alive = {"state": AttemptState.RUNNING, "claimed_at": now, "heartbeat_at": now, "beats": attempt.beats + 1}
    tx.change_attempt(attempt.id, {**alive, **digests})
    running = move(
        tx,
        job,
        JobState.RUNNING,
        now=now,
        kind="running",
        who=attempt.id,
        started_at=job.started_at if job.started_at is not None else now,
        reason="",
    )
    if running.stop_for is not None:  # paused while it was starting
        return ask_to_stop(tx, running, attempt, running.stop_for, who=SERVICE, now=now, reason="paused")
    return running


def ask_to_stop(
    tx: Transaction,
    job: Job,
    attempt: Attempt,
    stop_for: StopFor,
    *,
    who: str,
    now: float,
    reason: str,
    detail: Document | None = None,
) -> Job:
    """A running job is to write a checkpoint and end its attempt; the answer to its next heartbeat tells it.

    Args:
        reason: For people.
        detail: More plain data for the history.
    """
    tx.change_attempt(attempt.id, {"stop_asked_at": now})
    return move(
        tx,
        job,
        JobState.PREEMPTING,
        now=now,
        kind="preempting",
        who=who,
        detail={"for": stop_for, "reason": reason, **(detail or {})},
        stop_for=stop_for,
        reason=reason,
    )


def end_preempted(tx: Transaction, job: Job, attempt: Attempt, *, who: str, now: float) -> Job:
    """The attempt has ended because it was asked to: no failure, and the job keeps its age in the line."""
    if job.cancel_requested:
        return end_cancelled(tx, job, attempt, now=now)
    tx.change_attempt(attempt.id, {"state": AttemptState.PREEMPTED, "finished_at": now})
    is_pause = job.stop_for == StopFor.PAUSE
    step = (job.checkpoint or {}).get("step")
    where = "with its trials" if job.kind == "search" else f"from step {step or 0}"
    return move(
        tx,
        job,
        JobState.PAUSED if is_pause else JobState.QUEUED,
        now=now,
        kind="paused" if is_pause else "preempted",
        who=who,
        detail={"step": step},
        stop_for=None,
        reason=PAUSED if is_pause else f"{job.reason}; goes on {where}",
    )


def skip(tx: Transaction, job: Job, message: str, now: float) -> Job:
    """What the job was to follow has not ended as it should: it will never start."""
    error = {"class": FailureClass.DEPENDENCY.value, "message": message, "attempt": None}
    return _fail(tx, job, error, message, who=SERVICE, now=now)


def miss_start(tx: Transaction, job: Job, now: float) -> Job:
    """The job has waited for its first attempt for longer than it was to."""
    message = f"not started within {job.spec['queue']['start_within']}, its queue.start_within"
    error = {"class": FailureClass.START_DEADLINE.value, "message": message, "attempt": None}
    return _fail(tx, job, error, message, who=SERVICE, now=now)


def succeed(tx: Transaction, job: Job, attempt: Attempt, result: Document, now: float) -> Job:
    """The attempt has delivered its result."""
    tx.change_attempt(attempt.id, {"state": AttemptState.SUCCEEDED, "finished_at": now})
    return move(
        tx,
        job,
        JobState.SUCCEEDED,
        now=now,
        kind="succeeded",
        who=attempt.id,
        result=result,
        error=None,
        finished_at=now,
        stop_for=None,
        reason="completed",
    )


def end_failed(
    tx: Transaction, job: Job, attempt: Attempt, failure: FailureClass, message: str, *, now: float, lost: bool
) -> Job:
    """The attempt is over without a result: cancel, queue again or fail the job.

    Args:
        lost: The service found it gone, as opposed to the attempt's own report.
    """
    document = {"class": failure.value, "message": message}
    state = AttemptState.LOST if lost else AttemptState.FAILED
    if job.cancel_requested:
        return end_cancelled(tx, job, attempt, now=now, detail=document)
    tx.change_attempt(attempt.id, {"state": state, "finished_at": now, "failure": document})
    counted = tx.budget_attempts(job)
    # A job that started over has its way before it again: checkpoints of an earlier budget are no measure.
    checkpoints = [(number, step) for number, step in tx.events.checkpoints_of(job.id) if number > job.budget_from]
    decision = retry.decide(failure, retry.count(counted, checkpoints), int(job.spec["queue"]["max_retries"]))
    error = {**document, "attempt": attempt.id}
    who = SERVICE if lost else attempt.id
    if isinstance(decision, retry.Retry):
        detail = {**error, "delay_s": decision.delay_s}
        return move(
            tx,
            job,
            JobState.PAUSED if job.stop_for == StopFor.PAUSE else JobState.QUEUED,
            now=now,
            kind="retrying",
            who=who,
            detail=detail,
            error=error,
            not_before=now + decision.delay_s,
            stop_for=None,
            reason=f"attempt {attempt.number} was lost: {message}" if lost else message,
        )
    return _fail(tx, job, error, f"{message} ({decision.reason})", who=who, now=now, decision=decision.reason)


def _fail(tx: Transaction, job: Job, error: Document, reason: str, *, who: str, now: float, **detail: str) -> Job:
    """The job has failed for good."""
    return move(
        tx,
        job,
        JobState.FAILED,
        now=now,
        kind="failed",
        who=who,
        detail={**error, **detail},
        error=error,
        finished_at=now,
        not_before=None,
        start_by=None,
        stop_for=None,
        reason=reason,
    )


def end_cancelled(tx: Transaction, job: Job, attempt: Attempt, *, now: float, detail: Document | None = None) -> Job:
    """The attempt of a job that is to be cancelled is gone."""
    tx.change_attempt(attempt.id, {"state": AttemptState.CANCELLED, "finished_at": now})
    return cancel(tx, job, who=SERVICE, now=now, detail=detail)


def close(tx: Transaction, attempt: Attempt, *, abandoned: bool, now: float, cause: Cause | None = None) -> None:
    """Nothing more will come of an ended attempt; a cancel that waited for this is done.

    Args:
        abandoned: Its process may still be there.
        cause: What its log says of its failure.
    """
    tx.change_attempt(attempt.id, {"closed": True})
    job = tx.job(attempt.job_id)
    if cause is not None and job.error is not None and job.error["attempt"] == attempt.id:
        job = _explain(tx, job, cause, now)
    if abandoned:
        note(tx, job, now=now, kind="abandoned", who=SERVICE)
    if job.state in (JobState.QUEUED, JobState.PAUSED) and job.cancel_requested:
        cancel(tx, job, who=SERVICE, now=now)


def _explain(tx: Transaction, job: Job, cause: Cause, now: float) -> Job:
    """Say what the job's last failure was; a cause that comes again ends the retries.

    Only where the failure's own words name it: an earlier line of the log may be of something that was dealt with.
    """
    known = {"cause": cause.name, "advice": cause.advice}
    note(tx, job, now=now, kind="explained", who=SERVICE, detail=known)
    error = {**(job.error or {}), **known}
    is_certain = error["class"] == FailureClass.INFRA and cause.pattern.search(str(error["message"])) is not None
    if not (cause.comes_again and is_certain) or job.state != JobState.QUEUED or job.cancel_requested:
        return tx.change_job(job, {"error": error, "updated_at": now})
    return _fail(tx, job, error, f"{error['message']} ({cause.advice})", who=SERVICE, now=now)


def cancel(tx: Transaction, job: Job, *, who: str, now: float, detail: Document | None = None) -> Job:
    """Nothing of the job runs any more: it is cancelled."""
    return move(
        tx,
        job,
        JobState.CANCELLED,
        now=now,
        kind="cancelled",
        who=who,
        detail=detail,
        cancel_requested=True,
        finished_at=now,
        not_before=None,
        start_by=None,
        stop_for=None,
        reason="cancelled",
    )
