"""What every request must pass before any route sees it: host, origin, token, rate, content type, size.

The guard is closed by default: a path that nobody has opened needs a user's token, whether it exists or not. What the
user may do there is for `segfleet.server.rights` to say. Requests that change something leave an entry in the audit
log.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import nullcontext
from functools import partial
from http import HTTPStatus

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segfleet.access import audit
from segfleet.access.desk import Access
from segfleet.access.roles import Identity
from segfleet.errors import QueueUnavailableError, UnauthorizedError
from segfleet.log_context import about
from segfleet.queue.model import ATTEMPT_ID, JOB_ID
from segfleet.server.limits import FAILURES, REQUESTS, Buckets, Rate
from segfleet.server.problems import answer, refusal
from segfleet.telemetry import count_request
from segfleet.tryout.child import MAX_PICTURE_BYTES
from segfleet.web import paths
from segfleet.wire import API, REQUEST_ID

MAX_BODY_BYTES = 1 << 20
# From anybody: a token and no more.
MAX_SIGN_IN_BYTES = 8192
BODY_TIMEOUT_S = 30.0
# Bodies with a picture, and how many of them may be arriving: each is held in memory.
MAX_UPLOAD_BYTES = MAX_PICTURE_BYTES + (64 << 10)
_UPLOADS_AT_ONCE = 4
OPEN_PATHS = frozenset({"/healthz"})
# Attempts bring credentials of their own, which the routes check.
ATTEMPTS = f"{API}/attempts/"

# What changes nothing, though it has a body.
_UNRECORDED = frozenset({f"{API}/check", "/check"})
_LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
_WITH_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})
# A form or plain text can be posted by any web page without asking; JSON cannot. Our own forms carry a key.
_API_TYPES = ("application/json",)
_PAGE_TYPES = (paths.FORM,)
_UPLOAD_TYPES = (paths.UPLOAD,)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Whoever has no token can still choose the path.
_LOGGED_PATH_CHARS = 200
_log = logging.getLogger(__name__)


def bearer_of(headers: Headers) -> str:
    """The bearer token of a request, empty if there is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: What it guards.
        access: Knows the tokens.
        names: Hosts that are served besides those of the loopback interface.
        body_timeout_s: A body must have arrived by then, seconds.
        requests: How often one token may ask.
        failures: How often one address may ask without a valid token.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        names: Collection[str] = (),
        body_timeout_s: float = BODY_TIMEOUT_S,
        requests: Rate = REQUESTS,
        failures: Rate = FAILURES,
    ) -> None:
        self.app, self._access, self._body_timeout_s = app, access, body_timeout_s
        self._hosts = _LOOPBACK_HOSTS | {name.lower() for name in names}
        self._requests, self._failures = Buckets(requests), Buckets(failures)
        self._uploads = asyncio.Semaphore(_UPLOADS_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or read its body and hand it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id, began = _request_id(headers), time.monotonic()
        sender = _Sender(scope, send, request_id)
        try:
            with about(request_id=request_id, **_subject(scope["path"])):
                await self._admit(scope, headers, receive, sender)
        finally:
            route = getattr(scope.get("route"), "path", "").removeprefix(API)
            count_request(scope["method"], route, sender.status, time.monotonic() - began)

    async def _admit(self, scope: Scope, headers: Headers, receive: Receive, sender: _Sender) -> None:
        refused = self._refusal_of_host(headers)
        # Attempts prove themselves to their routes.
        is_page = paths.is_page(scope["path"])
        if refused is None and is_page:
            refused = await self._refusal_of_visitor(scope, headers)
        elif refused is None and scope["path"] not in OPEN_PATHS and not scope["path"].startswith(ATTEMPTS):
            refused = await self._refusal_of_caller(scope, headers)
        if refused is None and scope["method"] in _WITH_BODY:
            body = await self._taken(scope["path"], is_page, headers, receive)
            if isinstance(body, bytes):
                receive = _replay(body)
            else:
                refused = body
        if refused is not None:
            await refused(scope, receive, sender)
            return
        identity: Identity | None = scope.get("state", {}).get("identity")
        with nullcontext() if identity is None else about(who=identity.user):
            await self._run(scope, receive, sender)

    def _refusal_of_host(self, headers: Headers) -> Response | None:
        if not self._is_ours(headers.get("host", "")):
            return refusal(HTTPStatus.MISDIRECTED_REQUEST, "host", "this host is not served here")
        origin = headers.get("origin")
        # No URL parser: an origin is scheme://host:port and nothing else, and parsers fail on what is not one.
        if origin is not None and not self._is_ours(origin.partition("://")[2]):
            return refusal(HTTPStatus.FORBIDDEN, "origin", "requests of foreign web pages are not served")
        return None

    async def _refusal_of_caller(self, scope: Scope, headers: Headers) -> Response | None:
        try:
            identity = await run_in_threadpool(self._access.identify, bearer_of(headers))
        except UnauthorizedError as error:
            # Counted after the look, so that nobody's failures lock out who shares the address and has a token.
            return answer(error) if self._failures.take(_address(scope)) else _too_many()
        except QueueUnavailableError as error:
            return answer(error)
        scope.setdefault("state", {})["identity"] = identity
        return None if self._requests.take(identity.token_id) else _too_many()

    async def _refusal_of_visitor(self, scope: Scope, headers: Headers) -> Response | None:
        """Let in who holds a session; others come as far as the sign-in."""
        state = scope.setdefault("state", {})
        state["may_fail"] = partial(self._failures.take, _address(scope))
        if paths.is_open(scope["path"]):
            return None
        session_id = paths.session_of(headers.get("cookie", ""), scope["scheme"])
        try:
            identity = await run_in_threadpool(self._access.sessions.holder_of, session_id)
        except UnauthorizedError as error:
            if session_id and not self._failures.take(_address(scope)):
                return _too_many()
            is_read = scope["method"] == "GET" and "text/html" in headers.get("accept", "")
            return RedirectResponse(paths.SIGN_IN, HTTPStatus.SEE_OTHER) if is_read else answer(error)
        except QueueUnavailableError as error:
            return answer(error)
        state["identity"], state["session"] = identity, session_id
        return None if self._requests.take(identity.token_id) else _too_many()

    async def _taken(self, path: str, is_page: bool, headers: Headers, receive: Receive) -> bytes | Response:
        """The body, if it is of a type and size that the path takes."""
        if not paths.takes_picture(path):
            refused = _refusal_of_type(headers, _PAGE_TYPES if is_page else _API_TYPES)
            most = MAX_SIGN_IN_BYTES if path == paths.SIGN_IN else MAX_BODY_BYTES
            return refused or await self._body(headers, receive, most)
        if (refused := _refusal_of_type(headers, _UPLOAD_TYPES)) is not None:
            return refused
        if self._uploads.locked():
            return _too_many()
        async with self._uploads:
            return await self._body(headers, receive, MAX_UPLOAD_BYTES)

    async def _body(self, headers: Headers, receive: Receive, most: int) -> bytes | Response:
        try:
            async with asyncio.timeout(self._body_timeout_s):
                return await _read_body(headers, receive, most)
        except _BodyTooLargeError:
            text = f"a request has at most {most} bytes"
            return refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", text)
        except TimeoutError:
            return refusal(HTTPStatus.REQUEST_TIMEOUT, "timeout", "the body did not arrive in time")

    async def _run(self, scope: Scope, receive: Receive, sender: _Sender) -> None:
        entry = self._entry(scope)
        with nullcontext() if entry is None else audit.recording(entry):
            await self._answer(scope, receive, sender)
        if entry is not None and not entry.is_stored:
            outcome = audit.DONE if sender.status < HTTPStatus.BAD_REQUEST else str(sender.status)
            try:
                await run_in_threadpool(self._access.record, entry, outcome)
            except QueueUnavailableError:
                _log.exception("audit entry lost: %s by %s: %s", entry.action, entry.who, outcome)

    async def _answer(self, scope: Scope, receive: Receive, sender: _Sender) -> None:
        try:
            await self.app(scope, receive, sender)
        except Exception:
            incident = secrets.token_hex(6)
            _log.exception("request failed: %s %s, incident %s", scope["method"], scope["path"], incident)
            if sender.status:
                raise
            text = f"the service failed on this request; its log says why at incident {incident}"
            await refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", text)(scope, receive, sender)

    def _entry(self, scope: Scope) -> audit.Entry | None:
        identity: Identity | None = scope.get("state", {}).get("identity")
        if identity is None or scope["method"] not in _WITH_BODY or scope["path"] in _UNRECORDED:
            return None
        action = f"{scope['method']} {scope['path']}"
        return audit.Entry(self._access.now(), identity.user, identity.token_id, _address(scope), action, "")

    def _is_ours(self, netloc: str) -> bool:
        name, colon, port = netloc.rpartition(":")
        if not colon or netloc.endswith("]"):
            name, port = netloc, ""
        return name.lower() in self._hosts and (not port or port.isdecimal())


class _BodyTooLargeError(Exception):
    pass


class _Sender:
    """Passes an answer on, adds the headers that all have, and logs refusals."""

    def __init__(self, scope: Scope, send: Send, request_id: str) -> None:
        self._scope, self._send, self._request_id = scope, send, request_id
        # 0 until the answer begins.
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID] = self._request_id
            headers["X-Content-Type-Options"] = "nosniff"
            headers.setdefault("Cache-Control", "no-store")
            # Who asks too often shall not fill the disk by it.
            if message["status"] >= HTTPStatus.BAD_REQUEST and message["status"] != HTTPStatus.TOO_MANY_REQUESTS:
                path = self._scope["path"][:_LOGGED_PATH_CHARS]
                _log.info("%s %s: refused, %d", self._scope["method"], path, message["status"])
        await self._send(message)


