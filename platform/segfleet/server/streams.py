"""Answers that go on: server-sent events (WHATWG HTML, section 9.2), with limits on how many and how slow."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from segfleet.errors import TooManyStreamsError

# Whoever takes nothing for so long is gone, or holds a place for nothing.
SEND_TIMEOUT_S = 30.0
MOST_PER_TOKEN, MOST = 100, 400
EVENT_STREAM = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Message:
    """One event of a stream.

    Attributes:
        event: Its kind.
        data: Plain data.
        id: Where to go on behind it; None leaves that where it is.
    """

    event: str
    data: Mapping[str, Any]
    id: int | None = None

    def encode(self) -> bytes:
        """As it is sent: JSON in ASCII, so that no text of a user can end a line."""
        mark = "" if self.id is None else f"id: {self.id}\n"
        return f"{mark}event: {self.event}\ndata: {json.dumps(self.data)}\n\n".encode()


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing has happened for a while.

    Attributes:
        id: Where to go on, so that who comes again need not go through what was not for them; None: where it was.
    """

    id: int | None = None

    def encode(self) -> bytes:
        """A comment, and an event without data, which only moves the reader's place."""
        return b":\n\n" if self.id is None else f":\nid: {self.id}\n\n".encode()


Source = AsyncIterator[Message | Pause]


class Places:
    """How many streams there may be, of one token and of all; safe to share between threads.

    Args:
        per_token: Of one token.
        most: Of all.
    """

    def __init__(self, per_token: int = MOST_PER_TOKEN, most: int = MOST) -> None:
        self._per_token, self._most, self._lock = per_token, most, threading.Lock()
        self._taken: Counter[str] = Counter()

    def take(self, token_id: str) -> None:
        """Take a place.

        Raises:
            TooManyStreamsError: there is none left.
        """
        with self._lock:
            if self._taken[token_id] >= self._per_token:
                raise TooManyStreamsError("this token", str(self._per_token))
            if self._taken.total() >= self._most:
                raise TooManyStreamsError("this server", str(self._most))
            self._taken[token_id] += 1

    def give_back(self, token_id: str) -> None:
        """Give a place back."""
        with self._lock:
            self._taken -= Counter([token_id])


class EventStream(StreamingResponse):
    """The answer that sends a source's messages as they come.

    Args:
        source: The messages.
        is_allowed: Asked every now and then whether the caller still may listen.
        on_end: Called once, however it ends.
    """

    media_type = EVENT_STREAM

    def __init__(self, source: Source, is_allowed: Callable[[], Awaitable[bool]], on_end: Callable[[], None]) -> None:
        super().__init__(_encoded(source, is_allowed), headers={"X-Accel-Buffering": "no"})
        self._source, self._on_end = source, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the source ends or the reader goes."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()

    async def stream_response(self, send: Send) -> None:
        """Send each piece in time.

        Raises:
            TimeoutError: the reader takes nothing.
        """

        async def in_time(message: Any) -> None:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send(message)

        await super().stream_response(in_time)


async def _encoded(source: Source, is_allowed: Callable[[], Awaitable[bool]]) -> AsyncIterator[bytes]:
    # At once, so that the reader knows that it is connected.
    yield Pause().encode()
    async for message in source:
        if not await is_allowed():
            yield Message("refused", {"reason": "the token is not valid any more"}).encode()
            return
        yield message.encode()
