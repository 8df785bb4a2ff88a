"""`python -m segfleet_jobs.train`: a training job.

The driver claims the attempt, checks the data and hands the loop to the group of workers. A restarted group asks the
service where the job stands, like a first one. In the end the driver sees to it that MLflow has all that was told,
exports the best checkpoint and has the service register it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from segfleet.errors import AttemptFencedError, LaunchError
from segfleet.spec.kinds import JobSpec, TrainSpec
from segfleet.spec.resolve import to_document
from segfleet_jobs.attempt import AttemptClient, Grant, Heart, Yielded
from segfleet_jobs.best_model import register_best
from segfleet_jobs.checked_data import CheckedData, check_data
from segfleet_jobs.checkpoint_bucket import open_checkpoints
from segfleet_jobs.checkpoint_home import checkpoint_home
from segfleet_jobs.failure import classify
from segfleet_jobs.group import attempt_folder, run_group
from segfleet_jobs.links import train_alone
from segfleet_jobs.patience import WAITING, Patience
from segfleet_jobs.replay import give_up, settle
from segfleet_jobs.run_plan import RunPlan, plan_run
from segfleet_jobs.session import run_attempt
from segfleet_jobs.spool import SPOOL
from segfleet_jobs.tracking import end_run
from segfleet_pipelines.manifest import Manifest


def work(grant: Grant, spec: JobSpec, client: AttemptClient, heart: Heart) -> dict[str, Any] | Yielded:
    """Train, export and register.

    Raises:
        SegfleetError: wrong data or spec, or the training failed.
    """
    if not isinstance(spec, TrainSpec):
        raise LaunchError(f"job {grant.job_id} is of kind {spec.kind!r}, not train")
    heart.progress({"phase": "checking data", "num_steps": spec.train.steps})
    manifest = Manifest.load(spec.data.shards)
    data = check_data(spec.data)
    for warning in data.warnings:
        print(f"segfleet: look at the labels: {warning}", flush=True)
    for sample in data.left_out:
        print(f"segfleet: left out as damaged: {sample}", flush=True)
    heart.progress({"phase": "starting workers", "num_steps": spec.train.steps})
    run, spool = plan_run(grant.job_id, spec, manifest, data.tags), Path(grant.storage) / SPOOL
    try:
        result = _fit(grant, spec, data, run)
        if isinstance(result, Yielded):
            return result
        return _finish(result, run, grant, spec, manifest, client, heart)
    except AttemptFencedError:
        raise  # the run belongs to the attempt that has the job now
    except Exception as error:
        give_up(spool, run, classify(error)[1])
        raise


def _finish(
    result: dict[str, Any],
    run: RunPlan,
    grant: Grant,
    spec: TrainSpec,
    manifest: Manifest,
    client: AttemptClient,
    heart: Heart,
) -> dict[str, Any]:
    """What is left to do after the last step; an MLflow that is away is waited for, at every call."""
    at_end, folder = {"step": spec.train.steps, "num_steps": spec.train.steps}, Path(grant.storage)
    patience = Patience(on_wait=lambda: heart.progress({"phase": WAITING, **at_end}))
    heart.progress({"phase": "registering", **at_end})
    run_id = settle(folder / SPOOL, run, patience)
    model = None
    if spec.register_ is not None:
        tags = {"segfleet.job": grant.job_id}
        store = open_checkpoints(checkpoint_home(grant), grant.credentials.attempt_id)
        model = register_best(client, spec, manifest, run_id, store, result["best_step"], tags, patience)
    finished = {**result, "mlflow_run": run_id, "model": model}
    end_run(run_id, finished, patience)
    return finished


def _fit(grant: Grant, spec: TrainSpec, data: CheckedData, run: RunPlan) -> dict[str, Any] | Yielded:
    config = {
        "spec": to_document(spec),
        "skips": data.skips,
        "content_ids": data.content_ids,
        "run": run,
        "job_folder": grant.storage,
        "checkpoints": checkpoint_home(grant),
        "attempt_folder": str(attempt_folder(grant)),
    }
    return run_group(grant, spec.resources, train_alone, config)


if __name__ == "__main__":
    # By its import name, or the workers would get this module's functions by value.
    from segfleet_jobs.train import work as train_work

    sys.exit(run_attempt(train_work))
