"""Writing events for webhooks into the outbox, in the transaction of the change that they tell of."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Any

from segfleet.queue.model import Document, Job
from segfleet.webhooks.rows import WebhookRows
from segfleet.webhooks.values import EVENTS, TEST


def tell(rows: WebhookRows, job: Job, event: str, detail: Document, now: float) -> None:
    """Let every webhook know that asked for it: names, ids and states, never a spec or a message.

    Args:
        rows: Of the transaction that changes the job.
        job: As it is afterwards.
        event: Name of the change in the job's history.
        detail: Of the change; only the class of a failure is taken from it.
        now: Seconds since the epoch.
    """
    if event not in EVENTS:
        return
    for webhook_id in rows.subscribers(event, job.project):
        data = {
            "job": job.id,
            "name": job.name,
            "kind": job.kind,
            "project": job.project,
            "owner": job.owner,
            "state": str(job.state),
            "attempt": job.attempt,
            "failure": detail.get("class"),
        }
        _enqueue(rows, webhook_id, event, data, now)


def try_out(rows: WebhookRows, webhook_id: str, now: float) -> str:
    """Put an event into the outbox that tells of nothing; its id."""
    return _enqueue(rows, webhook_id, TEST, {}, now)


def _enqueue(rows: WebhookRows, webhook_id: str, event: str, data: dict[str, Any], now: float) -> str:
    letter_id = f"evt-{secrets.token_hex(12)}"
    at = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")
    document = {"id": letter_id, "type": f"job.{event}" if data else event, "timestamp": at, "data": data}
    row = {"id": letter_id, "webhook_id": webhook_id, "event": event, "document": document}
    rows.enqueue({**row, "due_at": now, "created_at": now})
    return letter_id
