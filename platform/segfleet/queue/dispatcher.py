"""The service's hands: looks at Ray and the clock, and carries out what the pure parts decide.

One turn is `step`: settle every open attempt (adopt, lose, stop, cancel, close; copy its log), then start what the
scheduler wants started. A turn may be cut off anywhere, by `kill -9` too: what it had committed is found by the next.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from dataclasses import dataclass

from segfleet.cluster.launcher import ClusterUnreachableError, SubmissionRefusedError
from segfleet.errors import LeadershipLostError, QueueUnavailableError, SegfleetError
from segfleet.log_context import about
from segfleet.queue import fencing, lifecycle, reconcile
from segfleet.queue.board import Board, Publisher
from segfleet.queue.causes import diagnose, log_tail
from segfleet.queue.eye import ClusterEye
from segfleet.queue.leadership import Term
from segfleet.queue.leases import LeaseWatch
from segfleet.queue.logcopy import LogCopies, log_path
from segfleet.queue.model import Attempt, Job
from segfleet.queue.planner import Planner
from segfleet.queue.policy import policy_of
from segfleet.queue.reconcile import Sight
from segfleet.queue.scheduling.values import Policy, Preempt, Start, Wait
from segfleet.queue.sending import ClusterDoor, Sender
from segfleet.queue.service import Queue
from segfleet.queue.states import AttemptState, FailureClass, JobState, StopFor
from segfleet.settings import Settings
from segfleet.telemetry import PASS_SECONDS, TURNS

STOP_EVERY_S = 5.0
COMPLAIN_EVERY_S = 60.0
# Seconds of rest for each second that a turn has computed.
_REST = 4.0
_MAX_RAY_MESSAGE = 2000

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Pace:
    """Keeps an action on something to once in a while."""

    every_s: float
    last: dict[str, float]

    def is_due(self, key: str, now: float) -> bool:
        if now - self.last.get(key, float("-inf")) < self.every_s:
            return False
        self.last[key] = now
        return True


class Dispatcher:
    """Moves jobs between the queue and the cluster, for as long as its server leads the database.

    Args:
        queue: The jobs.
        lead: The right to write, which ends when another server leads.
        launcher: The cluster.
        settings: Addresses for the jobs' environment, timings, and the folder of logs.
        python: Interpreter on the cluster's nodes; default: the service's own.
    """

    def __init__(
        self, queue: Queue, lead: Term, launcher: ClusterDoor, settings: Settings, python: str | None = None
    ) -> None:
        self._queue = queue
        self._lead = lead
        self._launcher = launcher
        self._settings = settings
        self._leases = LeaseWatch(settings.lease_s, settings.start_deadline_s)
        self._sender = Sender(lead, launcher, settings, python)
        self._logs = LogCopies(settings.home.logs, launcher.logs, queue.clock)
        self._ended_at: dict[str, float] = {}
        self._stop_pace = _Pace(STOP_EVERY_S, {})
        self._complaint_pace = _Pace(COMPLAIN_EVERY_S, {})
        self._planner = Planner(queue.store, lead, hands_over=settings.hands_over)
        self._publisher = Publisher(lead, queue.store.is_shared)
        self._eye = ClusterEye(launcher, grows=settings.hands_over)
        self._grace_s = Policy().grace_s

    def run(self, stop: threading.Event) -> None:
        """Take turns until told to stop, or another server leads or may.

        A turn that fails is logged, and the next one tries again.
        """
        while not stop.is_set():
            outcome, began = "failed", time.thread_time()
            try:
                self.step(self._queue.clock())
                outcome = "done"
            except LeadershipLostError as error:
                logger.warning("dispatcher: %s", error)
                return
            except SegfleetError as error:
                logger.warning("dispatcher: %s", error)
            except Exception:
                logger.exception("dispatcher: a turn failed")
            finally:
                TURNS.labels(outcome).inc()
            # A long line makes turns long, and they must leave the processor to those who ask.
            stop.wait(max(self._settings.poll_s, _REST * (time.thread_time() - began)))

    def step(self, now: float) -> None:
        """Take one turn.

        Args:
            now: Seconds since the epoch, by a clock that does not jump.

        Raises:
            QueueUnavailableError: the database refuses; nothing is lost.
            LeadershipLostError: another server leads, or may.
        """
        self._lead.require()
        self._look(now)
        self._settle(now)
        self._dispatch(now)
        self._publisher.publish(self._queue.board, now)
        self._leases.rest(self._queue.clock())

    def _look(self, now: float) -> None:
        with self._queue.store.read() as tx:
            leaving = tx.nodes.leaving()
        self._eye.look(leaving, now)

    def _confine(self, error: Exception, who: str, now: float) -> None:
        """Keep trouble with one attempt or job from the others, unless database or cluster are not there at all."""
        if isinstance(error, QueueUnavailableError):
            raise error
        if isinstance(error, ClusterUnreachableError):
            self._eye.lose(error)
        elif self._complaint_pace.is_due(who, now):
            logger.warning("%s: %s", who, error, exc_info=None if isinstance(error, SegfleetError) else error)

    # Open attempts

    def _settle(self, now: float) -> None:
        with self._queue.store.read() as tx:
            attempts = tx.open_attempts()
            jobs = {job.id: job for job in tx.holding_jobs()}
            self._grace_s = policy_of(tx.policies())[0].grace_s
        late = self._leases.overdue((attempt for attempt in attempts if attempt.is_alive), now)
        for attempt in attempts:
            job = jobs.get(attempt.job_id)
            if job is None:
                continue
            with about(job=job.id, attempt=attempt.id):
                try:
                    self._settle_one(job, attempt, late.get(attempt.id, ""), now)
                except Exception as error:
                    self._confine(error, attempt.id, now)

    def _settle_one(self, job: Job, attempt: Attempt, overdue: str, now: float) -> None:
        sight = self._sight(attempt, now)
        action: reconcile.Action
        if sight is not None and sight.is_held and attempt.state == AttemptState.STARTING:
            self._leases.excuse(attempt.id)
            overdue = ""
        if attempt.is_alive:
            over_time = self._over_time(job, now)
            asked_at = attempt.stop_asked_at
            action = reconcile.decide_alive(
                job,
                attempt,
                sight,
                overdue=overdue,
                over_time=over_time,
                out_of_grace=asked_at is not None and now - asked_at > self._grace_s,
            )
        else:
            age_s = now - self._ended_at.setdefault(attempt.id, now)
            action = reconcile.decide_ended(attempt, sight, age_s)
        self._apply(action, job, attempt, now)
        if sight is not None and sight.status is not None and not isinstance(action, reconcile.Close):
            self._logs.follow(attempt.id)

    def _sight(self, attempt: Attempt, now: float) -> Sight | None:
        if self._eye.session is None:
            return None
        session = self._eye.session
        try:
            return Sight(session, self._launcher.status(attempt.id))
        except Exception as error:
            self._confine(error, attempt.id, now)
        return None if self._eye.session is None else Sight(session, None, failed=True)

    def _over_time(self, job: Job, now: float) -> str:
        limit_s = job.time_limit_s
        if limit_s is None:
            return ""
        with self._queue.store.read() as tx:
            used_s = tx.used_s(job.id, job.budget_from, now)
        limit = job.spec["queue"]["time_limit"]
        return f"ran for {used_s:.0f} s, queue.time_limit is {limit}" if used_s > limit_s else ""

    def _apply(self, action: reconcile.Action, job: Job, attempt: Attempt, now: float) -> None:
        match action:
            case reconcile.Submit():
                self._post(job, attempt, now)
            case reconcile.Adopt(session):
                self._mark_accepted(attempt, session)
            case reconcile.Lose(message, failure):
                self._end(attempt, failure, message[-_MAX_RAY_MESSAGE:], now)
            case reconcile.Expire(message):
                self._end(attempt, FailureClass.TIME_LIMIT, message, now)
            case reconcile.Stop():
                if self._stop_pace.is_due(attempt.id, now):
                    self._lead.require()
                    self._launcher.stop(attempt.id)
            case reconcile.Cancelled():
                self._end_cancelled(attempt, now)
            case reconcile.Preempted():
                self._end_preempted(attempt, now)
            case reconcile.Close(abandoned, without_log):
                if self._has_whole_log(attempt, now, without_log):
                    self._close(attempt, abandoned, now)
                    if attempt.state != AttemptState.SUCCEEDED:
                        self._eye.look_again()
            case reconcile.Leave():
                pass

    def _end(self, attempt: Attempt, failure: FailureClass, message: str, now: float) -> None:
        with self._lead.write() as tx:
            job = tx.job(attempt.job_id)
            fresh = tx.attempt(attempt.id)
            # A completion, a report or a heartbeat may have come in since the decision: it wins.
            if fresh is None or not fresh.is_alive or fresh.beats != attempt.beats:
                return
            lifecycle.end_failed(tx, job, fresh, failure, message, now=now, lost=True)
        logger.info("%s: given up, %s", attempt.id, message.splitlines()[0] if message else "no reason")

    def _end_cancelled(self, attempt: Attempt, now: float) -> None:
        with self._lead.write() as tx:
            job = tx.job(attempt.job_id)
            fresh = tx.attempt(attempt.id)
            if fresh is not None and fresh.is_alive:
                lifecycle.end_cancelled(tx, job, fresh, now=now)

    def _end_preempted(self, attempt: Attempt, now: float) -> None:
        with self._lead.write() as tx:
            job = tx.job(attempt.job_id)
            fresh = tx.attempt(attempt.id)
            if fresh is not None and fresh.is_alive and job.state == JobState.PREEMPTING:
                lifecycle.end_preempted(tx, job, fresh, who=lifecycle.SERVICE, now=now)

    def _has_whole_log(self, attempt: Attempt, now: float, without: bool) -> bool:
        """Whether the log is copied to its end, or to where it will stay."""
        try:
            if self._logs.finish(attempt.id):
                return True
        except Exception as error:
            self._confine(error, attempt.id, now)
        if without:
            self._logs.give_up(attempt.id)
        return without

    def _close(self, attempt: Attempt, abandoned: bool, now: float) -> None:
        log = log_tail(log_path(self._settings.home.logs, attempt.id)) if attempt.failure is not None else ""
        with self._lead.write() as tx:
            lifecycle.close(tx, attempt, abandoned=abandoned, now=now, cause=diagnose(log))
        for kept in (self._stop_pace.last, self._complaint_pace.last, self._ended_at):
            kept.pop(attempt.id, None)
        self._sender.forget(attempt.id)
        self._logs.forget(attempt.id)

    # New attempts

    def _dispatch(self, now: float) -> None:
        self._planner.resolve_dependencies(now)
        self._planner.end_late(now)
        eye = self._eye
        nodes = None if eye.trouble else eye.nodes
        with PASS_SECONDS.time():
            decisions = self._planner.decide(nodes, now, eye.trouble)
        waits = {decision.job_id: decision for decision in decisions if isinstance(decision, Wait)}
        self._queue.board = Board(nodes, eye.trouble, waits, eye.machines)
        for decision in decisions:
            if isinstance(decision, Wait) or eye.session is None:
                continue
            with about(job=decision.job_id):
                try:
                    if isinstance(decision, Start):
                        self._start(decision, now)
                    else:
                        self._preempt(decision, now)
                except Exception as error:
                    # The answer may be lost, not necessarily the submission: the next turn looks it up.
                    self._confine(error, decision.job_id, now)

    def _start(self, decision: Start, now: float) -> None:
        code = secrets.token_urlsafe(32)
        with self._lead.write() as tx:
            job = tx.job(decision.job_id)
            if job.state != JobState.QUEUED:
                return
            attempt = lifecycle.begin_attempt(tx, job, decision.workers, fencing.digest(code), now)
        self._sender.keep(attempt.id, code)
        self._post(job, attempt, now)

    def _preempt(self, decision: Preempt, now: float) -> None:
        with self._lead.write() as tx:
            job = tx.job(decision.job_id)
            attempts = tx.attempts_of(job.id)
            # It may have ended, or have been cancelled or paused, since the decision.
            if job.state != JobState.RUNNING or job.cancel_requested or attempts[-1].state != AttemptState.RUNNING:
                return
            lifecycle.ask_to_stop(
                tx, job, attempts[-1], StopFor.ROOM, who=lifecycle.SERVICE, now=now, reason=decision.reason
            )
        logger.info("%s: %s", decision.job_id, decision.reason)

    def _post(self, job: Job, attempt: Attempt, now: float) -> None:
        if self._eye.session is None:
            return
        session = self._eye.session
        try:
            self._sender.send(job, attempt)
        except SubmissionRefusedError as error:
            self._end(attempt, FailureClass.INFRA, str(error), now)
            return
        self._mark_accepted(attempt, session)

    def _mark_accepted(self, attempt: Attempt, session: str) -> None:
        with self._lead.write() as tx:
            tx.change_attempt(attempt.id, {"ray_session": session})
        self._sender.forget(attempt.id)
