"""The door to MLflow's training side: one run a job across all its attempts, found by its tags or made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlflow
from mlflow.entities import Param, RunTag
from mlflow.exceptions import MlflowException

from segfleet.registry.sent_once import sent_once
from segfleet.spec.kinds import SearchSpec, TrainSpec
from segfleet.spec.resolve import to_document
from segfleet_jobs.patience import Patience, Wait
from segfleet_jobs.version import code_version
from segfleet_pipelines.manifest import Manifest

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_. :/-]")
_GONE = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})


@dataclass(frozen=True, slots=True)
class Child:
    """A trial's run below its search's.

    Attributes:
        parent: The search's run.
        number: Of the trial.
        kind: trial or final.
        tags: What else the run says of it.
    """

    parent: str
    number: int
    kind: str
    tags: Mapping[str, str]

    def identity(self, job_id: str) -> dict[str, str]:
        """The tags by which it is found: it is not the job's own run."""
        return {"segfleet.search": job_id, "segfleet.trial": str(self.number)}


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A run as plain data: whoever has it can open the run, at any time and on any machine.

    Attributes:
        experiment: Its name.
        name: Of the run.
        identity: Tags by which the run is found.
        tags: What else it says from the moment it is made.
        data_tags: What else there is to say of the data.
        document: The spec.
    """

    experiment: str
    name: str
    identity: Mapping[str, str]
    tags: Mapping[str, str]
    data_tags: Mapping[str, str]
    document: Mapping[str, Any]


def plan_run(
    job_id: str,
    spec: TrainSpec | SearchSpec,
    manifest: Manifest,
    data_tags: Mapping[str, str] | None = None,
    child: Child | None = None,
) -> RunPlan:
    """The one run of a job or trial, with the spec, the code version and the data's id; asks nobody.

    Args:
        job_id: Of the job.
        spec: Of the job or trial.
        manifest: Of the dataset that is validated on.
        data_tags: What else there is to say of the data.
        child: Given for a trial of the job.
    """
    name, tags = (
        f"{spec.name} {job_id}",
        {
            "segfleet.code_version": code_version(),
            "segfleet.dataset": manifest.name,
            "segfleet.content_id": manifest.content_id,
        },
    )
    identity = {"segfleet.job": job_id}
    if child is not None:
        name, identity = f"{name} {child.kind} {child.number}", child.identity(job_id)
        tags |= {"mlflow.parentRunId": child.parent, "segfleet.trial_kind": child.kind, **child.tags}
    return RunPlan(f"segfleet/{spec.queue.project}", name, identity, tags, data_tags or {}, to_document(spec))


def open_run(plan: RunPlan, known: str | None = None, patience: Wait | None = None) -> str:
    """The planned run, found or made, and running; its id.

    Args:
        plan: Of the run.
        known: Its id, if somebody has opened it before; another is found or made if that one is gone.
        patience: Makes each of the calls, as `Patience` does.

    Raises:
        ServiceError: MLflow cannot be reached.
    """
    client, wait = mlflow.MlflowClient(), patience or Patience()
    if known and wait(lambda: _is_active(client, known)):
        run_id = known
    else:
        experiment_id = wait(lambda: find_experiment(client, plan.experiment))
        run_id = wait(lambda: _find_or_make(client, experiment_id, plan))
    wait(lambda: client.update_run(run_id, status="RUNNING"))
    # Again for a run that was found: the attempt that made it may have died before it came to this.
    params = [Param(key, str(value)) for key, value in flatten(plan.document).items()]
    tags = [RunTag(key, value) for key, value in plan.data_tags.items()]
    wait(lambda: client.log_batch(run_id, params=params, tags=tags))
    wait(lambda: client.log_dict(run_id, dict(plan.document), "spec.json"))
    return run_id


def _is_active(client: mlflow.MlflowClient, run_id: str) -> bool:
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code in _GONE:
            return False
        raise


def _find_or_make(client: mlflow.MlflowClient, experiment_id: str, plan: RunPlan) -> str:
    oldest = _oldest(client, experiment_id, plan)
    if oldest is not None:
        return oldest
    with sent_once():
        made = client.create_run(experiment_id, tags={**plan.identity, **plan.tags}, run_name=plan.name)
    # Another process may have looked and made one at the same time: all take the same.
    run_id, oldest = str(made.info.run_id), _oldest(client, experiment_id, plan)
    if oldest in (None, run_id):
        return run_id
    client.delete_run(run_id)
    return str(oldest)


def _oldest(client: mlflow.MlflowClient, experiment_id: str, plan: RunPlan) -> str | None:
    known_by = " and ".join(f"tags.`{key}` = '{value}'" for key, value in plan.identity.items())
    order = ["attributes.start_time ASC"]
    runs = client.search_runs([experiment_id], known_by, max_results=1, order_by=order)
    return str(runs[0].info.run_id) if runs else None


def find_experiment(client: mlflow.MlflowClient, name: str) -> str:
    """Id of the experiment of this name, made if there is none."""
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    try:
        return str(client.create_experiment(name))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return find_experiment(client, name)  # another first job of the project was quicker


def metric_name(name: str) -> str:
    """A curve's name as MLflow takes it: only letters, digits and a few signs, where class names may hold anything."""
    return _NOT_IN_NAMES.sub("_", name)


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def end_run(run_id: str, summary: Mapping[str, Any], patience: Patience | None = None) -> None:
    """Close the run with the result's plain figures as tags, and the whole result as a file.

    Raises:
        ServiceError: MLflow stayed away.
    """
    client, wait = mlflow.MlflowClient(), patience or Patience()
    tags = [RunTag(f"segfleet.{key}", str(summary[key])) for key in ("miou", "best_step") if key in summary]
    wait(lambda: client.log_dict(run_id, dict(summary), "result.json"))
    wait(lambda: client.log_batch(run_id, tags=tags))
    wait(lambda: client.set_terminated(run_id, status="FINISHED"))


def fail_run(run_id: str, message: str) -> None:
    """Mark the run failed, if MLflow answers; a later attempt reopens it."""
    client = mlflow.MlflowClient()
    try:
        client.set_tag(run_id, "segfleet.error", message[:2000])
        client.set_terminated(run_id, status="FAILED")
    except MlflowException as error:
        # The failure itself must reach the queue, whatever becomes of the note about it.
        print(f"segfleet: MLflow was not told of the failure: {error}", flush=True)
