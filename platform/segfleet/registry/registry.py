"""Versions and aliases in MLflow's registry. Only this module writes them, for unfenced attempts and for imports;
aliases are moved by promotions (`segfleet.promotion`) alone.

A job has at most one version of a model, however often its attempts ask: the version carries the job's id as a tag
from the moment it exists, and whoever asks again gets the one that is there. When a person has retried the job, that is
a new generation, with a version of its own. An imported model has one version for each content, in the same way.
"""

from __future__ import annotations

import math
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import httpx
import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from segfleet.errors import ModelError, ServiceError
from segfleet.registry.registration import GENERATION_TAG, JOB_TAG, Registration
from segfleet.registry.run_window import RunWindow
from segfleet.registry.runs import RunRemoval
from segfleet.registry.version_maker import VersionMaker, metric_tags, pages, version_tags

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
# Of which the pictures are fetched.
_MOST_EVALUATIONS = 8
# Requests to MLflow at a time, and how long another one waits, seconds: heartbeats need threads too.
_AT_ONCE, _WAIT_S = 12, 1.0
_ABSENT = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"})


class Registry:
    """One MLflow server's registry.

    Args:
        uri: Base URL of the MLflow server.

    Every method raises ServiceError when MLflow does not answer.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._runs = RunRemoval(self._client, uri)
        self._window = RunWindow(self._client, uri)
        self._maker = VersionMaker(self._client)
        # Search, then create: two askers at once must not both find nothing.
        self._registering = threading.Lock()
        self._at_once = threading.BoundedSemaphore(_AT_ONCE)

    def is_up(self) -> bool:
        """Whether the server answers within two seconds."""
        try:
            return httpx.get(f"{self.uri}/health", timeout=2.0, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def models(self) -> list[dict[str, Any]]:
        """Registered models: name, aliases {alias: version}, latest version, time of the last change."""
        with self._answering("models"):
            return [_model_document(model) for model in pages(self._client.search_registered_models)]

    def model(self, name: str) -> dict[str, Any]:
        """One registered model with its versions, the newest first.

        Raises:
            ModelError: no such model.
        """
        _check(_NAME, name, name)
        with self._answering(name):
            model = self._client.get_registered_model(name)
            versions = list(pages(self._client.search_model_versions, f"name = '{name}'"))
        aliases: dict[str, list[str]] = {}
        for alias, version in model.aliases.items():
            aliases.setdefault(str(version), []).append(alias)
        documents = [_version_document(version, aliases.get(str(version.version), [])) for version in versions]
        return {**_model_document(model), "versions": sorted(documents, key=lambda d: -int(d["version"]))}

    def version(self, name: str, ref: str) -> dict[str, Any]:
        """One version, by its number or by `@alias`.

        Raises:
            ModelError: no such model, version or alias.
        """
        found = self._resolve(name, ref)
        return _version_document(found, sorted(found.aliases))

    def fetch(self, name: str, ref: str, folder: Path) -> Path:
        """Copy the files of a version to somewhere below a folder that exists.

        Returns:
            The folder that holds the version's MLmodel file.

        Raises:
            ModelError: no such model, version or alias, or it has no files.
        """
        number = self._resolve(name, ref).version
        with self._answering(f"{name}/{number}"):
            source = self._client.get_model_version_download_uri(name, number)
            path = mlflow.artifacts.download_artifacts(
                artifact_uri=source, dst_path=str(folder), tracking_uri=self.uri, registry_uri=self.uri
            )
        found = Path(path)
        if not (found / "MLmodel").is_file():
            raise ModelError(f"model version {name}/{number} has no MLmodel file; were its artifacts deleted?")
        return found

    def fetch_pictures(self, version: dict[str, Any], folder: Path) -> None:
        """Copy what the run of a version shows of it: its sheet of predictions, and confusion matrices.

        Args:
            version: As `version` describes it.
            folder: To make.
        """
        run_id, best = version["run_id"], version["tags"].get("segfleet.step", "")
        if not run_id:
            return
        with self._answering(f"run {run_id}"):
            try:
                found = [item.path for item in self._client.list_artifacts(run_id)]
                sheets = sorted(item.path for item in self._client.list_artifacts(run_id, "predictions"))
                evaluations = [item.path for item in self._client.list_artifacts(run_id, "evaluation")]
            except MlflowException as error:
                if error.error_code in _ABSENT:
                    return  # The run is deleted; the version is not.
                raise
            named = f"predictions/step-{best.zfill(8)}.png"
            wanted = {path: PurePosixPath(path).name for path in found if path == "confusion.json"}
            if sheets:
                wanted[named if named in sheets else sheets[-1]] = "predictions.png"
            for path in evaluations[-_MOST_EVALUATIONS:]:
                files = {item.path for item in self._client.list_artifacts(run_id, path)}
                for name in ("confusion.png", "worst.png"):
                    if f"{path}/{name}" in files:
                        wanted[f"{path}/{name}"] = f"{PurePosixPath(path).name}-{name}"
            folder.mkdir(exist_ok=True)
            for path, name in wanted.items():
                fetched = mlflow.artifacts.download_artifacts(
                    run_id=run_id, artifact_path=path, dst_path=str(folder / ".fetched"), tracking_uri=self.uri
                )
                Path(fetched).rename(folder / name)
        shutil.rmtree(folder / ".fetched", ignore_errors=True)

    def register(self, wanted: Registration) -> str:
        """Make the version if it is not there yet.

        Returns:
            Its number.

        Raises:
            ModelRefusedError: the model was not logged by that run, or a tag uses a reserved prefix.
        """
        tags = version_tags(wanted)
        with self._registering, self._answering(wanted.model_uri):
            return self._maker.make(wanted, tags)

    def holder(self, name: str, alias: str) -> str | None:
        """The version that an alias points to; None: the model has no such alias.

        Raises:
            ModelError: no such model.
        """
        _check(_NAME, name, name)
        _check(_ALIAS, alias, f"{name}@{alias}")
        with self._answering(name):
            found = self._client.get_registered_model(name).aliases.get(alias)
        return None if found is None else str(found)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Let an alias point to a version; only promotions do that.

        Raises:
            ModelError: no such model or version.
        """
        with self._answering(f"{name}/{version}"):
            self._client.set_registered_model_alias(name, alias, version)

    def delete_version(self, name: str, version: str) -> None:
        """Take a version out of the registry; the run that made it and its files stay.

        Raises:
            ModelError: no such model or version.
        """
        number = self._resolve(name, version).version
        with self._answering(f"{name}/{version}"):
            self._client.delete_model_version(name, number)

    def add_metrics(self, name: str, version: str, metrics: Mapping[str, float | None]) -> None:
        """Write figures to a version that is there; one of the same name is replaced, null ones are left out.

        Raises:
            ModelError: no such model or version.
        """
        number = self._resolve(name, version).version
        with self._answering(f"{name}/{version}"):
            for tag, text in metric_tags(metrics).items():
                self._client.set_model_version_tag(name, number, tag, text)

    def versions_by_job(self) -> dict[str, list[str]]:
        """NAME/VERSION of all versions, by the job that made them."""
        found: dict[str, list[str]] = {}
        with self._answering("versions"):
            for version in pages(self._client.search_model_versions):
                if job_id := version.tags.get(JOB_TAG):
                    found.setdefault(job_id, []).append(f"{version.name}/{version.version}")
        return found

    def curves(self, job_id: str) -> dict[str, Any] | None:
        """What the latest run of a job shows of its learning, see `RunWindow.curves`; None: it has none yet."""
        with self._answering(f"run of {job_id}"):
            return self._window.curves(job_id)

    def picture(self, run_id: str, name: str) -> bytes:
        """A sheet of sample predictions of a run, a PNG.

        Raises:
            ModelError: the run has none of that name.
        """
        with self._answering(f"{name} of run {run_id}"):
            return self._window.picture(run_id, name)

    def runs_by_job(self) -> dict[str, list[str]]:
        """Ids of the runs of each job; those of trials belong to their search."""
        with self._answering("runs"):
            return self._runs.by_job()

    def remove_run(self, run_id: str) -> bool:
        """Delete a run and its files; False: a registered version comes from it, or it is gone."""
        try:
            with self._answering(run_id):
                return self._runs.remove(run_id)
        except ModelError:
            return False

    def _resolve(self, name: str, ref: str) -> Any:
        _check(_NAME, name, f"{name}/{ref}")
        alias = ref.removeprefix("@") if ref.startswith("@") else None
        _check(_VERSION if alias is None else _ALIAS, ref if alias is None else alias, f"{name}/{ref}")
        with self._answering(f"{name}{ref}" if alias else f"{name}/{ref}"):
            if alias is None:
                return self._client.get_model_version(name, ref)
            return self._client.get_model_version_by_alias(name, alias)

    @contextmanager
    def _answering(self, what: str) -> Iterator[None]:
        """Turn MLflow's exceptions into ours, and keep a slow MLflow from taking all of the service's threads."""
        if not self._at_once.acquire(timeout=_WAIT_S):
            raise ServiceError(f"the MLflow server at {self.uri} is slow: too many requests wait for it; try again")
        try:
            yield
        except MlflowException as error:
            if error.error_code in _ABSENT:
                raise ModelError(f"the registry has no {what!r}; 'segfleet models list' shows what it has") from error
            raise ServiceError(f"the MLflow server at {self.uri} does not answer as it should; try again") from error
        finally:
            self._at_once.release()


