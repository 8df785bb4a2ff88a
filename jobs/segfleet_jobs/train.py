"""`python -m segfleet_jobs.train`: a training job; the only module that knows Ray Train.

The driver claims the attempt, checks the data, opens the MLflow run and hands the loop to Ray, which places the
workers, forms the DDP group and restarts it when a worker dies. A restarted group asks the service where the job
stands, like a first one. In the end the driver exports the best checkpoint and has the service register it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import Checkpoint as RayCheckpoint
from ray.train import CheckpointUploadMode, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from segfleet.errors import AttemptFencedError, CheckpointError, LaunchError
from segfleet.spec.kinds import JobSpec, TrainSpec
from segfleet.spec.resolve import resolve_spec, to_document
from segfleet_jobs.attempt import AttemptClient, Credentials, Grant, Heart, Yielded, exit_process
from segfleet_jobs.checked_data import CheckedData, check_data
from segfleet_jobs.checkpoint import CheckpointRecord, find_step, load_checkpoint
from segfleet_jobs.evaluation import Picture
from segfleet_jobs.failure import classify
from segfleet_jobs.loop import Link, TrainingLoop
from segfleet_jobs.pictures import prediction_sheet
from segfleet_jobs.ranks import Ranks
from segfleet_jobs.session import run_attempt
from segfleet_jobs.tracking import Tracker, end_run, fail_run, log_model, open_run
from segfleet_pipelines.manifest import Manifest

GROUP_RESTARTS = 3
START_FAILURES = 3
FLUSH_PATIENCE_S = 5.0
COLLECTIVE_TIMEOUT_S = 1800


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
    resources = spec.resources
    # Ray's own folder of this run: it wants the checkpoints it is told of inside.
    attempt_folder = job_folder / grant.credentials.attempt_id
    config = {
        "spec": to_document(spec),
        "skips": data.skips,
        "content_ids": data.content_ids,
        "credentials": grant.credentials,
        "run_id": run_id,
        "job_folder": str(job_folder),
        "attempt_folder": str(attempt_folder),
    }
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config=config,
        torch_config=TorchConfig(
            backend="nccl" if resources.gpus_per_worker else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S
        ),
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=bool(resources.gpus_per_worker),
            resources_per_worker={"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker},
        ),
        run_config=RunConfig(
            name=grant.credentials.attempt_id,
            storage_path=str(job_folder),
            failure_config=FailureConfig(max_failures=GROUP_RESTARTS, controller_failure_limit=START_FAILURES),
        ),
    )
    result: dict[str, Any] | Yielded = trainer.fit().return_value
    return result


def _train_worker(config: dict[str, Any]) -> dict[str, Any] | Yielded:
    """One rank, inside a Ray Train worker."""
    context = ray.train.get_context()
    device = get_device()
    spec = resolve_spec(config["spec"])
    if not isinstance(spec, TrainSpec):
        raise LaunchError("the workers were given another kind of job")
    if device.type == "cpu":
        torch.set_num_threads(spec.resources.cpus_per_worker)
    ranks = Ranks(context.get_world_rank(), context.get_world_size(), device)
    credentials: Credentials = config["credentials"]
    folders = Path(config["job_folder"]), Path(config["attempt_folder"])
    checked = config["skips"], config["content_ids"]
    client = AttemptClient(credentials)
    try:
        if not ranks.is_main:
            return TrainingLoop(spec, ranks, SilentLink(), *folders, _report, *checked).run()
        with Heart(client, exit_process) as heart:
            tracker = Tracker(config["run_id"])
            link: Link = ServiceLink(client, heart, tracker)
            result = TrainingLoop(spec, ranks, link, *folders, _report, *checked).run()
            tracker.close()
            return result
    except Exception as error:
        # What another try of the same group cannot change ends the attempt here, in the words of the rank that knows.
        failure_class, message = classify(error)
        if failure_class != "infra":
            client.fail(failure_class, f"rank {ranks.rank}: {message}")
        raise
    finally:
        client.close()


def _report(metrics: dict[str, Any], checkpoint: str | None) -> None:
    """Tell Ray Train, on every rank; the files are in place already, so Ray only notes where."""
    ray.train.report(
        metrics,
        checkpoint=RayCheckpoint.from_directory(checkpoint) if checkpoint else None,
        checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
    )


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
