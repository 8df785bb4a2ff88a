"""Made-up searches for tests: a job as the service describes it, and its trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from segfleet.spec.resolve import resolve_spec, to_document


def search_job(document: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A search of a spec, finished unless told otherwise."""
    spec = to_document(resolve_spec(document))
    job = {"id": "job-aaaaaaaa", "name": spec["name"], "kind": "search", "state": "succeeded", "spec": spec}
    return {**job, "result": {}, **changes}


def trial_document(number: int, params: Mapping[str, Any], value: float | None, **changes: Any) -> dict[str, Any]:
    """A trial of 100 steps that was validated four times and came to a value; None: it was never validated."""
    reports: Sequence[dict[str, Any]] = [
        {"validation": i, "step": 25 * i, "value": value * i / 4, "miou": value * i / 4, "seconds": 10.0 * number * i}
        for i in range(1, 5)
        if value is not None
    ]
    return {
        "number": number,
        "kind": "trial",
        "params": dict(params),
        "state": "succeeded",
        "why": "",
        "step": 100 if reports else 0,
        "num_steps": 100,
        "reports": list(reports),
        "best_value": value,
        "best_step": 100 if reports else None,
        "parameters": 1_000_000 * number,
        "images_per_s": 10.0 * number,
        "peak_memory_mib": 100.0,
        "worker_seconds": 3600.0 * number,
        "checkpoint": None,
        "mlflow_run": None,
        "attempt": 1,
        "created_at": 0.0,
        "started_at": 0.0,
        "finished_at": 1.0,
        "updated_at": 1.0,
        **changes,
    }
