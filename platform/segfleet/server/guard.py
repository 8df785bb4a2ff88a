"""What every request must pass before any route sees it: host, origin, token, content type, size.

The guard is closed by default: a path that nobody has opened needs the service's token, whether it exists or not.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segfleet.errors import SettingsError
from segfleet.server.problems import refusal
from segfleet.wire import API

MAX_BODY_BYTES = 1 << 20
BODY_TIMEOUT_S = 30.0
OPEN_PATHS = frozenset({"/healthz"})
# Attempts bring credentials of their own, which the routes check.
ATTEMPTS = f"{API}/attempts/"

_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
_WITH_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})
# Whoever has no token can still choose the path.
_LOGGED_PATH_CHARS = 200
_log = logging.getLogger(__name__)


def bearer_of(headers: Headers) -> str:
    """The bearer token of a request, empty if there is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def same_secret(given: str, expected: str) -> bool:
    """Compare without telling by the time it takes how much was right; nothing given is never right."""
    digests = (hashlib.sha256(text.encode(errors="surrogateescape")).digest() for text in (given, expected))
    return hmac.compare_digest(*digests) and bool(given)


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: What it guards.
        token: The service's bearer token.
        body_timeout_s: A body must have arrived by then, seconds.

    Raises:
        SettingsError: the token is empty, which would open everything to everybody.
    """

    def __init__(self, app: ASGIApp, token: str, body_timeout_s: float = BODY_TIMEOUT_S) -> None:
        if not token:
            raise SettingsError("the service's token is empty; remove the home folder's file 'token' and start again")
        self.app, self._token, self._body_timeout_s = app, token, body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or read its body and hand it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sender = _Sender(scope, send)
        headers = Headers(scope=scope)
        refused = self._refusal(scope, headers)
        if refused is None and scope["method"] in _WITH_BODY:
            try:
                async with asyncio.timeout(self._body_timeout_s):
                    receive = _replay(await _read_body(headers, receive))
            except _BodyTooLargeError:
                text = f"a request has at most {MAX_BODY_BYTES} bytes"
                refused = refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", text)
            except TimeoutError:
                refused = refusal(HTTPStatus.REQUEST_TIMEOUT, "timeout", "the body did not arrive in time")
        if refused is not None:
            await refused(scope, receive, sender)
            return
        await self._run(scope, receive, sender)

    def _refusal(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        if not _is_local(headers.get("host", "")):
            return refusal(HTTPStatus.MISDIRECTED_REQUEST, "host", "this host is not served here")
        origin = headers.get("origin")
        # No URL parser: an origin is scheme://host:port and nothing else, and parsers fail on what is not one.
        if origin is not None and not _is_local(origin.partition("://")[2]):
            return refusal(HTTPStatus.FORBIDDEN, "origin", "requests of foreign web pages are not served")
        path = scope["path"]
        guarded_here = path not in OPEN_PATHS and not path.startswith(ATTEMPTS)
        if guarded_here and not same_secret(bearer_of(headers), self._token):
            text = "send the service's token as 'Authorization: Bearer'; it is in the home folder's file 'token'"
            return refusal(HTTPStatus.UNAUTHORIZED, "unauthorized", text)
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        # A form or plain text can be posted by any web page without asking; JSON cannot.
        if scope["method"] in _WITH_BODY and media_type != "application/json":
            return refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "media_type", "send application/json")
        return None

    async def _run(self, scope: Scope, receive: Receive, sender: _Sender) -> None:
        try:
            await self.app(scope, receive, sender)
        except Exception:
            incident = secrets.token_hex(6)
            _log.exception("request failed: %s %s, incident %s", scope["method"], scope["path"], incident)
            if sender.started:
                raise
            text = f"the service failed on this request; its log says why at incident {incident}"
            await refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", text)(scope, receive, sender)


class _BodyTooLargeError(Exception):
    pass


class _Sender:
    """Passes an answer on, adds the headers that all have, and logs refusals."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope, self._send, self.started = scope, send, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Cache-Control"] = "no-store"
            if message["status"] >= HTTPStatus.BAD_REQUEST:
                path = self._scope["path"][:_LOGGED_PATH_CHARS]
                _log.info("%s %s: refused, %d", self._scope["method"], path, message["status"])
        await self._send(message)


def _is_local(netloc: str) -> bool:
    name, colon, port = netloc.rpartition(":")
    if not colon or netloc.endswith("]"):
        name, port = netloc, ""
    return name.lower() in _HOSTS and (not port or port.isdecimal())


async def _read_body(headers: Headers, receive: Receive) -> bytes:
    declared = headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > MAX_BODY_BYTES:
        raise _BodyTooLargeError
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise _BodyTooLargeError
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes) -> Callable[[], Awaitable[Message]]:
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        return next(messages, {"type": "http.disconnect"})

    return receive
