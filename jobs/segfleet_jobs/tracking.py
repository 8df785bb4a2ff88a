"""The door to MLflow's training side: one run a job across all its attempts, curves, pictures, the exported model."""

from __future__ import annotations

import json
import queue
import re
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import mlflow
import numpy as np
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

import segfleet_models
from segfleet.errors import ServiceError
from segfleet.spec.kinds import SearchSpec, TrainSpec
from segfleet.spec.resolve import to_document
from segfleet_jobs.evaluation import window_config
from segfleet_jobs.origin import code_version
from segfleet_pipelines.manifest import Manifest

DRAIN_S = 300.0
PATIENCE_S = 600.0
_PASSING = frozenset({"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"})
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_. :/-]")
CONFUSION_FILE = "confusion.json"
# By its path: MLflow runs the file when it logs and loads a model; an import would run it here.
_SERVED_MODEL = Path(__file__).with_name("served_model.py")
T = TypeVar("T")
_File = tuple[Path, str | None]  # and the folder of the run's artifacts it belongs into
_REQUIREMENTS = ("mlflow", "numpy", "pillow", "safetensors", "timm", "torch", "torchvision")


def patiently(call: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """Do what may be done twice, waiting out an MLflow server that is away.

    Raises:
        ServiceError: it stayed away, or refuses.
    """
    give_up, pause_s = time.monotonic() + patience_s, 0.5
    while True:
        try:
            return call()
        except MlflowException as error:
            if error.error_code not in _PASSING or time.monotonic() >= give_up:
                raise ServiceError(f"MLflow at {mlflow.get_tracking_uri()!r} cannot be used: {error}") from error
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 15.0)


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


def open_run(
    job_id: str,
    spec: TrainSpec | SearchSpec,
    manifest: Manifest,
    data_tags: Mapping[str, str] | None = None,
    child: Child | None = None,
) -> str:
    """The one run of a job or trial: found by its tags, or made; with the spec, the code version and the data's id.

    Args:
        job_id: Of the job.
        spec: Of the job or trial.
        manifest: Of the dataset that is validated on.
        data_tags: What else there is to say of the data.
        child: Given for a trial of the job.

    Raises:
        ServiceError: MLflow cannot be reached.
    """
    return patiently(lambda: _open_run(mlflow.MlflowClient(), job_id, spec, manifest, data_tags or {}, child))


def _open_run(
    client: mlflow.MlflowClient,
    job_id: str,
    spec: TrainSpec | SearchSpec,
    manifest: Manifest,
    data_tags: Mapping[str, str],
    child: Child | None,
) -> str:
    experiment_id = find_experiment(client, f"segfleet/{spec.queue.project}")
    identity = {"segfleet.job": job_id} if child is None else child.identity(job_id)
    known_by = " and ".join(f"tags.`{key}` = '{value}'" for key, value in identity.items())
    runs = client.search_runs([experiment_id], known_by, max_results=1)
    if runs:
        run_id = str(runs[0].info.run_id)
        client.update_run(run_id, status="RUNNING")
    else:
        tags = identity | {
            "segfleet.code_version": code_version(),
            "segfleet.dataset": manifest.name,
            "segfleet.content_id": manifest.content_id,
        }
        name = f"{spec.name} {job_id}"
        if child is not None:
            name = f"{name} {child.kind} {child.number}"
            tags |= {"mlflow.parentRunId": child.parent, "segfleet.trial_kind": child.kind, **child.tags}
        run_id = str(client.create_run(experiment_id, tags=tags, run_name=name).info.run_id)
    # Again for a run that was found: the attempt that made it may have died before it came to this.
    document = to_document(spec)
    params = [Param(key, str(value)) for key, value in flatten(document).items()]
    client.log_batch(run_id, params=params, tags=[RunTag(key, value) for key, value in data_tags.items()])
    client.log_dict(run_id, document, "spec.json")
    return run_id


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


