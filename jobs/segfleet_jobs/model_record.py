"""A model version in MLflow, as an evaluation uses it: found, fetched, and its run given the results."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow
import mlflow.artifacts
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from segfleet.errors import ModelError
from segfleet.spec.reference import split_reference
from segfleet_jobs.patience import patiently
from segfleet_jobs.run_plan import metric_name

# Where a run keeps the files of evaluations, each in a folder by its job.
EVALUATIONS = "evaluation"
_ABSENT = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"})


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A version of a registered model.

    Attributes:
        name: Of the model.
        version: Its number.
        run_id: MLflow's run that made it.
    """

    name: str
    version: str
    run_id: str

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


def find_version(reference: str) -> ModelVersion:
    """The version that NAME@ALIAS or NAME/VERSION stands for now.

    Raises:
        ModelError: there is none.
        ServiceError: MLflow stayed away.
    """
    return patiently(lambda: _find(mlflow.MlflowClient(), reference))


def fetch_version(version: ModelVersion, folder: Path) -> Path:
    """Copy a version's files to somewhere below a folder that exists; the folder that holds its MLmodel file.

    Raises:
        ModelError: its files are gone.
        ServiceError: MLflow stayed away.
    """
    fetched = patiently(lambda: _fetch(mlflow.MlflowClient(), version, folder))
    if not (fetched / "MLmodel").is_file():
        raise ModelError(f"model version {version} has no MLmodel file; were its artifacts deleted?")
    return fetched


def log_evaluation(version: ModelVersion, values: Mapping[str, float], files: Path, place: str) -> None:
    """Add an evaluation's figures and files to the run that made the version; again replaces them.

    Args:
        version: What was evaluated; its number is the figures' step, as one run may have made several versions.
        values: By their full names.
        files: Folder whose files are kept.
        place: Where among the run's artifacts.

    Raises:
        ServiceError: MLflow stayed away, or the run is gone.
    """
    client = mlflow.MlflowClient()
    now_ms, step = int(time.time() * 1000), int(version.version)
    points = [Metric(metric_name(name), value, now_ms, step) for name, value in values.items()]
    patiently(lambda: client.log_artifacts(version.run_id, str(files), place))
    patiently(lambda: client.log_batch(version.run_id, metrics=points))


def _find(client: mlflow.MlflowClient, reference: str) -> ModelVersion:
    name, ref = split_reference(reference)
    try:
        if ref.startswith("@"):
            found = client.get_model_version_by_alias(name, ref.removeprefix("@"))
        else:
            found = client.get_model_version(name, ref)
    except MlflowException as error:
        if error.error_code in _ABSENT:
            raise ModelError(f"the registry has no {reference!r}; 'segfleet models list' shows what it has") from error
        raise
    return ModelVersion(str(found.name), str(found.version), str(found.run_id))


def _fetch(client: mlflow.MlflowClient, version: ModelVersion, folder: Path) -> Path:
    source = client.get_model_version_download_uri(version.name, version.version)
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(folder)))
