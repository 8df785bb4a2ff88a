"""Run a command with a throw-away PostgreSQL in SEGFLEET_TEST_POSTGRES: python scripts/with_postgres.py COMMAND...

The server listens on a socket in a fresh folder and nowhere else; server and folder are gone when the command ends.
Without an installed PostgreSQL the command is not run, and the exit code says so only in continuous integration.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_USER = "postgres"


def main(command: Sequence[str]) -> int:
    """Start a server, run the command, stop the server; the command's exit code."""
    tools = find_tools()
    if tools is None:
        must = bool(os.environ.get("CI"))
        print(f"{'error' if must else 'left out'}: no PostgreSQL is installed (Debian: apt-get install postgresql)")
        return int(must)
    folder = Path(tempfile.mkdtemp(prefix="segfleet-postgres-"))
    try:
        start(tools, folder)
        url = f"postgresql+psycopg://{_USER}@/postgres?host={folder}"
        return subprocess.run(command, env={**os.environ, "SEGFLEET_TEST_POSTGRES": url}, check=False).returncode
    finally:
        stop(tools, folder)
        shutil.rmtree(folder, ignore_errors=True)


def find_tools() -> Path | None:
    """The folder with initdb and pg_ctl; Debian keeps it off the PATH. None: not installed."""
    found = [Path(path).parent for path in (shutil.which("initdb"),) if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((tools for tools in found if (tools / "pg_ctl").exists() and (tools / "initdb").exists()), None)


def start(tools: Path, folder: Path) -> None:
    """Make a cluster of databases and serve it; durability is off, for it ends with the tests."""
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, _USER)
    _run(tools / "initdb", "--auth=trust", f"--username={_USER}", "--no-sync", "--pgdata", folder / "data")
    options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off -c max_connections=200"
    _run(tools / "pg_ctl", "--pgdata", folder / "data", "--wait", "--log", folder / "log", "-o", options, "start")


def stop(tools: Path, folder: Path) -> None:
    """End the server at once, if it runs."""
    if (folder / "data" / "postmaster.pid").exists():
        _run(tools / "pg_ctl", "--pgdata", folder / "data", "--mode=immediate", "stop")


def _run(*command: str | Path) -> None:
    user = _USER if os.getuid() == 0 else None
    # Groups too: those of root would come along otherwise.
    groups = [] if user else None
    subprocess.run(command, user=user, group=user, extra_groups=groups, cwd="/", stdout=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
