"""The client's verbs of webhooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from segfleet.connection import Connection, Document, as_document, path_of


class _Connected(Protocol):
    _connection: Connection


class WebhookCalls:
    """Where job events are posted; `segfleet.client.Client` brings the connection."""

    def webhooks(self: _Connected) -> list[Document]:
        """The caller's webhooks, or all for operators."""
        return [as_document(found) for found in as_document(self._connection.get("/webhooks")).get("webhooks", [])]

    def create_webhook(self: _Connected, url: str, events: Sequence[str], *, project: str | None = None) -> Document:
        """Let events of jobs be posted to an address.

        Args:
            url: Begins with https://.
            events: Such as succeeded and failed.
            project: Whose jobs; None: all, for operators.

        Returns:
            The webhook with its "secret", which is not shown again.

        Raises:
            WebhookError: the address or an event cannot be one.
            AccessError: the caller may not hear of these jobs.
        """
        body = {"url": url, "events": list(events), "project": project}
        return as_document(self._connection.post("/webhooks", body, repeatable=False))

    def delete_webhook(self: _Connected, webhook_id: str) -> None:
        """Take a webhook away, with all that waits for it.

        Raises:
            UnknownWebhookError: there is none of that id.
            AccessError: it is somebody else's.
        """
        self._connection.request("DELETE", path_of("webhooks", webhook_id), body={})

    def test_webhook(self: _Connected, webhook_id: str) -> str:
        """Send an event that tells of nothing; its id among `deliveries`."""
        answer = as_document(self._connection.post(path_of("webhooks", webhook_id, "test"), {}))
        return str(answer["delivery"])

    def deliveries(self: _Connected, webhook_id: str, *, limit: int | None = 100) -> list[Document]:
        """What became of a webhook's events, the newest first: of at most `limit`, or all."""
        return self._connection.pages(path_of("webhooks", webhook_id, "deliveries"), "deliveries", limit)
