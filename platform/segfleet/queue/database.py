"""Opening a database: pragmas, file mode, the kind of transaction, migrations."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from segfleet.errors import QueueUnavailableError

WRITE = "segfleet_write"
BUSY_TIMEOUT_MS = 10_000
IDLE_TIMEOUT_MS = 5_000
# Of libpq, seconds and (the last) milliseconds.
_POSTGRES_BOUNDS = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
# Before 3.51.3 a race in resetting the write-ahead log can lose committed transactions.
WAL_IS_SAFE = sqlite3.sqlite_version_info >= (3, 51, 3)
_NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "lustre", "nfs", "nfs4", "smb3", "virtiofs"}
)
_TAKEN = "another segfleet service already uses this database; stop it first, or share a PostgreSQL"
_MIGRATION_KEY = 0x5E6F1EE7
_MIGRATIONS = Path(__file__).parent / "migrations"


def open_engine(url: str) -> Engine:
    """Connect to a database, without touching its tables.

    Transactions begun under the execution option WRITE take SQLite's write lock at once: a transaction that reads
    first and upgrades later would fail at once when another writer was faster, whatever the busy timeout.

    Raises:
        QueueUnavailableError: the URL is malformed, its driver is missing, or the file cannot be made.
    """
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            _create_private(parsed)
        engine = create_engine(parsed, pool_pre_ping=True, connect_args=_connect_args(parsed))
    except (SQLAlchemyError, ImportError, OSError, ValueError) as error:
        raise QueueUnavailableError(f"the queue's database cannot be opened: {error}") from error
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite(parsed.database or ""))
        if parsed.database and parsed.database != ":memory:":
            event.listen(engine, "begin", _still_there(Path(parsed.database)))
        event.listen(engine, "begin", _begin_sqlite)
    else:
        event.listen(engine, "connect", _prepare_postgres)
    return engine


def migrate(engine: Engine) -> None:
    """Bring the tables to this version's shape, all or nothing.

    Raises:
        QueueUnavailableError: the database cannot be reached, is damaged, or a newer segfleet has changed it.
    """
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    try:
        with engine.execution_options(**{WRITE: True}).begin() as connection:
            if engine.dialect.name == "sqlite":
                _check_sound(connection)
            else:
                # Servers that start together would make the same tables: all but one wait, however long that takes.
                for bound in ("lock_timeout", "idle_in_transaction_session_timeout"):
                    connection.exec_driver_sql(f"SET LOCAL {bound} = 0")
                connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_KEY)))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError as error:
        raise QueueUnavailableError(
            f"the queue's database was made by a newer segfleet: {error}; use that version"
        ) from error
    except DBAPIError as error:
        raise QueueUnavailableError(f"the queue's database cannot be opened: {error.orig}") from error


def is_on_network(path: str, mounts: Path = Path("/proc/self/mounts")) -> bool:
    """Whether a file lies on a file system of another machine, where a write-ahead log's shared memory cannot work."""
    here = Path(path).absolute()
    try:
        # In the order of mounting: of two on one folder, the later one is seen.
        found = [line.split()[1:3] for line in mounts.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return False
    kinds = [(len(folder), kind) for folder, kind in found if here.is_relative_to(folder.replace("\\040", " "))]
    kind = max(reversed(kinds), default=(0, ""), key=lambda one: one[0])[1]
    return kind in _NETWORK or kind.startswith("fuse.")


@contextmanager
def exclusive(engine: Engine) -> Iterator[None]:
    """Be the only server on an embedded database; the right ends with the process, however it ends.

    On PostgreSQL nothing is held: servers share it.

    Raises:
        QueueUnavailableError: another process has it.
    """
    if engine.dialect.name != "sqlite":
        yield
        return
    with Path(f"{engine.url.database}.lock").open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise QueueUnavailableError(_TAKEN) from error
        yield


def _create_private(url: URL) -> None:
    if url.database and url.database != ":memory:":
        path = Path(url.database)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        path.chmod(0o600)


def _check_sound(connection: Connection) -> None:
    found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
    if found != "ok":
        raise QueueUnavailableError(f"the queue's database is damaged: {found}; put a backup in its place")


def _still_there(path: Path) -> Callable[[Connection], None]:
    """Look before each transaction: what is written to a file that has lost its name is gone with the process."""
    first = path.stat()

    def check(_connection: Connection) -> None:
        try:
            now = path.stat()
        except OSError as error:
            raise QueueUnavailableError(f"the queue's database {str(path)!r} is gone: {error.strerror}") from error
        if not os.path.samestat(first, now):
            what = f"the queue's database {str(path)!r} was replaced while in use"
            raise QueueUnavailableError(f"{what}; start the service again to use the new one")

    return check


def _connect_args(url: URL) -> dict[str, Any]:
    """Bounds on how long a network or a machine that went silent can hold up a server; what the URL says wins."""
    if url.get_backend_name() != "postgresql":
        return {}
    return {name: value for name, value in _POSTGRES_BOUNDS.items() if name not in url.query}


def _prepare_postgres(connection: Any, _record: Any) -> None:
    # A server that was suspended inside a transaction gives its locks back before another one wants to lead.
    with connection.cursor() as cursor:
        cursor.execute(f"SET idle_in_transaction_session_timeout = {IDLE_TIMEOUT_MS}")
        cursor.execute(f"SET lock_timeout = {BUSY_TIMEOUT_MS}")
    connection.commit()


def _prepare_sqlite(path: str) -> Callable[[Any, Any], None]:
    journal = "WAL" if WAL_IS_SAFE and not is_on_network(path) else "TRUNCATE"

    def prepare(connection: Any, _record: Any) -> None:
        # The driver's own BEGIN is always a deferred one; _begin_sqlite replaces it.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA journal_mode={journal}")
        connection.execute("PRAGMA synchronous=FULL")

    return prepare


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get(WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
