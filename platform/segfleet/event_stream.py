"""Reading the service's streams: connected again after a break, behind the last message that came."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from segfleet.connection import Connection, Document, UnreachableError, as_document
from segfleet.errors import ServiceError, TooManyStreamsError

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
# The service says something every ten seconds.
_SILENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One message of a stream.

    Attributes:
        event: Its kind, such as history, job, log or end.
        data: Plain data, as the service's OpenAPI document describes it.
        id: Where to go on behind it; None: where the message before said.
    """

    event: str
    data: Document
    id: int | None


def follow(
    connection: Connection,
    path: str,
    *,
    after: int | None,
    patience_s: float,
    params: Mapping[str, Any] | None = None,
    until: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[StreamEvent]:
    """The messages of a stream up to its `end`, through breaks of the connection and restarts of the service.

    Args:
        connection: To the service.
        path: Of the stream.
        after: Behind which id to begin; None: where the stream begins by itself.
        patience_s: How long the service may be away at a time, seconds.
        params: Of the request, besides.
        until: When to give up, by the clock; None: never.
        sleep: Replaces the pause before another try.
        clock: Monotonic seconds.

    Raises:
        SegfleetError: what the service refuses; ServiceError: it stayed away.
    """
    heard, pause_s = clock(), _FIRST_PAUSE_S
    while until is None or clock() < until:
        try:
            silence_s = _SILENCE_S if until is None else min(_SILENCE_S, max(until - clock(), 0.05))
            with connection.stream(path, {**(params or {}), "after": after}, silence_s) as answer:
                for message in parse(answer.iter_lines()):
                    heard, pause_s = clock(), _FIRST_PAUSE_S
                    after = after if message.id is None else message.id
                    if message.event:
                        yield message
                    if message.event == "end" or (until is not None and clock() >= until):
                        return
        except (UnreachableError, TooManyStreamsError):
            if until is not None and clock() >= until:
                return
            if clock() - heard >= patience_s:
                raise
        sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def parse(lines: Iterator[str]) -> Iterator[StreamEvent]:
    """The messages in a stream's lines; one without data has no kind, and only moves the place to go on from.

    Raises:
        ServiceError: these are no messages of the service.
    """
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
            continue
        mark = fields.get("id", "")
        try:
            data = as_document(json.loads(fields["data"])) if "data" in fields else {}
        except ValueError as error:
            raise ServiceError("a stream of the service holds what is no JSON") from error
        yield StreamEvent(fields.get("event", "") if "data" in fields else "", data, int(mark) if mark else None)
        fields = {}
