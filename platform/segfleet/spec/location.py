"""Where data lie: a path or an address, taken apart and judged as text. Nothing is looked up or opened."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

SCHEMES = ("file", "s3", "gs", "http", "https")

# Two letters and more: one letter is a drive on some systems, and none of the schemes to refuse is that short.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")


@dataclass(frozen=True, slots=True)
class Location:
    """A folder on this machine or elsewhere.

    Attributes:
        scheme: One of SCHEMES.
        host: Bucket for s3 and gs; host or host:port for http and https; empty for file.
        path: For file the path, decoded; otherwise what follows the host, as it was written, without slashes at its
            ends.
    """

    scheme: str
    host: str
    path: str

    @property
    def folder(self) -> Path | None:
        """The folder on this machine, as it was written; None if it is elsewhere."""
        return Path(self.path) if self.scheme == "file" else None

    def __str__(self) -> str:
        return self.path if self.scheme == "file" else f"{self.scheme}://{self.host}/{self.path}".rstrip("/")


def split_location(text: str) -> Location:
    """Take a location apart.

    An address holds a place and nothing else: no keys, because it is stored and shown, and no query, which could send
    a reader with this machine's keys to another server. Errors repeat nothing of it but its scheme.

    Args:
        text: A path, or an address of one of SCHEMES.

    Raises:
        ValueError: neither, or an address with user names, keys, a query, a fragment or `..`.
    """
    if not text.strip() or "\0" in text:
        raise ValueError("an empty path")
    match = _SCHEME.match(text)
    if match is None:
        return Location("file", "", text)
    scheme = match[1].lower()
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise ValueError(f"scheme {match[1]!r} is not supported; use a path (./ before a name with a colon) or {known}")
    if not text[match.end() :].startswith("//"):
        raise ValueError(f"two slashes are missing; write {scheme}://...")
    _refuse_more_than_a_place(text, scheme)
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise ValueError(f"no {scheme}:// address; its host or port is malformed") from None
    if scheme == "file":
        return _file_location(parts)
    path = parts.path.strip("/")
    if any(segment in ("", ".") for segment in path.split("/")) and path:
        raise ValueError(f"empty parts or '.' in the path of a {scheme}:// address; leave them out")
    if scheme in ("s3", "gs") and not _BUCKET.fullmatch(parts.netloc):
        raise ValueError(f"{parts.netloc!r} is no bucket's name; write {scheme}://BUCKET/FOLDER")
    if not parts.hostname:
        raise ValueError(f"no host; write {scheme}://HOST/FOLDER")
    return Location(scheme, parts.netloc, path)


def _refuse_more_than_a_place(text: str, scheme: str) -> None:
    _, _, rest = text.partition("://")
    if not text.isprintable() or "\\" in text or (scheme != "file" and " " in text):
        raise ValueError(f"control characters, blanks or backslashes in a {scheme}:// address; percent-encode them")
    if "?" in rest or "#" in rest:
        raise ValueError(
            f"a query or fragment in a {scheme}:// address; leave it out (endpoint, region and keys come from the "
            "environment), or write %3F and %23 in file names"
        )
    if "@" in rest.partition("/")[0]:
        raise ValueError(
            f"a user name or key in a {scheme}:// address; keys come from the environment, such as AWS_ACCESS_KEY_ID"
        )
    if "\0" in unquote(rest):
        raise ValueError(f"a NUL byte in a {scheme}:// address; leave it out")
    if ".." in unquote(rest).split("/"):
        raise ValueError(f"'..' in a {scheme}:// address; write the path without it")


def _file_location(parts: SplitResult) -> Location:
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise ValueError(f"file address of the host {parts.netloc!r}; write file:///absolute/path")
    return Location("file", "", unquote(parts.path))
