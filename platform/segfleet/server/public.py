"""Serving the application at the second address, in a thread of its own."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from segfleet.door import Door
from segfleet.errors import SettingsError

_JOIN_S = 5.0
_log = logging.getLogger(__name__)


@contextmanager
def opened(app: ASGIApp, door: Door | None, **options: Any) -> Iterator[int | None]:
    """Serve at the door as long as the context lasts.

    Args:
        app: The application, with its guard.
        door: Where; None does nothing.
        options: Of uvicorn.

    Yields:
        The port; None without a door.

    Raises:
        SettingsError: the address cannot be used, or certificate and key are unusable.
    """
    if door is None:
        yield None
        return
    config = uvicorn.Config(
        app,
        ssl_certfile=door.tls_cert,
        ssl_keyfile=door.tls_key,
        # The application's own address in log and audit is the client's only if the proxy's word is taken for it.
        proxy_headers=door.proxy is not None,
        forwarded_allow_ips=door.proxy,
        **options,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"certificate {str(door.tls_cert)!r} and its key cannot be used: {error}") from error
    server, listener = uvicorn.Server(config), _listen(door)
    thread = threading.Thread(target=server.run, args=([listener],), name="public", daemon=True)
    thread.start()
    try:
        port: int = listener.getsockname()[1]
        _log.info("listening on %s:%d, %s", door.host, port, "TLS" if door.tls_cert else f"behind {door.proxy}")
        yield port
    finally:
        server.should_exit = True
        thread.join(_JOIN_S)
        listener.close()


def tcp_socket(family: socket.AddressFamily) -> socket.socket:
    """A socket to listen at.

    Its protocol is named, since asyncio lets only such connections send without delay; answers took 40 ms more.
    """
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return listener


def _listen(door: Door) -> socket.socket:
    family = socket.AF_INET6 if ":" in door.host else socket.AF_INET
    listener = tcp_socket(family)
    try:
        listener.bind((door.host, door.port))
    except OSError as error:
        listener.close()
        raise SettingsError(f"{door.host}:{door.port} cannot be used: {error.strerror}; choose another") from error
    return listener
