"""Opening a database: pragmas, file mode, the kind of transaction, migrations."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
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
# Before 3.51.3 a race in resetting the write-ahead log can lose committed transactions.
WAL_IS_SAFE = sqlite3.sqlite_version_info >= (3, 51, 3)
_TAKEN = "another segfleet service already dispatches from this database; stop it first"
_LEADER_KEY = 0x5E6F1EE7
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
        engine = create_engine(parsed, pool_pre_ping=True)
    except (SQLAlchemyError, ImportError, OSError, ValueError) as error:
        raise QueueUnavailableError(f"the queue's database cannot be opened: {error}") from error
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def migrate(engine: Engine) -> None:
    """Bring the tables to this version's shape, all or nothing.

    Raises:
        QueueUnavailableError: the database cannot be reached, or a newer segfleet has changed it.
    """
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    try:
        with engine.execution_options(**{WRITE: True}).begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError as error:
        raise QueueUnavailableError(
            f"the queue's database was made by a newer segfleet: {error}; use that version"
        ) from error
    except DBAPIError as error:
        raise QueueUnavailableError(f"the queue's database cannot be opened: {error.orig}") from error


@contextmanager
def leadership(engine: Engine) -> Iterator[None]:
    """Be the one service that dispatches from a database; the right ends with the process, however it ends.

    Raises:
        QueueUnavailableError: another process has it.
    """
    if engine.dialect.name == "sqlite":
        path = Path(f"{engine.url.database}.lock")
        with path.open("a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise QueueUnavailableError(_TAKEN) from error
            yield
    else:
        # The lock belongs to the connection, which therefore stays checked out, and ends with it: detached, it is
        # closed in earnest instead of going back to the pool with the lock.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.detach()
            if not connection.scalar(select(func.pg_try_advisory_lock(_LEADER_KEY))):
                raise QueueUnavailableError(_TAKEN)
            yield


def _create_private(url: URL) -> None:
    if url.database and url.database != ":memory:":
        path = Path(url.database)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        path.chmod(0o600)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own BEGIN is always a deferred one; _begin_sqlite replaces it.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute(f"PRAGMA journal_mode={'WAL' if WAL_IS_SAFE else 'TRUNCATE'}")
    connection.execute("PRAGMA synchronous=FULL")


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get(WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
