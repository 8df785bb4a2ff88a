"""The runs of a search's trials in MLflow, seen from the search: which are open, and to forget them."""

from __future__ import annotations

import mlflow
from mlflow.entities import Run

from segfleet_jobs.patience import patiently


def open_children(parent: str) -> frozenset[str]:
    """Ids of the runs below a search's that nobody has ended.

    Args:
        parent: The search's run.

    Raises:
        ServiceError: MLflow stayed away.
    """
    return frozenset(run.info.run_id for run in _children(parent, " and attributes.status = 'RUNNING'"))


def forget_children(parent: str) -> None:
    """Delete, as far as MLflow deletes at once, what trials of a forgotten life have left below a search's run.

    A new trial of the same number would otherwise go on with the run of the old one, whose parameters may differ.

    Raises:
        ServiceError: MLflow stayed away.
    """
    for run in _children(parent, ""):
        patiently(lambda run_id=run.info.run_id: mlflow.MlflowClient().delete_run(run_id))  # type: ignore[misc]


def _children(parent: str, more: str) -> list[Run]:
    client = mlflow.MlflowClient()
    experiment = patiently(lambda: client.get_run(parent)).info.experiment_id
    wanted = f"tags.`mlflow.parentRunId` = '{parent}'{more}"
    found: list[Run] = []
    page: str | None = None
    while page is None or page:
        answer = patiently(lambda token=page: client.search_runs([experiment], wanted, page_token=token))  # type: ignore[misc]
        found += answer
        page = answer.token or ""
    return found
