"""Where a dataset lives: a folder's path or a file:// address, and nothing that could start a program or a download."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from segfleet.errors import DataError

# Two letters and more: one letter is a drive on some systems, and none of the schemes to refuse is that short.
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:")


def resolve_location(location: str | Path) -> Path:
    """The folder that a location names, as an absolute path.

    Args:
        location: A path, `file:///absolute/path` or `file://localhost/absolute/path`. Any other scheme is refused,
            above all `pipe:`, which WebDataset would hand to a shell.

    Raises:
        DataError: another scheme or another host.
    """
    text = str(location)
    if not text.strip() or "\0" in text:
        raise DataError(f"location {text!r} is not a path; give a folder")
    if text.startswith("file://"):
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise DataError(f"location {text!r} names the host {parts.netloc!r}; write file:///absolute/path")
        return Path(unquote(parts.path)).absolute()
    if isinstance(location, str) and _SCHEME.match(text):
        raise DataError(f"location {text!r} is not supported; use a folder's path (or ./{text}) or file:///path")
    return Path(text).expanduser().absolute()
