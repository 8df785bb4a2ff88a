"""`python -m segfleet_jobs.prepare`: a prepare job, from raw pictures to a finished dataset."""

from __future__ import annotations

import sys
from typing import Any

from segfleet.errors import LaunchError
from segfleet.spec.kinds import JobSpec, PrepareSpec
from segfleet_jobs.attempt import AttemptClient, Grant, Heart
from segfleet_jobs.reuse import fingerprint, reuse
from segfleet_jobs.session import run_attempt
from segfleet_pipelines.writer import prepare


def work(grant: Grant, spec: JobSpec, client: AttemptClient, heart: Heart) -> dict[str, Any]:  # noqa: ARG001
    """Write the dataset, telling how many samples are done, or take what an earlier job has left of the same.

    Raises:
        LaunchError: the job is of another kind.
        DataError: the raw data is missing or damaged, or the place is taken.
    """
    if not isinstance(spec, PrepareSpec):
        raise LaunchError(f"job {grant.job_id} is of kind {spec.kind!r}, not prepare")
    # Before the first file is read: what changes from now on shall not pass for what is prepared.
    inputs = fingerprint(spec)
    if grant.earlier is not None and (result := reuse(spec, grant.earlier, inputs)) is not None:
        print(f"segfleet: reused from {result['reused_from']}", flush=True)
        return result
    manifest = prepare(
        spec,
        progress=lambda done, total: heart.progress({"step": done, "num_steps": total, "phase": "prepare"}),
    )
    return {
        "content_id": manifest.content_id,
        "samples": {name: split.num_samples for name, split in manifest.splits.items()},
        "out": spec.out,
        "inputs": inputs,
    }


if __name__ == "__main__":
    sys.exit(run_attempt(work))
