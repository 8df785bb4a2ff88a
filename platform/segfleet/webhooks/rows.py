"""SQL of webhooks and of the outbox, inside one transaction of the queue's database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from segfleet.queue.model import Document
from segfleet.queue.tables import deliveries, webhooks
from segfleet.webhooks.values import DeliveryState, Letter


class WebhookRows:
    """Reads and writes of webhooks and events for them.

    Args:
        connection: With the transaction begun.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def insert(self, values: Document) -> None:
        """Add a webhook."""
        self._connection.execute(insert(webhooks).values(values))

    def webhook(self, webhook_id: str) -> Row[Any] | None:
        """One webhook."""
        return self._connection.execute(select(webhooks).where(webhooks.c.id == webhook_id)).one_or_none()

    def webhooks(self, owner: str | None = None) -> list[Row[Any]]:
        """A user's webhooks, or all, the oldest first."""
        query = select(webhooks).order_by(webhooks.c.created_at, webhooks.c.id)
        return list(self._connection.execute(query if owner is None else query.where(webhooks.c.owner == owner)))

    def remove(self, webhook_id: str) -> None:
        """Take a webhook away, with all that waits for it."""
        self._connection.execute(delete(deliveries).where(deliveries.c.webhook_id == webhook_id))
        self._connection.execute(delete(webhooks).where(webhooks.c.id == webhook_id))

    def subscribers(self, event: str, project: str) -> list[str]:
        """Ids of the webhooks that want to know of such an event."""
        c = webhooks.c
        query = select(c.id, c.events).where(c.project.is_(None) | (c.project == project))
        return [row.id for row in self._connection.execute(query) if event in row.events]

    def enqueue(self, values: Document) -> None:
        """Put an event into the outbox."""
        values = {"state": DeliveryState.PENDING, "tries": 0, "answer": "", **values}
        self._connection.execute(insert(deliveries).values(values))

    def heads(self, now: float) -> list[Letter]:
        """The first event that waits for each webhook, if it is due; none overtakes another of its webhook."""
        d = deliveries.c
        firsts = select(func.min(d.seq)).where(d.state == DeliveryState.PENDING).group_by(d.webhook_id)
        columns = (d.seq, d.id, d.webhook_id, webhooks.c.url, d.document, d.tries, d.created_at)
        due = d.seq.in_(firsts) & (d.due_at <= now)
        query = select(*columns).join(webhooks, webhooks.c.id == d.webhook_id).where(due).order_by(d.due_at, d.seq)
        return [Letter(**row._mapping) for row in self._connection.execute(query)]

    def mark(self, letter: Letter, changes: Document) -> None:
        """Write what became of a try, unless that is known already."""
        d = deliveries.c
        same = (d.seq == letter.seq) & (d.state == DeliveryState.PENDING)
        self._connection.execute(update(deliveries).where(same).values(changes))

    def deliveries(self, webhook_id: str, limit: int, before: int | None = None) -> list[Row[Any]]:
        """A webhook's newest events whose `seq` is lower than `before`."""
        c = deliveries.c
        query = select(deliveries).where(c.webhook_id == webhook_id).order_by(c.seq.desc()).limit(limit)
        return list(self._connection.execute(query if before is None else query.where(c.seq < before)))

    def standing(self) -> dict[tuple[str, str], int]:
        """Number of events by webhook and state."""
        c = deliveries.c
        query = select(c.webhook_id, c.state, func.count()).group_by(c.webhook_id, c.state)
        return {(webhook_id, state): count for webhook_id, state, count in self._connection.execute(query)}

    def forget(self, before: float) -> None:
        """Remove events that ended before then."""
        self._connection.execute(delete(deliveries).where(deliveries.c.ended_at < before))
