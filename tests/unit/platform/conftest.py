"""Fixtures: the queue on SQLite (on PostgreSQL too, if SEGFLEET_TEST_POSTGRES is a throw-away database) and HTTP."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from factories import POSTGRES, close_stores, fresh_database
from segfleet.queue.store import Store
from serving import AppTransport, Service, serving


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite database with all tables; copying it saves each test the migration."""
    path = tmp_path_factory.mktemp("template") / "segfleet.db"
    Store(f"sqlite:///{path}").close()
    return path


@pytest.fixture(params=["sqlite", "postgres"] if POSTGRES else ["sqlite"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield fresh_database(request.param, tmp_path)
    close_stores()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path) as service:
        yield service


@pytest.fixture
def transport(service: Service) -> AppTransport:
    return AppTransport(service.http)


@pytest.fixture
def queue_url(database_url: str, tmp_path: Path, migrated_file: Path) -> str:
    """URL of a database that holds empty tables already, where that saves time."""
    if database_url.startswith("sqlite"):
        shutil.copy(migrated_file, tmp_path / "segfleet.db")
    return database_url
