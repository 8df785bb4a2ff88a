"""The door to MLflow's training side: one run a job across all its attempts, curves, pictures, the exported model."""

from __future__ import annotations

import contextlib
import json
import queue
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import Metric, Param, RunTag
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

import segfleet_models
from segfleet.errors import ServiceError
from segfleet.spec.kinds import TrainSpec
from segfleet.spec.resolve import to_document
from segfleet_jobs import served_model
from segfleet_jobs.evaluation import window_config
from segfleet_pipelines.manifest import Manifest

FLUSH_S = 2.0
DRAIN_S = 300.0
_REQUIREMENTS = ("mlflow", "numpy", "safetensors", "timm", "torch", "torchvision")


def open_run(job_id: str, spec: TrainSpec, manifest: Manifest) -> str:
    """The job's one run: found by its tag, or made with the spec, the code version and the data's content id.

    Raises:
        ServiceError: MLflow cannot be reached.
    """
    client = mlflow.MlflowClient()
    name = f"segfleet/{spec.queue.project}"
    try:
        experiment = client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
        runs = client.search_runs([experiment_id], f"tags.`segfleet.job` = '{job_id}'", max_results=1)
        if runs:
            client.update_run(runs[0].info.run_id, status="RUNNING")
            return str(runs[0].info.run_id)
        tags = {
            "segfleet.job": job_id,
            "segfleet.code_version": metadata.version("segfleet"),
            "segfleet.dataset": manifest.name,
            "segfleet.content_id": manifest.content_id,
        }
        run = client.create_run(experiment_id, tags=tags, run_name=f"{spec.name} {job_id}")
        document = to_document(spec)
        params = [Param(key, str(value)) for key, value in flatten(document).items()]
        client.log_batch(run.info.run_id, params=params[:100])
        client.log_dict(run.info.run_id, document, "spec.json")
        return str(run.info.run_id)
    except mlflow.exceptions.MlflowException as error:
        raise ServiceError(f"MLflow at {mlflow.get_tracking_uri()!r} cannot be used: {error}") from error


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


class Tracker:
    """Writes curves and pictures from a thread of its own, so that a slow MLflow never delays a step.

    A resumed attempt redoes steps whose points are there already: nothing at or before the last recorded step of a
    curve is written twice.
    """

    def __init__(self, run_id: str) -> None:
        self._client = mlflow.MlflowClient()
        self._run_id = run_id
        self._queue: queue.Queue[tuple[int, list[Metric], Path | None] | None] = queue.Queue()
        self._recorded: dict[str, int] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="segfleet-pictures-")
        self._thread = threading.Thread(target=self._drain, name="tracker", daemon=True)
        self._thread.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        now_ms = int(time.time() * 1000)
        points = [Metric(key, float(value), now_ms, step) for key, value in values.items() if np.isfinite(value)]
        self._queue.put((step, points, None))

    def picture(self, step: int, png: bytes) -> None:
        """Store a sheet of sample predictions."""
        path = Path(self._folder.name) / f"step-{step:08d}.png"
        path.write_bytes(png)
        self._queue.put((step, [], path))

    def close(self, timeout_s: float = DRAIN_S) -> None:
        """Write what is left.

        Raises:
            ServiceError: MLflow stayed away; points are missing there.
        """
        self._queue.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise ServiceError(
                f"MLflow at {mlflow.get_tracking_uri()!r} did not take the last curves in {timeout_s:g} s"
            )
        self._folder.cleanup()

    def _drain(self) -> None:
        while (entry := self._queue.get()) is not None:
            pause_s = 0.5
            while True:
                with contextlib.suppress(Exception):  # whatever MLflow's client raises: try again, never fail a step
                    self._write(*entry)
                    break
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, 30.0)

    def _write(self, step: int, points: list[Metric], picture: Path | None) -> None:
        if self._recorded is None:
            self._recorded = self._last_steps()
        if picture is not None:
            self._client.log_artifact(self._run_id, str(picture), "predictions")
        fresh = [point for point in points if self._recorded.get(point.key, -1) < step]
        if fresh:
            self._client.log_batch(self._run_id, metrics=fresh)
            self._recorded |= {point.key: step for point in fresh}

    def _last_steps(self) -> dict[str, int]:
        """Last recorded step of each curve that an earlier attempt began."""
        latest = self._client.get_run(self._run_id).data.metrics
        return {key: max(p.step for p in self._client.get_metric_history(self._run_id, key)) for key in latest}


def log_model(run_id: str, weights: Path, meta: Mapping[str, Any], spec: TrainSpec, manifest: Manifest) -> str:
    """Store the model as a self-contained pyfunc: safetensors, one JSON, and the plain model code.

    Args:
        run_id: The job's run.
        weights: The best checkpoint's model.safetensors.
        meta: That checkpoint's meta.json.
        spec: The job's spec.
        manifest: The training data's manifest.

    Returns:
        The logged model's URI, for registration.
    """
    config = {
        "model": meta["model"],
        "class_names": list(manifest.class_names),
        "palette": [list(colour) for colour in manifest.palette],
        "ignore_index": manifest.ignore_index,
        "window": asdict(window_config(spec.eval)),
        "scores": meta["scores"],
        "step": meta["step"],
    }
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))]),
        outputs=Schema([TensorSpec(np.dtype(np.int64), (-1, -1, -1))]),
    )
    with tempfile.TemporaryDirectory(prefix="segfleet-model-") as folder:
        config_path = Path(folder) / "config.json"
        config_path.write_text(json.dumps(config, indent=1), encoding="utf-8")
        with mlflow.start_run(run_id=run_id):
            logged = mlflow.pyfunc.log_model(
                name="segmenter",
                python_model=str(served_model.__file__),
                artifacts={"weights": str(weights), "config": str(config_path)},
                code_paths=[str(Path(str(segfleet_models.__file__)).parent)],
                signature=signature,
                pip_requirements=[f"{name}=={metadata.version(name)}" for name in _REQUIREMENTS],
            )
    return str(logged.model_uri)


def end_run(run_id: str, summary: Mapping[str, Any]) -> None:
    """Close the run with the result's plain figures as tags, and the whole result as a file."""
    client = mlflow.MlflowClient()
    client.log_dict(run_id, dict(summary), "result.json")
    tags = [RunTag(f"segfleet.{key}", str(summary[key])) for key in ("miou", "best_step") if key in summary]
    client.log_batch(run_id, tags=tags)
    client.set_terminated(run_id, status="FINISHED")


def fail_run(run_id: str, message: str) -> None:
    """Mark the run failed; a later attempt reopens it."""
    client = mlflow.MlflowClient()
    client.set_tag(run_id, "segfleet.error", message[:2000])
    client.set_terminated(run_id, status="FAILED")
