"""Back up and restore what an embedded service must not lose: `python -m segfleet.backup save|restore FOLDER`.

Saved are both databases (the queue's and MLflow's), as they are at one moment each, while the service runs, and the
small secret files of the home. Checkpoints and artifacts are files of their own, and a queue on PostgreSQL has
`pg_dump`: docs/operations.md.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from segfleet.errors import SegfleetError, SettingsError
from segfleet.settings import Home, default_home

DATABASES = ("segfleet.db", "mlflow.db")
# Without the webhook key, the receivers of webhooks would have to be given new secrets.
SECRETS = ("token", "ray-token", "webhook-key")
_LIST = "backup.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Save or restore the home of SEGFLEET_HOME, or of ~/.segfleet.

    Returns:
        0: done, 2: it could not be.
    """
    parser = argparse.ArgumentParser(prog="python -m segfleet.backup", description=main.__doc__)
    parser.add_argument("what", choices=("save", "restore"))
    parser.add_argument("folder", type=Path)
    chosen = parser.parse_args(arguments)
    home = default_home()
    try:
        names = save(home, chosen.folder) if chosen.what == "save" else restore(chosen.folder, home)
    except SegfleetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{chosen.what}d {', '.join(names)}")
    return 0


def save(home: Home, folder: Path) -> list[str]:
    """Copy what is there into a new folder, mode 0700; the service may run meanwhile.

    The folder appears whole or not at all.

    Returns:
        Names of what was saved.

    Raises:
        SettingsError: there is no queue to save, the folder is there already, or a file cannot be read or written.
    """
    if not (home.root / DATABASES[0]).exists():
        raise SettingsError(f"home {str(home.root)!r} has no {DATABASES[0]}; name another with SEGFLEET_HOME")
    if folder.exists():
        raise SettingsError(f"{str(folder)!r} is there already; a backup goes into a new folder")
    staged = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        staged.mkdir(mode=0o700, parents=True)
        for name in DATABASES:
            if (home.root / name).exists():
                _copy_database(home.root / name, staged / name)
        for name in SECRETS:
            source = home.webhook_key if name == "webhook-key" else home.root / name
            if source.exists():
                _copy(source, staged / name)
        digests = {path.name: _digest(path) for path in sorted(staged.iterdir())}
        (staged / _LIST).write_text(json.dumps({"at": time.time(), "sha256": digests}, indent=2), encoding="utf-8")
        staged.rename(folder)
    except (OSError, sqlite3.Error) as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise SettingsError(f"home {str(home.root)!r} cannot be saved: {error}; nothing was written") from error
    return list(digests)


def restore(folder: Path, home: Home) -> list[str]:
    """Put a backup into a home without databases, under no running service.

    Returns:
        Names of what was restored.

    Raises:
        SettingsError: the backup is not whole, the home has a database or a running service, or it cannot be written.
    """
    digests = _checked(folder)
    present = [name for name in DATABASES if (home.root / name).exists()]
    if present:
        raise SettingsError(
            f"home {str(home.root)!r} has {' and '.join(present)} already; move it away first, and what stands beside "
            "it (-wal, -shm, .lock)"
        )
    home.create()
    try:
        with home.service_lock.open("a", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in digests:
                target = home.webhook_key if name == "webhook-key" else home.root / name
                staged = target.with_name(f".{name}.restored")
                _copy(folder / name, staged)
                staged.replace(target)
    except BlockingIOError as error:
        raise SettingsError(f"a service runs on home {str(home.root)!r}; stop it first") from error
    except OSError as error:
        raise SettingsError(f"home {str(home.root)!r} cannot be written: {error}") from error
    return list(digests)


def _checked(folder: Path) -> dict[str, str]:
    """Names and SHA-256 of a backup's files."""
    try:
        digests = json.loads((folder / _LIST).read_text(encoding="utf-8"))["sha256"]
        known = {name: digest for name, digest in digests.items() if name in (*DATABASES, *SECRETS)}
        damaged = [name for name, digest in known.items() if _digest(folder / name) != digest]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise SettingsError(f"{str(folder)!r} is no whole backup: {error}; take another one") from error
    if damaged:
        raise SettingsError(f"{', '.join(damaged)} in {str(folder)!r} changed since it was saved; take another backup")
    return known


def _copy_database(source: Path, target: Path) -> None:
    """One moment's content, also of a database that is written to meanwhile."""
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with (
        closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as reader,
        closing(sqlite3.connect(target)) as writer,
    ):
        reader.backup(writer)
        # One file, whatever stood beside the original.
        writer.execute("PRAGMA journal_mode=DELETE")
        found = writer.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(f"{source.name} is damaged ({found})")


def _copy(source: Path, target: Path) -> None:
    with os.fdopen(os.open(target, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
        file.write(source.read_bytes())
        file.flush()
        os.fsync(file.fileno())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