def _check(pattern: re.Pattern[str], text: str, what: str) -> None:
    if not pattern.fullmatch(text):
        raise ModelError(f"the registry has no {what!r}; 'segfleet models list' shows what it has")


def _model_document(model: Any) -> dict[str, Any]:
    latest = max((int(version.version) for version in model.latest_versions or ()), default=None)
    return {
        "name": model.name,
        "aliases": {alias: str(version) for alias, version in model.aliases.items()},
        "latest_version": None if latest is None else str(latest),
        "updated_at": model.last_updated_timestamp / 1000,
    }


def _finite(text: str) -> float | None:
    """A figure; None for what somebody else has written there."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _version_document(version: Any, aliases: list[str]) -> dict[str, Any]:
    tags = dict(version.tags)
    tags.pop(GENERATION_TAG, None)
    metrics = {}
    for name in [name for name in tags if name.startswith("metric.")]:
        if (value := _finite(tags[name])) is not None:
            metrics[name.removeprefix("metric.")] = value
            del tags[name]
    return {
        "name": version.name,
        "version": str(version.version),
        "aliases": sorted(aliases),
        "job": tags.pop(JOB_TAG, None),
        "run_id": version.run_id,
        "created_at": version.creation_timestamp / 1000,
        "metrics": metrics,
        "tags": tags,
    }
