"""What operators ask about retention: set rules, see what would go, let it go."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from segfleet.access import audit
from segfleet.access.roles import Identity
from segfleet.errors import Problem, SettingsError, SpecError
from segfleet.queue import lifecycle
from segfleet.queue.clock import Clock
from segfleet.queue.model import Document, Job
from segfleet.queue.states import JobState
from segfleet.queue.store import Store, Transaction
from segfleet.retention import files
from segfleet.retention.decision import Kind, Leaving, Piece, Rules, deletions, youngest_age_s
from segfleet.retention.rows import DELETED, ENDED

_log = logging.getLogger(__name__)
# One request deletes for so long at most; whoever asks goes on asking.
APPLY_S = 10.0


class Models(Protocol):
    """What retention asks of the registry."""

    def versions_by_job(self) -> dict[str, list[str]]:
        """NAME/VERSION of the registered versions, by the job that made them."""

    def runs_by_job(self) -> dict[str, list[str]]:
        """Ids of MLflow's runs, by job; those of trials belong to their search."""

    def remove_run(self, run_id: str) -> bool:
        """Delete a run and its files; False: a registered version comes from it, or it is gone."""


class Retention:
    """Plans and carries out deletions; nothing goes unless an operator has set rules and asks for it.

    Args:
        store: The database.
        clock: Seconds since the epoch.
        storage: Folder of the jobs' checkpoints.
        logs: Folder of the copies of logs.
        models: The registry.
    """

    def __init__(self, store: Store, clock: Clock, storage: Path, logs: Path, models: Models) -> None:
        self._store, self._clock, self._storage, self._logs, self._models = store, clock, storage, logs, models

    def rules(self) -> Document:
        """The rules as they hold, with their defaults."""
        with self._store.read() as tx:
            return Rules.model_validate(tx.retention.rules()).model_dump()

    def set_rules(self, rules: Mapping[str, Any]) -> Document:
        """Replace the rules; null is as not given.

        Raises:
            SpecError: unknown rule, or a value out of range.
        """
        given = {name: value for name, value in rules.items() if value is not None}
        try:
            Rules.model_validate(given)
        except ValidationError as error:
            items = error.errors(include_url=False, include_context=False, include_input=False)
            raise SpecError([Problem(".".join(map(str, e["loc"])), str(e["msg"])) for e in items], "rules") from error
        with self._store.write() as tx:
            tx.retention.set_rules(given)
        return self.rules()

    def plan(self) -> list[tuple[str, Piece]]:
        """(job, piece) of all that may go now, the longest ended job first.

        Raises:
            ServiceError: the registry does not answer, so that nobody knows what is needed.
        """
        rules, now = Rules.model_validate(self.rules()), self._clock()
        age_s = youngest_age_s(rules)
        if age_s is None:
            return []
        # After `now`: what is registered later comes from a job that had not ended by then, which stays.
        versions = self._models.versions_by_job()
        runs = self._models.runs_by_job() if rules.runs_after is not None else {}
        logs, stored = files.logs(self._logs), {entry.name for entry in os.scandir(self._storage)}
        with self._store.read() as tx:
            ended, needs = tx.retention.ended(now - age_s), tx.retention.needs()
        found = []
        for job_id in (row.id for row in ended):
            if job_id not in stored and job_id not in logs and job_id not in runs:
                continue
            pieces = [Piece(Kind.LOG, name, size) for name, size in logs.get(job_id, ())]
            pieces += [Piece(Kind.RUN, run_id, 0) for run_id in runs.get(job_id, ())]
            with self._store.read() as tx:
                job = tx.job(job_id)
                pieces += self._checkpoints(tx, job) if job_id in stored else []
            leaving = _leaving(job, needs.get(job_id, ""), tuple(versions.get(job_id, ())), tuple(pieces))
            found += [(job_id, piece) for piece in deletions(leaving, rules, now)]
        return found

    def apply(
        self, caller: Identity, ticks: Callable[[], float] = time.monotonic
    ) -> tuple[list[tuple[str, Piece]], int]:
        """Delete what may go, for a while; killed in between, the next one goes on.

        Args:
            caller: Who asks.
            ticks: Seconds of a clock that measures the time this takes.

        Returns:
            What is gone, and how many pieces are left to delete.
        """
        planned, until = self.plan(), ticks() + APPLY_S
        gone, left = [], 0
        for job_id, piece in planned:
            if ticks() > until:
                left += 1
                continue
            try:
                if self._let_go(job_id, piece, caller) and self._remove(piece):
                    gone.append((job_id, piece))
            except (OSError, SettingsError) as error:
                # The next pieces are none the worse for it, and the next run tries this one again.
                left += 1
                _log.warning("%s of %s could not be deleted: %s", piece.name, job_id, error)
                self._note_failure(job_id, piece, caller)
        return gone, left

    def _checkpoints(self, tx: Transaction, job: Job) -> list[Piece]:
        trials = {trial["number"]: trial for trial in tx.trials.all_of(job.id)}
        pieces = []
        for found in files.checkpoints(self._storage, job.id):
            of = None if found.trial is None else trials.get(found.trial)
            pointer = job.checkpoint if found.trial is None else (of or {}).get("checkpoint")
            best = {(pointer or {}).get("best_step"), ((job.result or {}) if of is None else of).get("best_step")}
            pieces.append(
                Piece(
                    Kind.CHECKPOINT,
                    found.path,
                    found.bytes,
                    is_best=found.step is not None and found.step in best,
                    is_latest=pointer is not None and Path(pointer["path"]) == self._storage / found.path,
                    is_remnant=found.step is None,
                )
            )
        return pieces

    def _let_go(self, job_id: str, piece: Piece, caller: Identity) -> bool:
        """Write down that a piece goes, before it does; False: the job has come back to life, or is needed now."""
        with self._store.write() as tx:
            job, now = tx.job(job_id), self._clock()
            if job.state not in ENDED or tx.retention.needed_by(job_id):
                return False
            tx.access.add_audit(_entry(now, caller, job_id, piece).row(audit.DONE))
            if piece.kind is Kind.CHECKPOINT and not piece.is_remnant:
                _forget(tx, job, piece, self._storage, caller.user, now)
        return True

    def _note_failure(self, job_id: str, piece: Piece, caller: Identity) -> None:
        entry = _entry(self._clock(), caller, job_id, piece)
        with self._store.write() as tx:
            tx.access.add_audit(entry.row("failed"))

    def _remove(self, piece: Piece) -> bool:
        if piece.kind is Kind.RUN:
            return self._models.remove_run(piece.name)
        return files.remove(self._storage if piece.kind is Kind.CHECKPOINT else self._logs, piece.name)


