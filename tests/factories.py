"""Makers of valid values; each test states only what it is about."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, make_url, text

from fakes import FakeClock
from segfleet.queue.model import Attempt
from segfleet.queue.service import Queue
from segfleet.queue.states import AttemptState
from segfleet.queue.store import Store
from segfleet.settings import Home, Settings
from segfleet.spec.resolve import resolve_spec, to_document

RUNNING = Attempt(
    id="job-aaaaaaaa-a1",
    job_id="job-aaaaaaaa",
    number=1,
    fence=1,
    state=AttemptState.RUNNING,
    ray_session="session_1",
    created_at=0.0,
    claimed_at=0.0,
    heartbeat_at=0.0,
    finished_at=None,
    beats=1,
    used_s=0.0,
    workers=1,
    stop_asked_at=None,
    failure=None,
    closed=False,
)
OPEN_STORES: list[Store] = []


def _postgres() -> str:
    """URL of a PostgreSQL database for this test process alone, or nothing."""
    url, process = os.environ.get("SEGFLEET_TEST_POSTGRES", ""), os.environ.get("PYTEST_XDIST_WORKER", "")
    if not url or not process:
        return url
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        if not connection.scalar(text("SELECT count(*) FROM pg_database WHERE datname = :name"), {"name": process}):
            connection.execute(text(f"CREATE DATABASE {process}"))
    engine.dispose()
    return make_url(url).set(database=process).render_as_string(hide_password=False)


POSTGRES = _postgres()


def train_document(workers: int = 1, **queue: Any) -> dict[str, Any]:
    """A resolved training spec."""
    return to_document(
        resolve_spec(
            {
                "kind": "train",
                "name": "shapes",
                "data": {"shards": "/data/shapes"},
                "train": {"global_batch": 8 * workers},
                "resources": {"workers": workers},
                "queue": queue,
            }
        )
    )


def prepare_document(**queue: Any) -> dict[str, Any]:
    """A resolved preparation spec."""
    return to_document(
        resolve_spec(
            {"kind": "prepare", "name": "shapes", "dataset": "synthetic", "out": "/data/shapes", "queue": queue}
        )
    )


def make_settings(root: Path, **changes: Any) -> Settings:
    """Settings of a service on a home folder that exists."""
    home = Home(root)
    home.create()
    values = {
        "home": home,
        "port": 8700,
        "ray_address": "http://127.0.0.1:8265",
        "mlflow_uri": "http://127.0.0.1:5000",
        "database_url": home.database_url,
        **changes,
    }
    return Settings(**values)


def make_queue(root: Path, clock: FakeClock | None = None, url: str | None = None) -> Queue:
    """A queue on a database under a folder."""
    store = Store(url or migrated_database(root / "segfleet.db"))
    OPEN_STORES.append(store)
    return Queue(store, clock or FakeClock(), root / "storage")


def migrated_database(path: Path) -> str:
    """URL of an SQLite file with all tables, made if it is not there: to migrate takes longer than most tests do."""
    if not path.exists():
        path.write_bytes(_migrated())
    return f"sqlite:///{path}"


@functools.cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "segfleet.db"
        Store(f"sqlite:///{path}").close()
        return path.read_bytes()


def close_stores() -> None:
    """Give back the connections of all queues that were made."""
    while OPEN_STORES:
        OPEN_STORES.pop().close()


def fresh_database(kind: str, folder: Path) -> str:
    """URL of an empty database."""
    if kind == "sqlite":
        return f"sqlite:///{folder / 'segfleet.db'}"
    engine = create_engine(POSTGRES)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return POSTGRES
