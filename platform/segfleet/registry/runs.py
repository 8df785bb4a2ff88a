"""MLflow's runs: whose they are, and their removal with all their files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from segfleet.registry.registration import JOB_TAG

SEARCH_TAG = "segfleet.search"
_PAGE = 1000


class RunRemoval:
    """Finds and removes runs.

    MLflow's API marks runs and models as deleted and keeps their rows until its own `mlflow gc`; what takes room, their
    files, is removed here at once, and before the mark, so that a removal that was cut off is found and ended.

    Args:
        client: Of the MLflow server.
        uri: Its base URL.
    """

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self._client, self._uri = client, uri

    def by_job(self) -> dict[str, list[str]]:
        """Ids of the runs of each job; those of trials belong to their search."""
        found: dict[str, list[str]] = {}
        for run in self._runs():
            tags = run.data.tags
            job_id = tags.get(JOB_TAG) or tags.get(SEARCH_TAG)
            if job_id:
                found.setdefault(job_id, []).append(run.info.run_id)
        return found

    def remove(self, run_id: str) -> bool:
        """Delete a run, its logged models and all their files; False: a registered version comes from it."""
        if self._client.search_model_versions(f"run_id = '{run_id}'", max_results=1):
            return False
        run = self._client.get_run(run_id)
        outputs = run.outputs.model_outputs if run.outputs else []
        for output in outputs:
            self._remove_model(output.model_id)
        self._remove_files(run.info.artifact_uri)
        self._client.delete_run(run_id)
        return True

    def _remove_model(self, model_id: str) -> None:
        try:
            model = self._client.get_logged_model(model_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return
        self._remove_files(model.artifact_location)
        self._client.delete_logged_model(model_id)

    def _remove_files(self, uri: str) -> None:
        get_artifact_repository(uri, tracking_uri=self._uri).delete_artifacts()

    def _runs(self) -> Iterator[Any]:
        experiments = [experiment.experiment_id for experiment in self._client.search_experiments()]
        token = None
        while experiments:
            page = self._client.search_runs(experiments, "", ViewType.ACTIVE_ONLY, _PAGE, page_token=token)
            yield from page
            token = page.token
            if not token:
                return
