"""The service's second address: what other machines connect to, if the operator opens one."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from segfleet.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Door:
    """An address besides the loopback interface's.

    Attributes:
        host: Address to listen on.
        port: Port to listen on.
        names: Hosts that the service answers for there.
        tls_cert: Certificate chain, PEM; None: a proxy encrypts.
        tls_key: Private key of the certificate, PEM.
        proxy: Address of the proxy that encrypts, whose word on the client's address is believed.
    """

    host: str
    port: int
    names: tuple[str, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    proxy: str | None = None

    @classmethod
    def of(cls, env: Mapping[str, str]) -> Door | None:
        """The door that an environment describes; None: everything stays on the loopback interface.

        Variables: SEGFLEET_LISTEN (HOST:PORT), SEGFLEET_HOST_NAMES (comma-separated), SEGFLEET_TLS_CERT,
        SEGFLEET_TLS_KEY, SEGFLEET_PROXY.

        Raises:
            SettingsError: an address is malformed, or tokens would cross the network unencrypted.
        """
        listen = env.get("SEGFLEET_LISTEN")
        if not listen:
            return None
        host, _, port = listen.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        address = _address(host, f"{listen!r} is no address to listen on; write one such as 0.0.0.0:8443")
        if not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise SettingsError(f"{listen!r} has no port; write one such as 0.0.0.0:8443")
        cert, key, proxy = (env.get(f"SEGFLEET_{name}") or None for name in ("TLS_CERT", "TLS_KEY", "PROXY"))
        if (cert is None) != (key is None):
            raise SettingsError("TLS needs both a certificate (--tls-cert) and its key (--tls-key)")
        if proxy is not None:
            _address(proxy, f"{proxy!r} is no address of a proxy; write one such as 10.0.0.5")
        if cert is None and proxy is None and not address.is_loopback:
            raise SettingsError(
                f"tokens would cross the network unencrypted on {listen}; give --tls-cert and --tls-key, or name the "
                "proxy that encrypts with --behind-proxy ADDRESS"
            )
        names = tuple(name for text in env.get("SEGFLEET_HOST_NAMES", "").split(",") if (name := text.strip()))
        own = () if address.is_unspecified else (f"[{address}]" if address.version == 6 else str(address),)
        paths = (None if cert is None else Path(cert), None if key is None else Path(key))
        return cls(host, int(port), (*own, *names), *paths, proxy)


def attempts_url(env: Mapping[str, str]) -> str:
    """Where jobs find a service, if the operator says so, else empty.

    Variable: SEGFLEET_ATTEMPTS_URL.

    Raises:
        SettingsError: it is no URL, or the attempts' tokens would cross the network unencrypted.
    """
    url = env.get("SEGFLEET_ATTEMPTS_URL", "").rstrip("/")
    try:
        parts = urlsplit(url)
        is_usable = not url or (parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0)
    except ValueError:
        is_usable = False
    if not is_usable:
        raise SettingsError(f"SEGFLEET_ATTEMPTS_URL={url!r} is no address; write one such as https://fleet.example.org")
    if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise SettingsError(f"SEGFLEET_ATTEMPTS_URL={url}: tokens would cross the network unencrypted; use https")
    return url


def webhook_hosts(env: Mapping[str, str]) -> frozenset[tuple[str, int]]:
    """Hosts and ports in the operator's own network that users' webhooks may lead to.

    Variable: SEGFLEET_WEBHOOK_HOSTS (HOST:PORT, comma-separated).

    Raises:
        SettingsError: one of them is malformed.
    """
    found = set()
    for text in filter(None, (text.strip() for text in env.get("SEGFLEET_WEBHOOK_HOSTS", "").split(","))):
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]").lower()
        if not host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise SettingsError(
                f"SEGFLEET_WEBHOOK_HOSTS: {text!r} is none; write HOST:PORT, such as ci.example.org:443"
            )
        found.add((host, int(port)))
    return frozenset(found)


def _address(text: str, problem: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise SettingsError(problem) from error
