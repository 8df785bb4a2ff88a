"""What MLflow is to be told of a run, as plain data: workers carry it without loading MLflow's client."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from segfleet.spec.kinds import SearchSpec, TrainSpec
from segfleet.spec.resolve import to_document
from segfleet_jobs.version import code_version
from segfleet_pipelines.manifest import Manifest

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_. :/-]")


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


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A run as plain data: whoever has it can open the run, at any time and on any machine.

    Attributes:
        experiment: Its name.
        name: Of the run.
        identity: Tags by which the run is found.
        tags: What else it says from the moment it is made.
        data_tags: What else there is to say of the data.
        document: The spec.
    """

    experiment: str
    name: str
    identity: Mapping[str, str]
    tags: Mapping[str, str]
    data_tags: Mapping[str, str]
    document: Mapping[str, Any]


def plan_run(
    job_id: str,
    spec: TrainSpec | SearchSpec,
    manifest: Manifest,
    data_tags: Mapping[str, str] | None = None,
    child: Child | None = None,
) -> RunPlan:
    """The one run of a job or trial, with the spec, the code version and the data's id; asks nobody.

    Args:
        job_id: Of the job.
        spec: Of the job or trial.
        manifest: Of the dataset that is validated on.
        data_tags: What else there is to say of the data.
        child: Given for a trial of the job.
    """
    name, tags = (
        f"{spec.name} {job_id}",
        {
            "segfleet.code_version": code_version(),
            "segfleet.dataset": manifest.name,
            "segfleet.content_id": manifest.content_id,
        },
    )
    identity = {"segfleet.job": job_id}
    if child is not None:
        name, identity = f"{name} {child.kind} {child.number}", child.identity(job_id)
        tags |= {"mlflow.parentRunId": child.parent, "segfleet.trial_kind": child.kind, **child.tags}
    return RunPlan(f"segfleet/{spec.queue.project}", name, identity, tags, data_tags or {}, to_document(spec))


def metric_name(name: str) -> str:
    """A curve's name as MLflow takes it: only letters, digits and a few signs, where class names may hold anything."""
    return _NOT_IN_NAMES.sub("_", name)
