"""One request to a webhook: to a public address that was checked, or where the operator allows; bounded in all."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Collection, Mapping
from typing import Any

import httpx

from segfleet.errors import WebhookError
from segfleet.public_hosts import PublicTransport, is_public, origin

SILENCE_S, TOTAL_S = 5.0, 8.0
MAX_URL = 2000
Origin = tuple[str, int]


def check_url(url: str, allowed: Collection[Origin]) -> None:
    """Refuse an address that no event may be sent to. Names are looked up when something is sent, not here.

    Args:
        url: Of a webhook.
        allowed: Hosts and ports that may be private.

    Raises:
        WebhookError: it is no plain https address, or of a private host that the operator has not allowed.
    """
    try:
        parsed = httpx.URL(url)
        port = origin(parsed)[1]
    except (httpx.InvalidURL, ValueError) as error:
        raise WebhookError(f"the webhook's address is no URL: {error}") from error
    is_plain = url.isascii() and url.isprintable() and len(url) <= MAX_URL and 0 < port < 65_536
    if not is_plain or not parsed.host or parsed.userinfo or parsed.fragment:
        raise WebhookError(
            f"the webhook's address must be an URL without user, password and fragment, of at most {MAX_URL} characters"
        )
    is_allowed = origin(parsed) in allowed
    if parsed.scheme != "https" and not (parsed.scheme == "http" and is_allowed and _is_loopback(parsed.host)):
        raise WebhookError("the webhook's address must begin with https://")
    if not is_allowed and _is_private(parsed.host):
        raise WebhookError(
            f"{parsed.host!r} is no public host; an operator allows it with SEGFLEET_WEBHOOK_HOSTS={parsed.host}:{port}"
        )


class Post:
    """Sends events.

    Args:
        allowed: Hosts and ports that may be private.
        silence_s: Longest silence of a receiver, seconds.
        total_s: Longest time of a request, seconds.
    """

    def __init__(self, allowed: Collection[Origin], silence_s: float = SILENCE_S, total_s: float = TOTAL_S) -> None:
        self._allowed, self._silence_s, self._total_s = allowed, silence_s, total_s

    def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """The status of the answer, whose body is not read; redirects are not followed, proxies not used.

        Raises:
            WebhookError: the address is none that may be used any longer.
            DataError: its host is not public.
            httpx.HTTPError: no answer, or not in time.
        """
        check_url(url, self._allowed)
        target = origin(httpx.URL(url))
        way_out = "an operator allows private hosts with SEGFLEET_WEBHOOK_HOSTS"
        exempt = target if target in self._allowed else None
        transport = PublicTransport(exempt, proxies=False, way_out=way_out)
        watch = _Watch(self._total_s)
        with httpx.Client(transport=transport, timeout=self._silence_s, trust_env=False) as http, watch:
            request = http.build_request("POST", url, content=body, headers=headers, extensions={"trace": watch.trace})
            response = http.send(request, stream=True)
            response.close()
            return response.status_code


class _Watch:
    """Ends a connection after a time: a receiver that sends a byte now and then would hold it for ever."""

    def __init__(self, total_s: float) -> None:
        self._timer = threading.Timer(total_s, self._end)
        self._timer.daemon = True
        self._socket: socket.socket | None = None

    def __enter__(self) -> _Watch:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Called by the HTTP library at each stage of a request."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._socket = info["return_value"].get_extra_info("socket")

    def _end(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_private(host: str) -> bool:
    try:
        return not is_public(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
