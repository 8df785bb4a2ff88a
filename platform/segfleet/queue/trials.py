"""Trials of searches: what a search's attempt tells of them, and the only place where they change state.

A trial is plain data keyed by job and number. waiting -> running -> succeeded | stopped | failed; a later attempt takes
over a running trial by moving it to running again. Every call may be asked again after a lost answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from segfleet.errors import QueueError
from segfleet.queue import fencing, lifecycle
from segfleet.queue.clock import Clock
from segfleet.queue.model import Document, Job, clean_text
from segfleet.queue.store import LostRaceError, Store, Transaction

TrialKind = Literal["trial", "final"]
TrialState = Literal["waiting", "running", "succeeded", "stopped", "failed"]

ENDED = frozenset({"succeeded", "stopped", "failed"})
MOVES: dict[str, frozenset[str]] = {
    "waiting": frozenset({"running", "stopped", "failed"}),
    "running": ENDED | {"running"},
    "succeeded": frozenset(),
    "stopped": frozenset(),
    "failed": frozenset(),
}
MAX_WHY_CHARS = 4000
MAX_REPORTS = 10_000


class TrialDesk:
    """Trials as attempts write them and people read them; safe to share between threads.

    Every write needs the token of the search's living attempt, and is stored with that check in one transaction.

    Args:
        store: The database.
        clock: Seconds since the epoch.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock

    def of_job(self, job_id: str) -> tuple[Job, list[Document]]:
        """A search and its trials by number, for whoever may look.

        Raises:
            UnknownJobError: no such job.
            QueueError: the job is no search.
        """
        with self._store.read() as tx:
            job = tx.job(job_id)
            _require_search(job)
            return job, tx.trials.all_of(job_id)

    def of_attempt(self, attempt_id: str, token: str) -> list[Document]:
        """All trials of the attempt's search, by number.

        Raises:
            AttemptFencedError: the attempt has lost its right to write.
        """
        with self._store.read() as tx:
            job, _ = fencing.fenced(tx, attempt_id, token)
            return tx.trials.all_of(job.id)

    def add(
        self, attempt_id: str, token: str, number: int, kind: TrialKind, params: Document, num_steps: int
    ) -> Document:
        """Note a trial before it runs; the same again changes nothing.

        Args:
            attempt_id: The search's attempt.
            token: Its token.
            number: From 1.
            kind: `final` is the retraining of the best choice.
            params: Value of each path of the spec that the trial varies.
            num_steps: Length of its training, optimiser steps.

        Raises:
            AttemptFencedError: the attempt has lost its right to write.
            QueueError: the number belongs to other parameters, or the job is no search.
        """
        with self._store.write() as tx:
            job, attempt = fencing.fenced(tx, attempt_id, token)
            _require_search(job)
            known = tx.trials.get(job.id, number)
            if known is not None:
                if (known["kind"], known["params"], known["num_steps"]) != (kind, params, num_steps):
                    raise QueueError(f"trial {number} of {job.id} is there already, with other parameters")
                return known
            now = self._clock()
            tx.trials.insert(
                {
                    "job_id": job.id,
                    "number": number,
                    "kind": kind,
                    "params": params,
                    "state": "waiting",
                    "why": "",
                    "step": 0,
                    "num_steps": num_steps,
                    "reports": [],
                    "worker_seconds": 0.0,
                    "attempt": attempt.number,
                    "created_at": now,
                    "updated_at": now,
                }
            )
            return _known(tx, job, number)

    def move(
        self,
        attempt_id: str,
        token: str,
        number: int,
        state: TrialState,
        *,
        why: str = "",
        mlflow_run: str | None = None,
        worker_seconds: float | None = None,
    ) -> Document:
        """Change a trial's state; the end it has already is accepted again.

        Args:
            attempt_id: The search's attempt.
            token: Its token.
            number: The trial.
            state: Where it is now.
            why: Why it was stopped or has failed.
            mlflow_run: Its run; None keeps what is known.
            worker_seconds: Over all its attempts so far; a lower figure than the known one is passed over.

        Raises:
            AttemptFencedError: the attempt has lost its right to write.
            QueueError: no such trial, or no such move.
        """
        with self._store.write() as tx:
            job, attempt = fencing.fenced(tx, attempt_id, token)
            trial, now = _known(tx, job, number), self._clock()
            if state == trial["state"] and state in ENDED:
                return trial
            if state not in MOVES[trial["state"]]:
                raise QueueError(f"trial {number} of {job.id} is {trial['state']}, it cannot become {state}")
            changes: Document = {"state": state, "attempt": attempt.number, "why": clean_text(why)[:MAX_WHY_CHARS]}
            if state == "running" and trial["started_at"] is None:
                changes["started_at"] = now
            if state in ENDED:
                changes["finished_at"] = now
            if mlflow_run is not None:
                changes["mlflow_run"] = mlflow_run
            if worker_seconds is not None:
                changes["worker_seconds"] = max(worker_seconds, trial["worker_seconds"])
            return _changed(tx, job, trial, changes, now)

    def report(self, attempt_id: str, token: str, number: int, report: Document) -> Document:
        """Append what a validation has shown; a validation that is known already stays as it was.

        Args:
            attempt_id: The search's attempt.
            token: Its token.
            number: The trial.
            report: {"validation" (from 1), "step", "value", "miou", "seconds"}; a value that is not finite is None. It
                is stored with "at", seconds since the epoch: the order of all trials' validations.

        Raises:
            AttemptFencedError: the attempt has lost its right to write.
            QueueError: no such trial, it does not run, a validation was left out, or the step is beyond its last.
        """
        with self._store.write() as tx:
            job, _ = fencing.fenced(tx, attempt_id, token)
            trial = _known(tx, job, number)
            reports, validation = trial["reports"], report["validation"]
            if validation <= len(reports):
                return trial
            if validation != len(reports) + 1 or validation > MAX_REPORTS:
                raise QueueError(f"trial {number} of {job.id} has {len(reports)} reports, {validation} is not the next")
            _require_running(job, trial, report["step"])
            now = self._clock()
            changes = {"reports": [*reports, {**report, "at": now}], "step": max(trial["step"], report["step"])}
            value, best = report["value"], trial["best_value"]
            if value is not None and (best is None or _is_better(value, best, job.spec["search"]["mode"])):
                changes |= {"best_value": value, "best_step": report["step"]}
            return _changed(tx, job, trial, changes, now)

    def set_checkpoint(self, attempt_id: str, token: str, number: int, checkpoint: Document) -> Document:
        """Point a trial at a checkpoint that is complete and durable; within one group of workers the step only rises.

        It counts as progress of the whole search, as a training's checkpoint does for the budget of retries.

        Raises:
            AttemptFencedError: the attempt has lost its right to write.
            QueueError: no such trial, it does not run, or the step is not above the one the group has set or
                beyond the trial's last.
        """
        with self._store.write() as tx:
            job, attempt = fencing.fenced(tx, attempt_id, token)
            trial, now = _known(tx, job, number), self._clock()
            document, last = fencing.signed(checkpoint, attempt, token), trial["checkpoint"]
            if document == last:
                return trial
            step = checkpoint["step"]
            _require_running(job, trial, step)
            if fencing.is_same_writer(last, document) and step <= last["step"]:
                raise QueueError(f"checkpoint of step {step} of trial {number} comes after that of step {last['step']}")
            changed = _changed(tx, job, trial, {"checkpoint": document, "step": max(trial["step"], step)}, now)
            detail = {"trial": number, "trial_step": step, "step": tx.trials.steps_done(job.id)}
            lifecycle.note(tx, job, now=now, kind="checkpoint", who=attempt.id, detail=detail)
            return changed

    def checkpoint(self, attempt_id: str, token: str, number: int) -> Document | None:
        """A trial's latest checkpoint.

        Raises:
            AttemptFencedError: the attempt has lost its right to write.
            QueueError: no such trial.
        """
        with self._store.read() as tx:
            job, _ = fencing.fenced(tx, attempt_id, token)
            found: Document | None = _known(tx, job, number)["checkpoint"]
            return found

    def measured(self, attempt_id: str, token: str, number: int, figures: Mapping[str, Any]) -> Document:
        """Note size and speed of a trial's model; figures that are None keep what is known.

        Args:
            attempt_id: The search's attempt.
            token: Its token.
            number: The trial.
            figures: {"parameters", "images_per_s", "peak_memory_mib"}.

        Raises:
            AttemptFencedError: the attempt has lost its right to write.
            QueueError: no such trial.
        """
        given = {name: value for name, value in figures.items() if value is not None}
        with self._store.write() as tx:
            job, _ = fencing.fenced(tx, attempt_id, token)
            trial = _known(tx, job, number)
            return _changed(tx, job, trial, given, self._clock()) if given else trial


def _require_search(job: Job) -> None:
    if job.kind != "search":
        raise QueueError(f"job {job.id} is of kind {job.kind!r}: only searches have trials")


def _require_running(job: Job, trial: Document, step: int) -> None:
    if trial["state"] != "running":
        raise QueueError(f"trial {trial['number']} of {job.id} is {trial['state']}, not running")
    if step > trial["num_steps"]:
        raise QueueError(f"trial {trial['number']} of {job.id} has {trial['num_steps']} steps, {step} is beyond them")


def _known(tx: Transaction, job: Job, number: int) -> Document:
    trial = tx.trials.get(job.id, number)
    if trial is None:
        raise QueueError(f"job {job.id} has no trial {number}")
    return trial


def _changed(tx: Transaction, job: Job, trial: Document, changes: Document, now: float) -> Document:
    if tx.trials.change(trial, {**changes, "updated_at": now}) != 1:
        raise LostRaceError(f"trial {trial['number']} of {job.id}")
    return _known(tx, job, trial["number"])


def _is_better(value: float, best: float, mode: str) -> bool:
    return value > best if mode == "max" else value < best
