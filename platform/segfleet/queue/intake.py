"""How a job comes into the line."""

from __future__ import annotations

from segfleet.queue import lifecycle
from segfleet.queue.model import Document, Job, gang_of, lane_of, new_job_id
from segfleet.queue.states import JobState
from segfleet.queue.store import Transaction
from segfleet.spec.sections import duration_s
from segfleet.webhooks import outbox


def create(tx: Transaction, spec: Document, owner: str, now: float) -> Job:
    """Store a resolved spec as a queued job."""
    gang, limit = gang_of(spec), spec["queue"]["time_limit"]
    job = tx.insert_job(
        {
            "id": new_job_id(),
            "name": spec["name"],
            "kind": spec["kind"],
            "owner": owner,
            "project": spec["queue"]["project"],
            "state": JobState.QUEUED,
            "reason": lifecycle.FRESH,
            "priority": spec["queue"]["priority"],
            "workers": gang.workers,
            "max_workers": gang.max_workers,
            "sizes": gang.sizes or None,
            "cpus": gang.cpus,
            "gpus": gang.gpus,
            "spec": spec,
            "created_at": now,
            "updated_at": now,
            "attempt": 0,
            "fence": 0,
            "budget_from": 0,
            "cancel_requested": False,
            "time_limit_s": None if limit is None else duration_s(limit),
            "start_by": start_by(spec, now),
            "lane": lane_of(spec),
            "overtaken": 0,
            "version": 0,
        }
    )
    for parent in spec["queue"]["after"]:
        parent_id, _, condition = parent.partition(":")
        tx.insert_dependency(job.id, parent_id, condition or "ok")
    lifecycle.note(tx, job, now=now, kind="submitted", who=owner)
    outbox.tell(tx.webhooks, job, "submitted", {}, now)
    return job


def start_by(spec: Document, now: float) -> float | None:
    """Until when a job that comes into the line now is to start; None: it may wait for ever."""
    # Jobs of an earlier release have no such field.
    within = spec["queue"].get("start_within")
    return None if within is None else now + duration_s(within)
