"""The evaluations that a promotion rests on: found among the jobs that have ended, or submitted."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segfleet.errors import IdempotencyConflictError
from segfleet.promotion.gate import Figures, Gate, figures_of
from segfleet.promotion.values import Promotion
from segfleet.queue.model import Document, Job
from segfleet.queue.service import Queue
from segfleet.queue.states import JobState, is_terminal
from segfleet.spec.location import split_location
from segfleet.spec.resolve import resolve_spec, to_document

_WHAT_IS_MEASURED = ("kind", "model", "data", "eval", "precision")
# Bytes; ten thousand shards make two million.
_LARGEST_MANIFEST = 64 * 1024**2


class EvaluationFailedError(Exception):
    """An evaluation has ended without figures; the message says which and why."""


def evaluation_spec(gate: Gate, version: str, name: str, project: str) -> Document:
    """What is submitted to evaluate NAME/VERSION by a gate's rule.

    Raises:
        SpecError: the rule makes no valid job.
    """
    document: Document = {
        "kind": "evaluate",
        "name": name,
        "model": version,
        "data": {"shards": gate.shards, "split": gate.split},
        "worst": 0,
        "resources": gate.resources.model_dump(mode="json"),
        "queue": {"project": project},
    }
    if gate.eval is not None:
        document["eval"] = gate.eval.model_dump(mode="json")
    return to_document(resolve_spec(document))


def find_evaluation(queue: Queue, gate: Gate, version: str, run_id: str) -> str | None:
    """The latest ended evaluation of NAME/VERSION that a new one would only repeat.

    Where the data lie elsewhere than on this file system, nobody here knows whether they are still the same: then there
    is none.

    Args:
        queue: Of the evaluations.
        gate: The rule.
        version: NAME/VERSION.
        run_id: MLflow's run that made it: a model that was deleted and made anew counts its versions from 1 again.
    """
    content_id = _content_id(gate.shards)
    if content_id is None:
        return None
    wanted = evaluation_spec(gate, version, "wanted", "wanted")
    with queue.store.read() as tx:
        ended = tx.promotions.evaluations(version)
    measured = {"content_id": content_id, "split": gate.split, "mlflow_run": run_id}
    return next((row.id for row in ended if _is_same(row.spec, row.result, wanted, measured, gate)), None)


def submit_evaluation(queue: Queue, promotion: Promotion, gate: Gate, version: str, side: str) -> str:
    """Id of the job that evaluates NAME/VERSION for one side of a promotion; asked again, it is the same job.

    Raises:
        SpecError: the job can never run.
        QuotaExceededError: whoever asked for the promotion has as many waiting jobs as allowed.
        EvaluationFailedError: some other job has taken the key.
    """
    spec = evaluation_spec(gate, version, f"{side}-for-{promotion.alias}"[:63], promotion.project)
    forced, _ = queue.force(spec)
    resolved = to_document(resolve_spec(forced))
    try:
        job, _ = queue.submit(resolved, owner=promotion.who, key=f"{promotion.id}:{side}")
    except IdempotencyConflictError as error:
        # Submitted before the service was stopped; the operator's rules have changed the spec since. But keys are the
        # users' own too: a job counts only if it evaluates the same.
        job = queue.get(error.job_id)
        if any(job.spec.get(name) != resolved[name] for name in _WHAT_IS_MEASURED):
            raise EvaluationFailedError(
                f"job {job.id} was submitted under this promotion's key and does not evaluate {version} by the gate; "
                "promote again"
            ) from error
    return job.id


def read_evaluation(job: Job, gate: Gate) -> Figures | None:
    """What an evaluation has found; None: it is still under way.

    Raises:
        EvaluationFailedError: it ended otherwise than well.
    """
    if not is_terminal(job.state):
        return None
    if job.state != JobState.SUCCEEDED or job.result is None:
        reason = (job.error or {}).get("message") or job.reason or "no reason is known"
        raise EvaluationFailedError(f"evaluation {job.id} of {job.spec['model']} has {job.state}: {reason}")
    return figures_of(job.id, job.result, gate.metric)


def as_plain(figures: Figures | None) -> dict[str, Any] | None:
    """Figures as they are stored and shown."""
    return None if figures is None else asdict(figures)


def _is_same(spec: Document, result: Document, wanted: Document, measured: Document, gate: Gate) -> bool:
    same = ["eval", "precision", "data"]
    # Speeds compare only if they were measured on as many workers.
    if gate.faster is not None:
        same.append("resources")
    is_same = all(spec.get(name) == wanted[name] for name in same)
    return is_same and all(result.get(name) == value for name, value in measured.items())


def _content_id(location: str) -> str | None:
    """Of the prepared dataset that lies there now; None: it cannot be told from here."""
    folder = split_location(location).folder
    try:
        if folder is None or (folder / "manifest.json").stat().st_size > _LARGEST_MANIFEST:
            return None
        document = json.loads((Path(folder) / "manifest.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    found = document.get("content_id") if isinstance(document, dict) else None
    return found if isinstance(found, str) else None