class Tracker:
    """Writes curves and pictures from a thread of its own, so that a slow MLflow never delays a step.

    A resumed attempt redoes steps whose points are there already: nothing at or before the last recorded step of a
    curve is written twice.
    """

    def __init__(self, run_id: str) -> None:
        self._client = mlflow.MlflowClient()
        self._run_id = run_id
        self._queue: queue.Queue[tuple[int, list[Metric], _File | None] | threading.Event | None] = queue.Queue()
        self._recorded: dict[str, int] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="segfleet-pictures-")
        self._thread = threading.Thread(target=self._drain, name="tracker", daemon=True)
        self._thread.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        now_ms = int(time.time() * 1000)
        points = [
            Metric(metric_name(key), float(value), now_ms, step) for key, value in values.items() if np.isfinite(value)
        ]
        self._queue.put((step, points, None))

    def picture(self, step: int, png: bytes) -> None:
        """Store a sheet of sample predictions."""
        path = Path(self._folder.name) / f"step-{step:08d}.png"
        path.write_bytes(png)
        self._queue.put((step, [], (path, "predictions")))

    def confusion(self, step: int, matrix: list[list[int]], class_names: Sequence[str]) -> None:
        """Store the confusion matrix of the best validation so far, (K, K), rows are the truth."""
        # A folder a step: the writer may not have come to an earlier file of the name yet.
        path = Path(self._folder.name) / f"step-{step:08d}" / CONFUSION_FILE
        path.parent.mkdir(exist_ok=True)
        document = {"step": step, "class_names": list(class_names), "matrix": matrix}
        path.write_text(json.dumps(document), encoding="utf-8")
        self._queue.put((step, [], (path, None)))

    def flush(self, timeout_s: float) -> None:
        """Wait until all that was given so far is written, or the time is up.

        A checkpoint makes its steps final: points that are still under way when the process dies are not made again.
        """
        written = threading.Event()
        self._queue.put(written)
        written.wait(timeout_s)

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
            if isinstance(entry, threading.Event):
                entry.set()
            else:
                self._write_for_sure(*entry)

    def _write_for_sure(self, step: int, points: list[Metric], file: _File | None) -> None:
        """Try until it is written; only what MLflow will never take is dropped, aloud."""
        pause_s = 0.5
        while True:
            try:
                return self._write(step, points, file)
            except MlflowException as error:
                if error.error_code == "INVALID_PARAMETER_VALUE":
                    print(f"segfleet: MLflow refuses the points of step {step}: {error}", flush=True)
                    return None
            except Exception as error:
                print(f"segfleet: the points of step {step} are not written yet: {error!r}", flush=True)
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 30.0)

    def _write(self, step: int, points: list[Metric], file: _File | None) -> None:
        if self._recorded is None:
            self._recorded = self._last_steps()
        if file is not None:
            self._client.log_artifact(self._run_id, str(file[0]), file[1])
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
    return log_segmenter(run_id, weights, config)


def log_segmenter(run_id: str, weights: Path, config: Mapping[str, Any]) -> str:
    """Store weights and what `served_model` needs to know of them as a model of a run.

    Args:
        run_id: The run.
        weights: A model.safetensors.
        config: Plain data: model, class_names, palette, ignore_index, window, and whatever else is worth keeping.

    Returns:
        The logged model's URI, for registration.
    """
    with tempfile.TemporaryDirectory(prefix="segfleet-model-") as folder:
        config_path = Path(folder) / "config.json"
        config_path.write_text(json.dumps(config, indent=1), encoding="utf-8")

        def log() -> str:
            with mlflow.start_run(run_id=run_id):
                logged = mlflow.pyfunc.log_model(
                    name="segmenter",
                    python_model=str(_SERVED_MODEL),
                    artifacts={"weights": str(weights), "config": str(config_path)},
                    code_paths=[str(Path(str(segfleet_models.__file__)).parent)],
                    pip_requirements=_requirements(config["model"].get("arch", "segmenter")),
                )
            return str(logged.model_uri)

        return patiently(log)


def _requirements(arch: str) -> list[str]:
    """What a clean environment needs to load the model, in the versions that made it."""
    more = () if arch in ("segmenter", "setr") else ("segmentation-models-pytorch",)
    # Without what names a build of torch for one kind of machine: no package index has it under that version.
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in (*_REQUIREMENTS, *more)]


def end_run(run_id: str, summary: Mapping[str, Any]) -> None:
    """Close the run with the result's plain figures as tags, and the whole result as a file."""
    client = mlflow.MlflowClient()
    tags = [RunTag(f"segfleet.{key}", str(summary[key])) for key in ("miou", "best_step") if key in summary]
    patiently(lambda: client.log_dict(run_id, dict(summary), "result.json"))
    patiently(lambda: client.log_batch(run_id, tags=tags))
    patiently(lambda: client.set_terminated(run_id, status="FINISHED"))


def fail_run(run_id: str, message: str) -> None:
    """Mark the run failed, if MLflow answers; a later attempt reopens it."""
    client = mlflow.MlflowClient()
    try:
        client.set_tag(run_id, "segfleet.error", message[:2000])
        client.set_terminated(run_id, status="FAILED")
    except MlflowException as error:
        # The failure itself must reach the queue, whatever becomes of the note about it.
        print(f"segfleet: MLflow was not told of the failure: {error}", flush=True)
