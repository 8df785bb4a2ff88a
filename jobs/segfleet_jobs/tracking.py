"""The door to MLflow's training side: one run a job across all its attempts, found by its tags or made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.entities import Param, RunTag
from mlflow.exceptions import MlflowException

from segfleet.registry.sent_once import sent_once
from segfleet.spec.filling import leaves
from segfleet_jobs.patience import Patience, Wait
from segfleet_jobs.run_plan import RunPlan

_GONE = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})


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
    params = [Param(key, str(value)) for key, value in leaves(plan.document).items()]
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
