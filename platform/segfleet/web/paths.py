"""Which paths are pages, how a browser shows who it is, and the headers that every page has."""

from __future__ import annotations

import re
from collections.abc import Mapping

SIGN_IN = "/sign-in"
STATIC = "/static/"
_LONGEST_SESSION = 64
FORM, UPLOAD = "application/x-www-form-urlencoded", "multipart/form-data"
_TAKES_PICTURES = re.compile(r"/models/[^/]+/tries")
_SECTIONS = frozenset(
    {
        "",
        "sign-in",
        "sign-out",
        "static",
        "live",
        "jobs",
        "submit",
        "check",
        "models",
        "datasets",
        "operations",
        "policies",
        "retention",
        "tokens",
    }
)
# Nothing from elsewhere, nothing inline: a name that slipped through unescaped could still not run.
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Not `no-referrer`: with it browsers send `Origin: null` with forms, and the origin is what is checked.
    "Referrer-Policy": "same-origin",
}


def is_page(path: str) -> bool:
    """Whether a path belongs to the web page."""
    return path.startswith("/") and path.split("/", 2)[1] in _SECTIONS


def takes_picture(path: str) -> bool:
    """Whether the form of a page is posted with a picture in it."""
    return _TAKES_PICTURES.fullmatch(path) is not None


def is_open(path: str) -> bool:
    """Whether a page is for everybody: the sign-in, and the style it needs."""
    return path == SIGN_IN or path.startswith(STATIC)


def cookie_name(scheme: str) -> str:
    """The name of the session's cookie; over https no other host and no plain connection can set it."""
    return "__Host-segfleet" if scheme == "https" else "segfleet"


def session_of(cookies: str, scheme: str) -> str:
    """The session's id in a Cookie header; empty: there is none."""
    # No cookie parser: it gives up all cookies for one that other services of this host have set in their own way, and
    # takes seconds for one of backslashes, before anybody has signed in.
    for pair in cookies.split(";"):
        name, _, value = pair.partition("=")
        if name.strip() == cookie_name(scheme):
            return value.strip() if len(value.strip()) <= _LONGEST_SESSION else ""
    return ""
