"""What people ask about webhooks: make one, list them, take one away, try one out."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from segfleet.access.roles import Identity, Role
from segfleet.errors import AccessError, UnknownWebhookError, WebhookError
from segfleet.queue.clock import Clock
from segfleet.queue.store import Store, Transaction
from segfleet.settings import ensure_token
from segfleet.webhooks import outbox, signing
from segfleet.webhooks.post import Origin, check_url
from segfleet.webhooks.values import EVENTS, DeliveryState

MAX_OF_OWNER = 20


class Webhooks:
    """All operations on webhooks; safe to share between threads.

    Args:
        store: The database.
        clock: Seconds since the epoch.
        key_path: File of the key that all secrets are derived from; made when it is first needed.
        allowed: Hosts and ports that may be private.
    """

    def __init__(self, store: Store, clock: Clock, key_path: Path, allowed: Collection[Origin]) -> None:
        self._store, self._clock, self._key_path, self._allowed = store, clock, key_path, allowed

    def secret_of(self, webhook_id: str) -> bytes:
        """The secret of a webhook.

        Raises:
            SettingsError: the key file is unusable.
        """
        return signing.secret_of(ensure_token(self._key_path), webhook_id)

    def create(
        self, url: str, events: Sequence[str], project: str | None, caller: Identity
    ) -> tuple[dict[str, Any], str]:
        """Make a webhook.

        Args:
            url: Where events are posted.
            events: Their names.
            project: Whose jobs; None: all, for operators.
            caller: Who asks, and owns it.

        Returns:
            The webhook as `webhooks` lists it, and its secret, which is not shown again.

        Raises:
            WebhookError: the address or an event's name cannot be one, or the caller has too many.
            AccessError: the caller may not hear of these jobs.
        """
        if project is None and not caller.role.covers(Role.OPERATOR):
            raise AccessError("events of all projects are for operators; name one of your projects")
        if project is not None and not caller.may_submit_to(project):
            raise AccessError(f"{caller.user!r} is no member of project {project!r}; ask an admin")
        if unknown := sorted(set(events) - set(EVENTS)):
            raise WebhookError(f"there is no event {unknown[0]!r}; events are {', '.join(EVENTS)}")
        if not events:
            raise WebhookError(f"name at least one event of {', '.join(EVENTS)}")
        check_url(url, self._allowed)
        webhook_id, now = f"wh-{secrets.token_hex(6)}", self._clock()
        values = {"id": webhook_id, "url": url, "events": sorted(set(events), key=EVENTS.index), "project": project}
        secret = signing.shown(self.secret_of(webhook_id))
        with self._store.write() as tx:
            if len(tx.webhooks.webhooks(caller.user)) >= MAX_OF_OWNER:
                raise WebhookError(f"{caller.user!r} has {MAX_OF_OWNER} webhooks, which is the most; delete one first")
            tx.webhooks.insert({**values, "owner": caller.user, "created_at": now})
            return _shown(tx.webhooks.webhook(webhook_id), {}), secret

    def webhooks(self, caller: Identity) -> list[dict[str, Any]]:
        """The caller's webhooks, or all for operators, with the number of events by state."""
        owner = None if caller.role.covers(Role.OPERATOR) else caller.user
        with self._store.read() as tx:
            standing = tx.webhooks.standing()
            return [_shown(row, standing) for row in tx.webhooks.webhooks(owner)]

    def delete(self, webhook_id: str, caller: Identity) -> None:
        """Take a webhook away, with all that waits for it.

        Raises:
            UnknownWebhookError: there is none of that id.
            AccessError: it is somebody else's.
        """
        with self._store.write() as tx:
            self._own(tx, webhook_id, caller)
            tx.webhooks.remove(webhook_id)

    def test(self, webhook_id: str, caller: Identity) -> str:
        """Send an event that tells of nothing; its id.

        Raises:
            UnknownWebhookError, AccessError: as for `delete`.
        """
        with self._store.write() as tx:
            self._own(tx, webhook_id, caller)
            return outbox.try_out(tx.webhooks, webhook_id, self._clock())

    def deliveries(
        self, webhook_id: str, caller: Identity, limit: int, before: int | None = None
    ) -> list[dict[str, Any]]:
        """Events for a webhook, the newest first; those whose `seq` is lower than `before`.

        Raises:
            UnknownWebhookError, AccessError: as for `delete`.
        """
        with self._store.read() as tx:
            self._own(tx, webhook_id, caller)
            names = ("seq", "id", "event", "state", "tries", "answer", "created_at", "due_at", "ended_at")
            rows = tx.webhooks.deliveries(webhook_id, limit, before)
            return [
                {**{name: getattr(row, name) for name in names}, "job": row.document["data"].get("job")} for row in rows
            ]

    def _own(self, tx: Transaction, webhook_id: str, caller: Identity) -> None:
        row = tx.webhooks.webhook(webhook_id)
        if row is None:
            raise UnknownWebhookError(webhook_id)
        if row.owner != caller.user and not caller.role.covers(Role.OPERATOR):
            raise AccessError(f"webhook {webhook_id} belongs to {row.owner!r}: ask its owner or an operator")


def _shown(row: Any, standing: dict[tuple[str, str], int]) -> dict[str, Any]:
    fields = {name: getattr(row, name) for name in ("id", "url", "events", "project", "owner", "created_at")}
    return {**fields, "deliveries": {str(state): standing.get((row.id, state), 0) for state in DeliveryState}}
