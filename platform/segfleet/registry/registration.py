"""What the registry is asked to hold; apart from the registry itself so that the routes need no MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

JOB_TAG = "segfleet.job"
GENERATION_TAG = "segfleet.generation"
CONTENT_TAG = "segfleet.content_digest"


@dataclass(frozen=True, slots=True)
class Registration:
    """A version that somebody wants.

    Attributes:
        name: Registered model.
        run_id: MLflow run that logged the model.
        model_uri: `models:/m-...`, a logged model of that run.
        identity: Tags by which the version is found again, see `of_job` and `of_content`; `name` has at most one
            version with them.
        metrics: Become tags `metric.NAME`; null ones are left out.
        tags: Of the asker's own choice, except MLflow's and those that make an identity.
    """

    name: str
    run_id: str
    model_uri: str
    identity: Mapping[str, str]
    metrics: Mapping[str, float | None]
    tags: Mapping[str, str]


def of_job(job_id: str, generation: int) -> dict[str, str]:
    """Identity of what a job made.

    Args:
        job_id: The job.
        generation: Rises when a person retries the job: what it then trains is another model.
    """
    return {JOB_TAG: job_id, GENERATION_TAG: str(generation)}


def of_content(digest: str) -> dict[str, str]:
    """Identity of a model that was brought along: the SHA-256, in hexadecimal, of all that it consists of."""
    return {CONTENT_TAG: digest}
