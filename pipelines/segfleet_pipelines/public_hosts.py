"""A client for downloads: to public hosts only, or to the mirror that the user has named."""

from __future__ import annotations

import httpx

from segfleet.errors import DataError
from segfleet.public_hosts import PublicTransport, origin


def open_client(mirror: str | None, timeout_s: float = 30.0) -> httpx.Client:
    """A client that follows no redirect by itself and connects to public hosts, or to the mirror.

    Args:
        mirror: Base URL that the user has named, which may be in the local network; None: public hosts alone.
        timeout_s: Longest silence of a server.

    Raises:
        DataError: the mirror's URL is none, or holds credentials or a query.
    """
    own = None if mirror is None else origin(_check_mirror(mirror))
    timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, 15.0))
    return httpx.Client(transport=PublicTransport(own), timeout=timeout, follow_redirects=False, trust_env=False)


def _check_mirror(mirror: str) -> httpx.URL:
    try:
        url = httpx.URL(mirror)
    except httpx.InvalidURL as error:
        raise DataError(f"mirror {mirror!r} is not a URL: {error}") from error
    plain = url.scheme in ("http", "https") and url.host and 0 < origin(url)[1] < 65536
    if not plain or url.userinfo or url.query or url.fragment:
        raise DataError("the mirror must be a http:// or https:// URL of a folder, without user, password or query")
    return url
