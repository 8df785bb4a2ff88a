"""Write requirements.lock: the exact versions, in this environment, of all that segfleet's dev extra needs.

`make lock` runs it after someone has upgraded packages in `.venv`. Packages that were installed by hand and that
nothing asks for stay out; so do local paths and addresses of package indexes.
"""

from __future__ import annotations

import sys
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "segfleet"
# The build backend is pinned as well: the editable install then needs no isolated build, hence no second download.
ROOTS = (f"{PROJECT}[dev]", "hatchling", "editables")
HEADER = """\
# Exact versions of everything the dev extra needs, for Linux x86_64 and Python 3.11 or newer.
# Written by `make lock` from .venv; do not edit. To renew: .venv/bin/pip install --upgrade NAME, make test, make lock.
"""


def needed_versions(roots: tuple[str, ...]) -> dict[str, str]:
    """Name and installed version of each package the roots need, directly or not."""
    versions: dict[str, str] = {}
    done: dict[str, set[str]] = {}
    waiting = [Requirement(root) for root in roots]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = {"", *requirement.extras} - done.setdefault(name, set())
        if not extras:
            continue
        done[name] |= extras
        package = distribution(name)
        versions[name] = package.version
        for text in package.requires or ():
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(inner)
    return versions


def main() -> int:
    """Command line: `python scripts/lock.py FILE`."""
    versions = needed_versions(ROOTS)
    del versions[PROJECT]
    pins = "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))
    Path(sys.argv[1]).write_text(HEADER + pins, encoding="utf-8")
    print(f"{sys.argv[1]}: {len(versions)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