def _refusal_of_type(headers: Headers, taken: tuple[str, ...]) -> Response | None:
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in taken:
        return refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "media_type", f"send {' or '.join(taken)}")
    return None


def _too_many() -> Response:
    return refusal(HTTPStatus.TOO_MANY_REQUESTS, "too_many", "too many requests; wait a little")


def _request_id(headers: Headers) -> str:
    """The caller's own name for the request if it can be one, so that both logs can be laid side by side."""
    given = headers.get(REQUEST_ID, "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def _subject(path: str) -> dict[str, str]:
    """The job that a request is about, and the attempt, for the log."""
    kind, _, rest = path.removeprefix(f"{API}/").partition("/")
    name = rest.partition("/")[0]
    if kind == "jobs" and JOB_ID.fullmatch(name):
        return {"job": name}
    if kind == "attempts" and ATTEMPT_ID.fullmatch(name):
        return {"job": name.rpartition("-")[0], "attempt": name}
    return {}


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


async def _read_body(headers: Headers, receive: Receive, most: int) -> bytes:
    declared = headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > most:
        raise _BodyTooLargeError
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > most:
            raise _BodyTooLargeError
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes) -> Callable[[], Awaitable[Message]]:
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        return next(messages, {"type": "http.disconnect"})

    return receive
