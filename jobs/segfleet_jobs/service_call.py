"""One call to the service, which may be away: it may be killed and started again while jobs go on."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import httpx

from segfleet.errors import AttemptFencedError, ServiceError

_FENCED = (httpx.codes.CONFLICT, httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN, httpx.codes.NOT_FOUND)


def call(
    http: httpx.Client, method: str, path: str, attempt_id: str, body: dict[str, Any] | None, patience_s: float
) -> dict[str, Any]:
    """One call, repeated while the service is away or busy, for `patience_s` seconds.

    Raises:
        AttemptFencedError: the attempt, or this group of its workers, has lost its right to write.
        ServiceError: the service stayed away, or refuses the call.
    """
    give_up = time.monotonic() + patience_s
    pause_s = 0.2
    while True:
        try:
            response = http.request(method, path, json=_plain(body))
            if response.status_code in _FENCED:
                raise AttemptFencedError(attempt_id, _message(response))
            if response.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                if response.is_success:
                    return dict(response.json())
                raise ServiceError(f"the service refused {path!r} of {attempt_id}: {_message(response)}")
            away = f"status {response.status_code}"
        except httpx.TransportError as error:
            away = str(error) or type(error).__name__
        if time.monotonic() >= give_up:
            raise ServiceError(f"the service did not answer {path!r} of {attempt_id}: {away}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 5.0)


def _plain(value: Any) -> Any:
    """The value without what JSON cannot say: a loss that is not finite becomes null."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}"
