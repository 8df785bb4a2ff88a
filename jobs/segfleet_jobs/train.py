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

import torch

from segfleet.errors import AttemptFencedError, CheckpointError, LaunchError
from segfleet.spec.kinds import JobSpec, TrainSpec
from segfleet.spec.resolve import resolve_spec, to_document
from segfleet_jobs.attempt import AttemptClient, Grant, Heart, Yielded
from segfleet_jobs.checked_data import CheckedData, check_data
from segfleet_jobs.checkpoint import CheckpointRecord, find_step, load_checkpoint
from segfleet_jobs.evaluation import Picture
from segfleet_jobs.failure import classify
from segfleet_jobs.group import Member, attempt_folder, report, run_group
from segfleet_jobs.loop import Link, TrainingLoop
from segfleet_jobs.pictures import prediction_sheet
from segfleet_jobs.session import run_attempt
from segfleet_jobs.tracking import Tracker, end_run, fail_run, log_model, open_run
from segfleet_pipelines.manifest import Manifest

FLUSH_PATIENCE_S = 5.0


class ServiceLink:
    """Rank 0's link: progress by heartbeat, curves to MLflow, checkpoints to the queue."""

    def __init__(self, client: AttemptClient, heart: Heart, tracker: Tracker) -> None:
        self._client, self._heart, self._tracker = client, heart, tracker

    def latest_checkpoint(self) -> dict[str, Any] | None:
        """The job's checkpoint pointer."""
        return self._client.latest_checkpoint()

    def set_checkpoint(self, record: CheckpointRecord) -> None:
        """Move the pointer, once the curves up to it are written."""
        self._tracker.flush(FLUSH_PATIENCE_S)
        self._client.set_checkpoint(record.to_dict())

    def progress(self, document: dict[str, Any]) -> None:
        """Tell with the next heartbeat."""
        self._heart.progress(document)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Add points to the curves."""
        self._tracker.metrics(step, values)

    def pictures(self, step: int, pictures: tuple[Picture, ...], manifest: Manifest) -> None:
        """Store a sheet of sample predictions."""
        if pictures:
            self._tracker.picture(step, prediction_sheet(pictures, manifest))

    def confusion(self, step: int, matrix: torch.Tensor, manifest: Manifest) -> None:
        """Store the confusion matrix in place of an earlier one."""
        self._tracker.confusion(step, matrix.tolist(), manifest.class_names)

    def must_yield(self) -> bool:
        """What the answer to a heartbeat has said."""
        return self._heart.must_yield


class SilentLink:
    """The link of every other rank."""

    def latest_checkpoint(self) -> dict[str, Any] | None:
        """Rank 0 asks for all."""
        return None

    def set_checkpoint(self, record: CheckpointRecord) -> None:
        """Rank 0 does it."""

    def progress(self, document: dict[str, Any]) -> None:
        """Rank 0 tells."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Rank 0 tells."""

    def pictures(self, step: int, pictures: tuple[Picture, ...], manifest: Manifest) -> None:
        """Rank 0 tells."""

    def confusion(self, step: int, matrix: torch.Tensor, manifest: Manifest) -> None:
        """Rank 0 tells."""

    def must_yield(self) -> bool:
        """Rank 0 hears it, and tells with the next step."""
        return False


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
        result["model"] = _export(grant, spec, manifest, run_id, job_folder, result, client)
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
    spec = resolve_spec(config["spec"])
    if not isinstance(spec, TrainSpec):
        raise LaunchError("the workers were given another kind of job")
    folders = Path(config["job_folder"]), Path(config["attempt_folder"])
    checked = config["skips"], config["content_ids"]
    if member.voice is None:
        return TrainingLoop(spec, member.ranks, SilentLink(), *folders, report, *checked).run()
    tracker = Tracker(config["run_id"])
    link: Link = ServiceLink(member.voice.client, member.voice.heart, tracker)
    result = TrainingLoop(spec, member.ranks, link, *folders, report, *checked).run()
    tracker.close()
    return result


def _export(
    grant: Grant,
    spec: TrainSpec,
    manifest: Manifest,
    run_id: str,
    job_folder: Path,
    result: dict[str, Any],
    client: AttemptClient,
) -> dict[str, Any] | None:
    """Log the best checkpoint as a model and have the service register it, if the spec says so."""
    if spec.register_ is None:
        return None
    folder = find_step(job_folder, result["best_step"])
    if folder is None:
        raise CheckpointError(f"the best checkpoint, of step {result['best_step']}, is gone from {str(job_folder)!r}")
    best = load_checkpoint(folder)
    model_uri = log_model(run_id, folder / "model.safetensors", best.meta, spec, manifest)
    tags = {
        "segfleet.job": grant.job_id,
        "segfleet.content_id": manifest.content_id,
        "segfleet.dataset": manifest.name,
        "segfleet.variant": spec.model.variant or f"{spec.model.backbone}/{spec.model.patch_size}",
        "segfleet.step": str(result["best_step"]),
    }
    metrics = {name: result[name] for name in ("miou", "pixel_accuracy", "mean_accuracy")}
    return client.register({"run_id": run_id, "model_uri": model_uri, "metrics": metrics, "tags": tags})


if __name__ == "__main__":
    # By its import name, or the workers would get this module's functions by value.
    from segfleet_jobs.train import work as train_work

    sys.exit(run_attempt(train_work))
