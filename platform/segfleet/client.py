"""The service from Python: what the command line, the tests and a researcher's notebook use.

    from segfleet import Client

    client = Client()
    job = client.submit("camvid.yaml")
    client.wait(job["id"])
    client.pull("segmenter-camvid@candidate", "model")

Jobs, models and events are plain data, exactly as the service sent them (documented in its OpenAPI document).
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

import httpx

from segfleet.access.calls import AccessCalls
from segfleet.address import service_address
from segfleet.connection import Connection, Document, as_document
from segfleet.promotion.calls import PromotionCalls
from segfleet.queue.calls import JobCalls
from segfleet.registry.calls import ModelCalls
from segfleet.retention.calls import RetentionCalls
from segfleet.settings import default_home
from segfleet.webhooks.calls import WebhookCalls


class Client(JobCalls, ModelCalls, PromotionCalls, WebhookCalls, RetentionCalls, AccessCalls):
    """Talks to one service; usable as a context manager.

    Args:
        url: Base URL; None takes SEGFLEET_URL or what the home folder's service wrote.
        token: Bearer token; None takes SEGFLEET_TOKEN or the home folder's token file.
        patience_s: How long one call goes on trying while the service is being restarted, seconds.
        transport: Replaces the network, for tests.

    Raises:
        SettingsError: no address or token was given and none is found.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        patience_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if url is None or token is None:
            url, token = service_address(default_home(), url=url, token=token)
        self._connection = Connection(url, token, patience_s=patience_s, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the sockets back."""
        self._connection.close()

    @property
    def url(self) -> str:
        """Base URL of the service."""
        return self._connection.url

    def status(self) -> Document:
        """The service's version, its queue in numbers, and whether Ray and MLflow answer."""
        return as_document(self._connection.get("/status"))
