"""A trained model among the files of its run, in steps that may each be done again: one model, whatever is lost."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.models import Model

import segfleet_models
from segfleet.registry.sent_once import sent_once
from segfleet.spec.kinds import TrainSpec
from segfleet_jobs.evaluation import window_config
from segfleet_jobs.patience import Patience
from segfleet_pipelines.manifest import Manifest

NAME = "segmenter"
DIGEST_TAG = "segfleet.logged_digest"
# By its path: MLflow runs the file when it logs and loads a model; an import would run it here.
_SERVED_MODEL = Path(__file__).with_name("served_model.py")
_REQUIREMENTS = ("mlflow", "numpy", "pillow", "safetensors", "timm", "torch", "torchvision")


def log_model(
    run_id: str,
    weights: Path,
    meta: Mapping[str, Any],
    spec: TrainSpec,
    manifest: Manifest,
    patience: Patience | None = None,
) -> str:
    """Store the model as a self-contained pyfunc: safetensors, one JSON, and the plain model code.

    Args:
        run_id: The job's run.
        weights: The best checkpoint's model.safetensors.
        meta: That checkpoint's meta.json.
        spec: The job's spec.
        manifest: The training data's manifest.
        patience: With MLflow.

    Returns:
        The logged model's URI, for registration.

    Raises:
        ServiceError: MLflow stayed away.
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
    return log_segmenter(run_id, weights, config, patience)


def log_segmenter(run_id: str, weights: Path, config: Mapping[str, Any], patience: Patience | None = None) -> str:
    """Store weights and what `served_model` needs to know of them as a model of a run; again finds the same.

    Args:
        run_id: The run.
        weights: A model.safetensors.
        config: Plain data: model, class_names, palette, ignore_index, window, and whatever else is worth keeping.
        patience: With MLflow.

    Returns:
        The logged model's URI, for registration.

    Raises:
        ServiceError: MLflow stayed away.
    """
    client, wait = mlflow.MlflowClient(), patience or Patience()
    text = json.dumps(config, indent=1)
    digest = _digest(weights, text)
    model = wait(lambda: _find_or_make(client, run_id, digest))
    if model.status != LoggedModelStatus.READY:
        with tempfile.TemporaryDirectory(prefix="segfleet-model-") as folder:
            (Path(folder) / "config.json").write_text(text, encoding="utf-8")
            _save(model, run_id, weights, Path(folder) / "config.json", Path(folder) / "model")
            _upload(client, model.model_id, Path(folder) / "model", wait)
        wait(lambda: _link(client, run_id, model.model_id))
        wait(lambda: client.finalize_logged_model(model.model_id, LoggedModelStatus.READY))
    return str(model.model_uri)


def _find_or_make(client: mlflow.MlflowClient, run_id: str, digest: str) -> Any:
    run = client.get_run(run_id)
    known = f"source_run_id = '{run_id}' AND tags.`{DIGEST_TAG}` = '{digest}'"
    oldest = [{"field_name": "creation_time", "ascending": True}]
    found = client.search_logged_models([run.info.experiment_id], known, max_results=1, order_by=oldest)
    if found:
        return found[0]
    with sent_once():
        return client.create_logged_model(
            run.info.experiment_id, NAME, source_run_id=run_id, tags={DIGEST_TAG: digest}, params=run.data.params
        )


def _save(model: Any, run_id: str, weights: Path, config: Path, folder: Path) -> None:
    """As `mlflow.pyfunc.log_model` does it, which could only be done again as a whole, with a new model each time."""
    entry = Model(
        artifact_path=model.artifact_location, model_uuid=model.model_id, run_id=run_id, model_id=model.model_id
    )
    arch = json.loads(config.read_text(encoding="utf-8"))["model"].get("arch", "segmenter")
    mlflow.pyfunc.save_model(
        path=str(folder),
        mlflow_model=entry,
        python_model=str(_SERVED_MODEL),
        artifacts={"weights": str(weights), "config": str(config)},
        code_paths=[str(Path(str(segfleet_models.__file__)).parent)],
        pip_requirements=_requirements(arch),
    )
    for cache in folder.rglob("__pycache__"):
        shutil.rmtree(cache, ignore_errors=True)


def _upload(client: mlflow.MlflowClient, model_id: str, folder: Path, wait: Patience) -> None:
    """File by file; one that has arrived is not sent again because of the next."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        parent = path.relative_to(folder).parent.as_posix()
        _upload_file(client, model_id, path, None if parent == "." else parent, wait)


def _upload_file(client: mlflow.MlflowClient, model_id: str, path: Path, place: str | None, wait: Patience) -> None:
    wait(lambda: client.log_model_artifact(model_id, str(path), place))


def _link(client: mlflow.MlflowClient, run_id: str, model_id: str) -> None:
    """Name the model among the run's outputs, where it may be named once only."""
    outputs = client.get_run(run_id).outputs
    if outputs is None or model_id not in {output.model_id for output in outputs.model_outputs}:
        with sent_once():
            client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])


def _digest(weights: Path, config: str) -> str:
    """Of all that makes the model."""
    whole = hashlib.sha256(config.encode())
    with weights.open("rb") as stream:
        whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()


def _requirements(arch: str) -> list[str]:
    """What a clean environment needs to load the model, in the versions that made it."""
    more = () if arch in ("segmenter", "setr") else ("segmentation-models-pytorch",)
    # Without what names a build of torch for one kind of machine: no package index has it under that version.
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in (*_REQUIREMENTS, *more)]