def _entry(now: float, caller: Identity, job_id: str, piece: Piece) -> audit.Entry:
    subject = f"{job_id} {piece.kind} {piece.name} {piece.bytes} bytes"
    return audit.Entry(now, caller.user, caller.token_id, "", "retention delete", subject)


def _forget(tx: Transaction, job: Job, piece: Piece, storage: Path, who: str, now: float) -> None:
    """Take a checkpoint out of the history, and away from whoever points to it."""
    trial = next((t for t in tx.trials.all_of(job.id) if _points_to(t["checkpoint"], storage / piece.name)), None)
    is_latest = _points_to(job.checkpoint, storage / piece.name)
    detail = {
        "message": "checkpoint deleted by retention",
        "path": piece.name,
        "bytes": piece.bytes,
        "is_latest": is_latest or trial is not None,
        "trial": None if trial is None else trial["number"],
    }
    lifecycle.note(tx, job, now=now, kind=DELETED, who=who, detail=detail)
    if trial is not None:
        tx.trials.change(trial, {"checkpoint": None, "updated_at": now})
    if is_latest:
        tx.change_job(job, {"checkpoint": None, "updated_at": now})


def _points_to(pointer: Document | None, path: Path) -> bool:
    return pointer is not None and Path(pointer["path"]) == path


def _leaving(job: Job, needed_by: str, versions: tuple[str, ...], pieces: tuple[Piece, ...]) -> Leaving:
    can_retry = job.state in (JobState.FAILED, JobState.CANCELLED)
    return Leaving(job.id, job.finished_at if job.state in ENDED else None, can_retry, needed_by, versions, pieces)


def as_document(job_id: str, piece: Piece) -> Document:
    """A piece as plain data."""
    return {"job": job_id, "kind": str(piece.kind), "name": piece.name, "bytes": piece.bytes}
