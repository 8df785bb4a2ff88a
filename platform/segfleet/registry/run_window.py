"""What MLflow's runs show of jobs while they learn: curves, figures and sheets of predictions."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import mlflow.artifacts
from mlflow import MlflowClient

from segfleet.registry.registration import JOB_TAG

SERIES = ("train/loss", "train/lr", "val/miou", "train/samples_per_s")
# Points of a series that are handed on: more than a screen has room for.
MOST_POINTS = 400
_CLASS = "val_iou/"
_SHEETS = "predictions"


class RunWindow:
    """Reads runs of jobs.

    Args:
        client: Of the MLflow server.
        uri: Its base URL.
    """

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self._client, self._uri = client, uri

    def curves(self, job_id: str) -> dict[str, Any] | None:
        """Curves and figures of a job's latest run.

        Returns:
            {"run_id", "experiment_id", "series": (step, value) points by name, "classes": latest IoU by class,
            "pictures": names of its sheets of predictions, oldest first}; None: the job has no run.
        """
        experiments = [experiment.experiment_id for experiment in self._client.search_experiments()]
        if not experiments:
            return None
        order = ["attributes.start_time DESC"]
        runs = self._client.search_runs(experiments, f"tags.`{JOB_TAG}` = '{job_id}'", max_results=1, order_by=order)
        if not runs:
            return None
        run_id, latest = runs[0].info.run_id, runs[0].data.metrics
        series = {name: self._series(run_id, name) if name in latest else [] for name in SERIES}
        classes = {name.removeprefix(_CLASS): value for name, value in latest.items() if name.startswith(_CLASS)}
        sheets = sorted(PurePosixPath(item.path).name for item in self._client.list_artifacts(run_id, _SHEETS))
        found = {"run_id": run_id, "experiment_id": runs[0].info.experiment_id, "series": series}
        return {**found, "classes": classes, "pictures": [name for name in sheets if name.endswith(".png")]}

    def picture(self, run_id: str, name: str) -> bytes:
        """One sheet of predictions."""
        with tempfile.TemporaryDirectory(prefix="segfleet-picture-") as folder:
            path = mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path=f"{_SHEETS}/{name}", dst_path=folder, tracking_uri=self._uri
            )
            return Path(path).read_bytes()

    def _series(self, run_id: str, name: str) -> list[tuple[int, float]]:
        # A step that was done again after a loss counts as it was done last.
        points = {point.step: point.value for point in self._client.get_metric_history(run_id, name)}
        return thinned(sorted((step, value) for step, value in points.items() if math.isfinite(value)))


def thinned(points: Iterable[tuple[int, float]], most: int = MOST_POINTS) -> list[tuple[int, float]]:
    """At most about so many of the points, evenly chosen, with the first and the last."""
    found = list(points)
    if len(found) <= most:
        return found
    stride = -(-len(found) // most)
    return [*found[:-1:stride], found[-1]]
