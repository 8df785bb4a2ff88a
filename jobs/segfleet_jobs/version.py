"""Which code is running."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit


def code_version() -> str:
    """The package's version and, where it was installed from a git repository, the revision.

    Changes that were never committed are not seen.
    """
    version, revision = metadata.version("segfleet"), _revision()
    return f"{version}+git.{revision[:12]}" if revision else version


def _revision() -> str:
    """Commit of the repository that the package is installed from; empty if it was not."""
    try:
        origin = json.loads(metadata.distribution("segfleet").read_text("direct_url.json") or "{}")
        if "vcs_info" in origin:
            return str(origin["vcs_info"]["commit_id"])
        url = urlsplit(origin.get("url", ""))
        if url.scheme != "file" or not origin.get("dir_info", {}).get("editable"):
            return ""
        git = Path(unquote(url.path)) / ".git"
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        if (git / name).is_file():
            return (git / name).read_text(encoding="utf-8").strip()
        packed = (git / "packed-refs").read_text(encoding="utf-8").splitlines()
        return next((line.partition(" ")[0] for line in packed if line.endswith(f" {name}")), "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
