"""Fixtures: the queue on SQLite (on PostgreSQL too, if SEGFLEET_TEST_POSTGRES is a throw-away database) and HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from factories import POSTGRES, close_stores, fresh_database, migrated_database
from segfleet.client import Client
from serving import API_TOKEN, URL, AppTransport, Service, serving


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
def client(transport: AppTransport) -> Client:
    return Client(URL, API_TOKEN, transport=transport)


@pytest.fixture
def queue_url(database_url: str, tmp_path: Path) -> str:
    """URL of a database that holds empty tables already, where that saves time."""
    if database_url.startswith("sqlite"):
        return migrated_database(tmp_path / "segfleet.db")
    return database_url
