"""One patient HTTP connection to the service; every client speaks through it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx

from segfleet.address import authorities, host_of
from segfleet.errors import ServiceError, SettingsError
from segfleet.wire import API, error_from

Document = dict[str, Any]

# The service is being restarted, or asks for less haste; nothing was done.
_WORTH_ANOTHER_TRY = (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.TOO_MANY_REQUESTS)
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
# The longest that the service gives out.
PAGE = 1000
_TIMEOUT = httpx.Timeout(30.0, connect=5.0)


class UnreachableError(ServiceError):
    """Nothing answers at the service's address."""

    code = "unreachable"


class Connection:
    """Sends requests, waits out a service that is being restarted, and raises the service's own errors.

    Args:
        url: Base URL of the service.
        token: Bearer token; None sends none.
        patience_s: How long to go on trying while the service does not answer, seconds; 0 tries once.
        transport: Replaces the network, for tests.
        sleep: Replaces the pause between two tries.
        clock: Monotonic seconds.

    Raises:
        SettingsError: the URL is malformed, no header can carry the token, or SEGFLEET_CA_FILE is unusable.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        patience_s: float,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        host_of(url)
        if token is not None and not (token.isascii() and token.isprintable()):
            raise SettingsError(
                "the service's token holds other characters than those of ASCII; look at SEGFLEET_TOKEN"
            )
        self.url, self.token, self.patience_s = url.rstrip("/"), token, patience_s
        self._sleep, self._clock = sleep, clock
        # The environment's proxies and .netrc must neither see nor replace the bearer token.
        try:
            self._http = httpx.Client(
                base_url=self.url + API,
                timeout=_TIMEOUT,
                transport=transport,
                trust_env=False,
                verify=authorities() if self.url.startswith("https:") else True,
            )
        except httpx.InvalidURL as error:
            raise SettingsError(f"{url!r} is no address of a service: {error}") from error

    def close(self) -> None:
        """Give the sockets back."""
        self._http.close()

    def get(self, path: str, *, patience_s: float | None = None, **params: Any) -> Any:
        """The JSON document at a path; parameters that are None are left out.

        Raises:
            SegfleetError: what the service refused, as the class it raised; ServiceError if it cannot be reached.
        """
        return self._decoded(self.request("GET", path, params=params, patience_s=patience_s))

    def items(self, answer: Any, name: str) -> list[Document]:
        """The list of this name in an answer.

        Raises:
            ServiceError: there is none.
        """
        found = as_document(answer).get(name)
        if not isinstance(found, list):
            raise self.stranger()
        return [as_document(item) for item in found]

    def pages(
        self,
        path: str,
        name: str,
        limit: int | None,
        params: Mapping[str, Any] | None = None,
        place: str = "before",
    ) -> list[Document]:
        """The items of a list that comes page by page.

        Args:
            path: Of the list.
            name: Of the items in a page.
            limit: At most so many; None: all.
            params: As for `get`.
            place: What a page's `next` is called in the request for the next one.

        Raises:
            SegfleetError: as `get`.
        """
        found: list[Document] = []
        following = None
        while limit is None or len(found) < limit:
            size = PAGE if limit is None else min(limit - len(found), PAGE)
            page = as_document(self.get(path, **{place: following, "limit": size, **(params or {})}))
            found += self.items(page, name)
            if (following := page.get("next")) is None:
                break
        return found

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = True,
        patience_s: float | None = None,
    ) -> Any:
        """Post a JSON document and return the answer.

        Args:
            path: Below /api/v1.
            body: Plain data.
            headers: Besides the usual ones.
            repeatable: Whether a request whose answer was lost may be sent again.
            patience_s: Instead of the connection's own.

        Raises:
            SegfleetError: as `get`.
        """
        return self._decoded(
            self.request("POST", path, body=body, headers=headers, repeatable=repeatable, patience_s=patience_s)
        )

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        """Put a JSON document and return the answer.

        Raises:
            SegfleetError: as `get`.
        """
        return self._decoded(self.request("PUT", path, body=body))

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = True,
        patience_s: float | None = None,
    ) -> httpx.Response:
        """Send until there is an answer or patience ends; the answer's status is below 400.

        Raises:
            SegfleetError: as `get`.
        """
        request = self._build(method, path, params, body, headers)
        deadline = self._clock() + (self.patience_s if patience_s is None else patience_s)
        pause_s = _FIRST_PAUSE_S
        while True:
            failure = None
            try:
                response = self._http.send(request)
            except httpx.RequestError as error:
                failure = error
                # A connection that was never made carried nothing, so even an unrepeatable request may go again.
                if not repeatable and not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                    raise self._unreachable(error) from error
            else:
                if response.status_code not in _WORTH_ANOTHER_TRY:
                    return _accepted(response)
            if self._clock() + pause_s > deadline:
                if failure is not None:
                    raise self._unreachable(failure) from failure
                return _accepted(response)
            self._sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    @contextmanager
    def stream(
        self, path: str, params: Mapping[str, Any] | None = None, silence_s: float | None = None
    ) -> Iterator[httpx.Response]:
        """An answer whose body is read piece by piece.

        Args:
            path: Below /api/v1.
            params: As for `get`.
            silence_s: How long nothing may come, instead of the usual time.

        Raises:
            SegfleetError: as `get`, also when the body breaks off.
        """
        request = self._build("GET", path, params, None, None)
        if silence_s is not None:
            request.extensions["timeout"] = {**_TIMEOUT.as_dict(), "read": silence_s}
        try:
            response = self._http.send(request, stream=True)
            try:
                if response.is_error:
                    response.read()
                yield _accepted(response)
            finally:
                response.close()
        except httpx.RequestError as error:
            raise self._unreachable(error) from error

    def stranger(self) -> ServiceError:
        """What to raise at an answer that no service of ours would give."""
        return ServiceError(f"what answers at {self.url} is no segfleet service; look at SEGFLEET_URL")

    def _decoded(self, response: httpx.Response) -> Any:
        try:
            return response.json()
        except ValueError as error:
            raise self.stranger() from error

    def _build(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any] | None,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
    ) -> httpx.Request:
        sent = dict(headers or {})
        if self.token is not None:
            sent["Authorization"] = f"Bearer {self.token}"
        given = {name: value for name, value in (params or {}).items() if value is not None}
        if body is None:
            return self._http.build_request(method, path, params=given, headers=sent)
        sent["Content-Type"] = "application/json"
        # Not httpx's json=: it refuses NaN, which a diverging run may well report, without naming the field.
        content = json.dumps(_finite(body), allow_nan=False).encode()
        return self._http.build_request(method, path, params=given, headers=sent, content=content)

    def _unreachable(self, error: Exception) -> UnreachableError:
        reason = str(error) or type(error).__name__
        return UnreachableError(f"the service at {self.url} does not answer ({reason}); is 'segfleet up' running?")


def path_of(*parts: str) -> str:
    """A path below /api/v1 from parts that may hold anything."""
    return "".join(f"/{quote(part, safe='@')}" for part in parts)


def as_document(value: Any) -> Document:
    """The value, if it is a JSON object.

    Raises:
        ServiceError: it is something else.
    """
    if not isinstance(value, dict):
        raise ServiceError(f"the service answered {type(value).__name__} where an object was due")
    return value


def _accepted(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    try:
        document = response.json()
    except ValueError:
        document = None
    raise error_from(document, response.status_code)


def _finite(value: Any) -> Any:
    """The same data with NaN and infinities as null: JSON has no word for them."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value
