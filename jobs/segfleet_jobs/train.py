"""`python -m segfleet_jobs.train`: a training job.

The driver claims the attempt, checks the data, opens the MLflow run and hands the loop to the group of workers. A
restarted group asks the service where the job stands, like a first one. In the end the driver exports the best
checkpoint and has the service register it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segfleet.errors import AttemptFencedError, LaunchError
from segfleet.spec.kinds import JobSpec, TrainSpec
from segfleet.spec.resolve import to_document
from segfleet_jobs.attempt import AttemptClient, Grant, Heart, Yielded
from segfleet_jobs.best_model import register_best
from segfleet_jobs.checked_data import CheckedData, check_data
from segfleet_jobs.failure import classify
from segfleet_jobs.group import Member, attempt_folder, report, run_group
from segfleet_jobs.links import ServiceLink, train_rank
from segfleet_jobs.session import run_attempt
from segfleet_jobs.tracking import end_run, fail_run, open_run
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
    run_id = open_run(grant.job_id, spec, manifest, data.tags)
    job_folder = Path(grant.storage)
    try:
        result = _fit(grant, spec, data, run_id, job_folder)
        if isinstance(result, Yielded):
            return result
        heart.progress({"phase": "registering", "step": spec.train.steps, "num_steps": spec.train.steps})
        result["mlflow_run"] = run_id
        if spec.register_ is not None:
            result["model"] = register_best(
                client, spec, manifest, run_id, job_folder, result["best_step"], {"segfleet.job": grant.job_id}
            )
        else:
            result["model"] = None
        end_run(run_id, result)
    except AttemptFencedError:
        raise  # the run belongs to the attempt that has the job now
    except Exception as error:
        fail_run(run_id, classify(error)[1])
        raise
    return result


def _fit(grant: Grant, spec: TrainSpec, data: CheckedData, run_id: str, job_folder: Path) -> dict[str, Any] | Yielded:
    config = {
        "spec": to_document(spec),
        "skips": data.skips,
        "content_ids": data.content_ids,
        "run_id": run_id,
        "job_folder": str(job_folder),
        "attempt_folder": str(attempt_folder(grant)),
    }
    return run_group(grant, spec.resources, _train, config)


def _train(member: Member, config: Mapping[str, Any]) -> dict[str, Any] | Yielded:
    """One rank's part."""
    return train_rank(member, config, lambda voice, tracker: ServiceLink(voice.client, voice.heart, tracker), report)


if __name__ == "__main__":
    # By its import name, or the workers would get this module's functions by value.
    from segfleet_jobs.train import work as train_work

    sys.exit(run_attempt(train_work))
