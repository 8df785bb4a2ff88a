"""What attempts ask of the queue with their tokens: claim, live, report, end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from segfleet.errors import QueueError
from segfleet.queue import fencing, lifecycle
from segfleet.queue.clock import Clock
from segfleet.queue.lives import told
from segfleet.queue.model import Document, Grant, Job, clean_text, lane_of, work_of
from segfleet.queue.node_rows import Leaving
from segfleet.queue.states import AttemptState, FailureClass, JobState, StopFor
from segfleet.queue.store import Store, Transaction
from segfleet.queue.trials import TrialDesk

Command = Literal["continue", "cancel", "preempt"]
FaultKind = Literal["fault", "straggler", "damage"]

MIN_INSTANCE_CHARS = 16
MAX_MESSAGE_CHARS = 4000
# Of one attempt: a history is for people.
MAX_FAULTS = 100


class AttemptDesk:
    """Where attempts come with what they have to tell; safe to share between threads.

    Args:
        store: The database.
        clock: Seconds since the epoch.
        storage: Folder under which each job gets one of its own.
    """

    def __init__(self, store: Store, clock: Clock, storage: Path) -> None:
        self.store = store
        self.clock = clock
        self.trials = TrialDesk(store, clock)
        self._storage = storage

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
        with self.store.read() as tx:
            # This call alone needs no token: whoever guesses shall not hold up those who write.
            fencing.trade_code(tx, attempt_id, code, instance)
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
                workers=attempt.workers,
                earlier=_earlier(tx, job.spec),
            )

    def heartbeat(self, attempt_id: str, token: str, progress: Document | None = None) -> Command:
        """A sign of life with news of the progress document, answered with what to do.

        Its `account` goes to the attempt, see `lives.told`.

        Raises:
            AttemptFencedError: the attempt has lost its right to write: it must stop.
        """
        with self.store.write() as tx:
            job, attempt = fencing.fenced(tx, attempt_id, token)
            now = self.clock()
            sign = {"heartbeat_at": now, "beats": attempt.beats + 1, "used_s": attempt.used_at(now)}
            lives = told(attempt.lives, (progress or {}).get("account"), now)
            tx.change_attempt(attempt.id, sign if lives is None else {**sign, "lives": lives})
            if progress is not None:
                news = {name: value for name, value in progress.items() if name != "account"}
                tx.change_job(job, {"progress": {**(job.progress or {}), **news}, "updated_at": now})
            if job.cancel_requested:
                return "cancel"
            return "preempt" if job.state == JobState.PREEMPTING else "continue"

    def begin_group(self, attempt_id: str, token: str, scope: str) -> tuple[int, str]:
        """A group of workers begins; those before it in its scope may write no more.

        Args:
            attempt_id: The attempt.
            token: Its token.
            scope: Letters and digits; of each scope the attempt has one group at a time.

        Returns:
            The group's number, from 1, and its token.

        Raises:
            AttemptFencedError: the attempt has lost its right to write.
        """
        with self.store.write() as tx:
            return fencing.begin_group(tx, attempt_id, token, scope)

    def leave(self, attempt_id: str, token: str, machines: Sequence[Leaving]) -> Job:
        """Machines below the attempt are about to go: no more is planned onto them, and the attempt is to make way.

        It writes a checkpoint and ends as one that makes room for another, which is no failure.

        Raises:
            AttemptFencedError: the attempt has lost its right to write.
        """
        with self.store.write() as tx:
            job, attempt = fencing.fenced(tx, attempt_id, token)
            now = self.clock()
            tx.nodes.add_leaving(machines, now)
            if job.state != JobState.RUNNING or job.cancel_requested:
                return job
            told = [{"address": machine.address, "leaves_at": machine.leaves_at} for machine in machines]
            return lifecycle.ask_to_stop(
                tx,
                job,
                attempt,
                StopFor.DRAIN,
                who=attempt_id,
                now=now,
                reason=f"makes way: {_departure(machines)}",
                detail={"nodes": told},
            )

    def note_fault(self, attempt_id: str, token: str, kind: FaultKind, detail: Document) -> Job:
        """Write to the job's history what went wrong with one of the attempt's workers.

        Args:
            attempt_id: The attempt.
            token: Its token.
            kind: `fault`: the group of workers starts anew for it; `straggler`: it only slows the others;
                `damage`: a checkpoint was passed over.
            detail: {"rank", "phase", "step", "message"}.

        Raises:
            AttemptFencedError: the attempt has lost its right to write.
        """
        with self.store.write() as tx:
            job, attempt = fencing.fenced(tx, attempt_id, token)
            known = tx.goodput.count_faults(job.id, attempt.number)
            if known < MAX_FAULTS:
                lifecycle.note(tx, job, now=self.clock(), kind=kind, who=attempt_id, detail=detail)
            return job

    def yield_(self, attempt_id: str, token: str) -> Job:
        """The attempt has written its checkpoint and ends, as it was asked to.

        Raises:
            AttemptFencedError: the attempt has lost its right to write.
            QueueError: nobody has asked it to.
        """
        with self.store.write() as tx:
            job, attempt = fencing.fenced(tx, attempt_id, token, replay=AttemptState.PREEMPTED)
            if attempt.state == AttemptState.PREEMPTED or job.cancel_requested:
                return job
            if job.state != JobState.PREEMPTING:
                raise QueueError(f"nobody has asked {attempt_id} to make room; its job is {job.state}")
            return lifecycle.end_preempted(tx, job, attempt, who=attempt_id, now=self.clock())

    def set_checkpoint(self, attempt_id: str, token: str, checkpoint: Document) -> Job:
        """Point the job at a checkpoint that is complete and durable.

        Within one group of workers the step only rises; an equal document is accepted again. A later group may begin
        below the last step, when it had to fall back to an older checkpoint.

        Args:
            attempt_id: The attempt.
            token: Its token.
            checkpoint: {"path", "step", "sha256", "bytes"} and optionally "metric".

        Raises:
            AttemptFencedError: the attempt has lost its right to write.
            QueueError: the step is not above the one this group has already set.
        """
        with self.store.write() as tx:
            job, attempt = fencing.fenced(tx, attempt_id, token)
            document = fencing.signed(checkpoint, attempt, token)
            last = job.checkpoint
            if document == last:
                return job
            if fencing.is_same_writer(last, document) and checkpoint["step"] <= last["step"]:
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
            return lifecycle.end_failed(tx, job, attempt, kind, message, now=self.clock(), lost=False)

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


def _failure(document: Mapping[str, str]) -> tuple[FailureClass, str]:
    try:
        return FailureClass(document["class"]), clean_text(str(document["message"]))[:MAX_MESSAGE_CHARS]
    except (KeyError, ValueError) as error:
        known = ", ".join(FailureClass)
        raise QueueError(f"a failure needs 'message' and a 'class' among {known}: got {dict(document)!r}") from error


def _departure(machines: Sequence[Leaving]) -> str:
    """What becomes of which machines when, for people."""
    addresses = ", ".join(machine.address for machine in machines)
    times = [machine.leaves_at for machine in machines if machine.leaves_at is not None]
    when = f" at {datetime.fromtimestamp(min(times), UTC):%Y-%m-%d %H:%M:%S} UTC" if times else ""
    return f"node{'s' if len(machines) > 1 else ''} {addresses} will leave the cluster{when}"


def _earlier(tx: Transaction, spec: Document) -> Document | None:
    """The latest job that has done what this one is to do, at the same place."""
    lane = lane_of(spec)
    if lane is None or not spec.get("reuse", False):
        return None
    equal = (job for job in tx.line.succeeded_in(lane) if work_of(job.spec) == work_of(spec))
    return next(({"job_id": job.id, "result": job.result} for job in equal), None)
