"""One trial of a search: a training in a group of workers of its own, which any later attempt can run again.

It goes on from its checkpoint. Whoever runs it gets an outcome and writes it down; here only its beginning, its
validations and its checkpoints are told.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from segfleet.errors import AttemptFencedError
from segfleet.spec.kinds import SearchSpec, TrainSpec
from segfleet.spec.resolve import to_document
from segfleet.spec.search import trial_spec
from segfleet_jobs.attempt import AttemptClient, Grant, TrialClient, Yielded
from segfleet_jobs.checked_data import CheckedData, check_data
from segfleet_jobs.checkpoint import CheckpointRecord
from segfleet_jobs.checkpoint_bucket import open_checkpoints
from segfleet_jobs.checkpoint_store import prune
from segfleet_jobs.failure import classify
from segfleet_jobs.group import Member, OneOfMany, run_group
from segfleet_jobs.patience import Patience
from segfleet_jobs.replay import give_up, settle
from segfleet_jobs.run_plan import Child, RunPlan, plan_run
from segfleet_jobs.spool import SPOOL
from segfleet_jobs.tracking import end_run, open_run
from segfleet_jobs.trial_task import Task, stop_sign
from segfleet_pipelines.manifest import Manifest

# Losses of workers without a new checkpoint between them, after which the trial has failed.
MAX_LOSSES = 3
_LOST = ("infra", "node")

State = Literal["succeeded", "stopped", "failed", "yielded"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trial has ended for now.

    Attributes:
        state: `yielded`: it made room and goes on later.
        why: Why it was stopped or has failed.
        worker_seconds: Over all its attempts.
        failure: Class of the failure.
        result: The training's, if it came to its end.
        run_id: Its run.
    """

    state: State
    why: str
    worker_seconds: float
    failure: str = ""
    result: dict[str, Any] | None = None
    run_id: str = ""


@dataclass(frozen=True, slots=True)
class Search:
    """What the trials of a search have in common.

    Attributes:
        grant: Of the search's attempt.
        spec: The search.
        run_id: MLflow's run of the search.
        checked: The check of the base's data.
    """

    grant: Grant
    spec: SearchSpec
    run_id: str
    checked: CheckedData

    def task(
        self, trial: Mapping[str, Any], spec: TrainSpec | None = None, tags: Mapping[str, str] | None = None
    ) -> Task:
        """What there is to do for a trial.

        Args:
            trial: As recorded.
            spec: The training; None: as its parameters say.
            tags: What its run says of it.

        Raises:
            SpecError: its parameters make no training.
        """
        spec = spec or trial_spec(self.spec, trial["params"])
        pointer = trial["checkpoint"]
        reports = [report for report in trial["reports"] if pointer and report["step"] <= pointer["step"]]
        return Task(
            grant=self.grant,
            number=trial["number"],
            kind=trial["kind"],
            spec=spec,
            metric=self.spec.search.metric,
            parent_run=self.run_id,
            tags=tags or {},
            checked=self.checked if spec.data == self.spec.base.data else None,
            worker_seconds=trial["worker_seconds"],
            seconds=max((report["seconds"] for report in reports), default=0.0),
        )


def run_numbered(number: int, callbacks: Sequence[Any], search: Search) -> dict[str, Any]:
    """Run a trial of a search, from what is recorded of it, in a process of its own; how it ended, as plain data."""
    client = AttemptClient(search.grant.credentials)
    try:
        trial = next(trial for trial in client.trials() if trial["number"] == number)
    finally:
        client.close()
    outcome = run_trial(search.task(trial), callbacks)
    return {"outcome": outcome.state, "why": outcome.why, "worker_seconds": outcome.worker_seconds}


def run_trial(task: Task, callbacks: Sequence[Any] = ()) -> Outcome:
    """Run a trial from wherever it stands until it ends, over losses of its workers.

    Args:
        task: The trial.
        callbacks: Hear of its validations; see `OneOfMany`.

    Raises:
        AttemptFencedError: the attempt has lost the search.
        ServiceError: the service or MLflow stayed away.
    """
    client = AttemptClient(task.grant.credentials)
    begin = time.monotonic()
    try:
        outcome = _run(task, client.trial(task.number), callbacks)
        record = client.trial(task.number).latest_checkpoint()
    finally:
        client.close()
    if outcome.state != "yielded" and record is not None:
        store = open_checkpoints(task.checkpoints, task.grant.credentials.attempt_id)
        prune(store, CheckpointRecord.from_dict(record), latest=1)
    spent = task.worker_seconds + task.spec.resources.min_workers * (time.monotonic() - begin)
    return replace(outcome, worker_seconds=round(spent, 3))


