"""Connections that say nothing are closed, so that nobody fills the service's places with them."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

# From the connection, or the first byte of a later request, to the end of its headers.
HEADERS_TIMEOUT_S = 15.0


class ImpatientProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection whose request's headers are not complete in time.

    What follows the headers is for others: the guard gives a body its time, uvicorn an idle connection after an answer.
    """

    _too_late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Go on with a request, or begin to wait for the rest of the next one's headers."""
        super().data_received(data)
        is_asked = self.cycle is not None and not self.cycle.response_complete
        if is_asked:
            self._rest()
        elif self._too_late is None:
            self._wait()

    def on_response_complete(self) -> None:
        """After an answer the connection may be idle for uvicorn's own time."""
        self._rest()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._rest()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._too_late = self.loop.call_later(HEADERS_TIMEOUT_S, self.transport.close)

    def _rest(self) -> None:
        if self._too_late is not None:
            self._too_late.cancel()
            self._too_late = None
