"""Where a service is, for those who call it."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Mapping
from urllib.parse import urlsplit

from segfleet.errors import SettingsError
from segfleet.settings import DEFAULT_PORT, Home, read_token

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class NoServiceError(SettingsError):
    """No service was ever started on the home, and no address of another one is given."""

    code = "no_service"


def service_address(
    home: Home, environment: Mapping[str, str] | None = None, *, url: str | None = None, token: str | None = None
) -> tuple[str, str]:
    """(URL, token) a client uses: what is given, else SEGFLEET_URL and SEGFLEET_TOKEN, else the home's own.

    The home's token opens this user's service on this machine, so it is sent to no other machine.

    Args:
        home: The home folder; not looked at if URL and token are known otherwise.
        environment: Instead of this process's own.
        url: Base URL.
        token: Bearer token.

    Raises:
        NoServiceError: no URL is given and no service was ever started on this home.
        SettingsError: the URL is malformed or of another machine without a token of its own, or the token file is
            unusable.
    """
    env = os.environ if environment is None else environment
    url, token = url or env.get("SEGFLEET_URL") or _url_of(home), token or env.get("SEGFLEET_TOKEN")
    if not token:
        if host_of(url) not in _LOOPBACK:
            raise SettingsError(f"{url} is not on this machine, and its token is not known; set SEGFLEET_TOKEN")
        token = read_token(home.token)
    return url, token


def authorities(environment: Mapping[str, str] | None = None) -> ssl.SSLContext | bool:
    """Whose certificates a client believes: those in SEGFLEET_CA_FILE (PEM), else the usual public authorities'.

    Args:
        environment: Instead of this process's own.

    Raises:
        SettingsError: the file is missing or holds no certificate.
    """
    path = (os.environ if environment is None else environment).get("SEGFLEET_CA_FILE")
    if not path:
        return True
    try:
        return ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"SEGFLEET_CA_FILE={path!r} holds no certificates that can be read: {error}") from error


def host_of(url: str) -> str:
    """The host in a service's base URL.

    Raises:
        SettingsError: it is no http or https URL, or has no host or an impossible port.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"{url!r} is no address of a service; write one such as http://127.0.0.1:{DEFAULT_PORT}")
    return parts.hostname


def _url_of(home: Home) -> str:
    try:
        return str(json.loads(home.state.read_text(encoding="utf-8"))["url"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NoServiceError(
            f"no service is running on home {str(home.root)!r}; start one with 'segfleet up' or set SEGFLEET_URL"
        ) from error
