"""What a job asks of the registry; apart from the registry itself so that the routes need no MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Registration:
    """A version that a job wants.

    Attributes:
        job_id: The job; has at most one version of `name` for each generation.
        generation: Rises when a person retries the job: what it then trains is another model.
        name: Registered model.
        alias: Moved to the version.
        run_id: MLflow run that logged the model.
        model_uri: `models:/m-...`, a logged model of that run.
        metrics: Become tags `metric.NAME`; null ones are left out.
        tags: Of the attempt's own choice, except MLflow's; the job's id is always added.
    """

    job_id: str
    generation: int
    name: str
    alias: str
    run_id: str
    model_uri: str
    metrics: Mapping[str, float | None]
    tags: Mapping[str, str]
