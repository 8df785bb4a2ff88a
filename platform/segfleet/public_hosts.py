"""The way to the internet: to public addresses only, so that no server can send us into the local network."""

from __future__ import annotations

import ipaddress
import socket
from urllib.request import getproxies, proxy_bypass

import httpx

from segfleet.errors import DataError

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# All that is given out for the internet. Python takes some of the rest for global too: site-local addresses, NAT64 of a
# network's own, IPv4 addresses behind zeros.
_UNICAST = ipaddress.ip_network("2000::/3")
# No connection is used twice: hosts that share an address would share one whose certificate was checked for the first.
_NO_REUSE = httpx.Limits(max_keepalive_connections=0)


class PublicTransport(httpx.BaseTransport):
    """Looks a host up once, refuses it if any of its addresses is not public, and connects to what was looked up.

    A second look-up at connecting could give another answer than the one that was checked. Behind a proxy of the
    environment the proxy looks hosts up; then only addresses written as such are checked.

    Args:
        exempt: (host, port) that may be private.
        inner: Connects; for tests.
        proxies: Whether the environment's proxies are used.
        way_out: What the user may do about a host that is refused.
    """

    def __init__(
        self,
        exempt: tuple[str, int] | None = None,
        inner: httpx.BaseTransport | None = None,
        *,
        proxies: bool = True,
        way_out: str = "a download goes into the local network only by --mirror",
    ) -> None:
        self._exempt, self._proxies, self._way_out = exempt, proxies, way_out
        self._direct = inner or httpx.HTTPTransport(limits=_NO_REUSE)
        self._proxied: dict[str, httpx.BaseTransport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """See httpx.

        Raises:
            DataError: the host is not public.
            httpx.ConnectError: it is unknown, or cannot be reached.
        """
        url = request.url
        public_only = origin(url) != self._exempt
        if self._proxies and (proxy := _proxy_for(url)):
            if public_only and _is_private_name(url.host):
                raise self._refused(url.host, "itself")
            return self._through(proxy).handle_request(request)
        addresses = _look_up(request)
        if public_only and (private := [address for address in addresses if not is_public(address)]):
            raise self._refused(url.host, private[0])
        # The name stays in the Host header and in the check of the certificate.
        request.extensions = {**request.extensions, "sni_hostname": url.host}
        for address in addresses[:-1]:
            request.url = url.copy_with(host=address)
            try:
                return self._direct.handle_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        request.url = url.copy_with(host=addresses[-1])
        return self._direct.handle_request(request)

    def close(self) -> None:
        """See httpx."""
        for transport in (self._direct, *self._proxied.values()):
            transport.close()

    def _refused(self, host: str, address: str) -> DataError:
        return DataError(f"{host!r} is not a public host ({address}); {self._way_out}")

    def _through(self, proxy: str) -> httpx.BaseTransport:
        return self._proxied.setdefault(proxy, httpx.HTTPTransport(proxy=proxy, limits=_NO_REUSE))


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the internet at large, also when it is an IPv4 address in IPv6 clothes."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo[1] if parsed.teredo else None)
        if parsed in _NAT64:
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if parsed not in _UNICAST:
            return False
    return parsed.is_global and not parsed.is_multicast


def origin(url: httpx.URL) -> tuple[str, int]:
    """Host and port that a URL leads to."""
    return url.host, url.port or (443 if url.scheme == "https" else 80)


def _proxy_for(url: httpx.URL) -> str | None:
    proxy = getproxies().get(url.scheme, "")
    return proxy if proxy.startswith("http") and not proxy_bypass(f"{url.host}:{url.port or ''}".rstrip(":")) else None


def _is_private_name(host: str) -> bool:
    try:
        return not is_public(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _look_up(request: httpx.Request) -> list[str]:
    host, port = origin(request.url)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpx.ConnectError(f"the host {host!r} is unknown: {error}", request=request) from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