def _run(task: Task, trial: TrialClient, callbacks: Sequence[Any]) -> Outcome:
    try:
        manifest = Manifest.load(task.spec.data.shards)
        checked = task.checked or check_data(task.spec.data)
    except AttemptFencedError:
        raise
    except Exception as error:
        failure, why = classify(error)
        return Outcome("failed", why, 0.0, failure)
    run, spool = _plan(task, manifest, checked), task.folder / SPOOL
    run_id = open_run(run)
    trial.state("running", mlflow_run=run_id)
    outcome = _run_groups(task, trial, checked, run, callbacks)
    if outcome.state == "failed":
        give_up(spool, run, outcome.why)
    elif outcome.state != "yielded":
        settle(spool, run, Patience())
        end_run(run_id, outcome.result or {"stopped": outcome.why or "stopped by the search"})
    return replace(outcome, run_id=run_id)


def close_run(task: Task, trial: Mapping[str, Any]) -> None:
    """End the run of a trial whose own process was lost before it could: a killed driver takes its trials with it.

    Args:
        task: The trial.
        trial: As recorded: stopped, failed, or of a search that ends without it.

    Raises:
        ServiceError: MLflow stayed away.
    """
    run, spool = _plan(task, Manifest.load(task.spec.data.shards), task.checked), task.folder / SPOOL
    if trial["state"] == "stopped":
        run_id = settle(spool, run, Patience())
        end_run(run_id, {"stopped": trial["why"]})
    else:
        give_up(spool, run, trial["why"] or "the search has ended before it")


def _plan(task: Task, manifest: Manifest, checked: CheckedData | None) -> RunPlan:
    child = Child(task.parent_run, task.number, task.kind, task.tags)
    return plan_run(task.grant.job_id, task.spec, manifest, checked.tags if checked else {}, child)


def _run_groups(
    task: Task, trial: TrialClient, checked: CheckedData, run: RunPlan, callbacks: Sequence[Any]
) -> Outcome:
    """One group after the other until one ends by itself."""
    config = {
        "task": task,
        "spec": to_document(task.spec),
        "skips": checked.skips,
        "content_ids": checked.content_ids,
        "run": run,
        "job_folder": str(task.folder),
        "checkpoints": task.checkpoints,
        "attempt_folder": str(task.folder / task.grant.credentials.attempt_id),
    }
    task.folder.mkdir(parents=True, exist_ok=True)
    losses, last_step = 0, _step(trial)
    while True:
        # Not by counting: this process may be the second of the attempt that runs the trial.
        name = f"{task.grant.credentials.attempt_id}-{uuid.uuid4().hex}"
        one = OneOfMany(name, str(task.folder / "ray"), f"trial{task.number}", callbacks=callbacks)
        try:
            result = run_group(task.grant, task.spec.resources, train_trial, config, one)
        except Exception as error:
            _raise_if_fenced(error)
            if stop_sign(task.folder).exists():
                return Outcome("stopped", "", 0.0)
            failure, why = classify(error)
            step = _step(trial)
            losses, last_step = (losses + 1 if step == last_step else 1), step
            if failure not in _LOST or losses > MAX_LOSSES:
                return Outcome("failed", why, 0.0, failure)
            print(f"segfleet: trial {task.number} lost its workers and goes on from step {step}: {why}", flush=True)
            continue
        if not isinstance(result, Yielded):
            return Outcome("succeeded", "", 0.0, result=result)
        return Outcome("stopped" if stop_sign(task.folder).exists() else "yielded", "", 0.0)


def train_trial(member: Member, config: Mapping[str, Any]) -> dict[str, Any] | Yielded:
    """One rank's part."""
    # Only a worker needs the model's code, which takes longer to import than all the rest: the trial's own process,
    # and the search's, begin without it.
    from segfleet_jobs.trial_body import train_one_rank

    return train_one_rank(member, config)


def _step(trial: TrialClient) -> int:
    return int((trial.latest_checkpoint() or {"step": 0})["step"])


def _raise_if_fenced(error: BaseException) -> None:
    failures = [error, *(getattr(error, "worker_failures", None) or {}).values()]
    for failure in failures:
        inner = getattr(failure, "_base_exc", failure)
        if isinstance(inner, AttemptFencedError):
            raise inner from error
