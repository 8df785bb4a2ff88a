from __future__ import annotations

import json
import sqlite3
import stat
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import text

from factories import make_queue, train_document
from segfleet.errors import QueueUnavailableError
from segfleet.queue import database
from segfleet.queue.database import open_engine
from segfleet.queue.scheduling.values import Gang
from segfleet.queue.store import LostRaceError, Store
from segfleet.queue.tables import metadata
from world import World


def test_migrations_lead_to_the_tables_of_the_code(database_url: str) -> None:
    Store(database_url).close()
    engine = open_engine(database_url)
    with engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_a_store_opens_again_with_all_that_was_stored(tmp_path: Path, database_url: str) -> None:
    queue = make_queue(tmp_path, url=database_url)
    job, _ = queue.submit(train_document(), owner="ann", key="k")
    queue.store.close()
    again = make_queue(tmp_path, url=database_url)
    assert again.get(job.id) == job
    assert again.submit(train_document(), owner="ann", key="k") == (job, True)


def test_a_database_of_a_newer_version_is_left_alone(database_url: str) -> None:
    Store(database_url).close()
    engine = open_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(QueueUnavailableError, match="newer segfleet"):
        Store(database_url)
    engine.dispose()


def test_jobs_of_the_first_version_live_on(tmp_path: Path, database_url: str) -> None:
    """A database with jobs that were submitted before gangs, pausing and dependencies existed."""
    old = train_document(workers=3, time_limit="2h")
    del old["queue"]["after"]
    times = {"created_at": 1.0, "updated_at": 1.0}
    job = {
        "id": "job-aaaaaaaa",
        "name": "old",
        "kind": "train",
        "owner": "ann",
        "project": "p",
        "state": "queued",
        "reason": "",
        "priority": 50,
        "cpus": 3,
        "gpus": 0,
        "spec": json.dumps(old),
        "attempt": 1,
        "fence": 1,
        "budget_from": 0,
        "cancel_requested": False,
        "version": 4,
        **times,
    }
    attempt = {
        "id": "job-aaaaaaaa-a1",
        "job_id": "job-aaaaaaaa",
        "number": 1,
        "fence": 1,
        "state": "lost",
        "code_hash": "0",
        "created_at": 1.0,
        "beats": 2,
        "used_s": 60.0,
        "closed": True,
    }
    engine = open_engine(database_url)
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    with engine.execution_options(**{database.WRITE: True}).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for table, row in (("jobs", job), ("attempts", attempt)):
            columns, values = ", ".join(row), ", ".join(f":{name}" for name in row)
            connection.execute(text(f"INSERT INTO {table} ({columns}) VALUES ({values})"), row)
    engine.dispose()
    world = World(tmp_path, database_url)
    moved = world.queue.get("job-aaaaaaaa")
    assert (moved.gang, moved.time_limit_s, moved.overtaken) == (Gang(3, 1, 0), 7200.0, 0)
    assert world.queue.attempts(moved.id)[0].workers == 3
    world.ray.cpus = 3
    world.step()
    assert world.claim(moved, number=2).spec == old
    world.queue.pause(moved.id, "ann")
    assert world.queue.get(moved.id).state == "preempting"


def test_an_interrupted_migration_leaves_nothing(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    upgrade = database.command.upgrade

    def die(config: object, revision: str) -> None:
        upgrade(config, revision)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(database.command, "upgrade", die)
    with pytest.raises(KeyboardInterrupt):
        Store(database_url)
    monkeypatch.undo()
    engine = open_engine(database_url)
    with engine.begin() as connection:
        assert not engine.dialect.has_table(connection, "jobs")
    engine.dispose()
    Store(database_url).close()


def test_a_stale_read_changes_nothing(tmp_path: Path, database_url: str) -> None:
    queue = make_queue(tmp_path, url=database_url)
    stale, _ = queue.submit(train_document(), owner="ann")
    with queue.store.write() as tx:
        tx.change_job(tx.job(stale.id), {"reason": "newer"})
    with pytest.raises(LostRaceError, match="at the same moment"), queue.store.write() as tx:
        tx.change_job(stale, {"reason": "older"})
    assert queue.get(stale.id).reason == "newer"


def test_only_one_service_uses_an_embedded_database(tmp_path: Path) -> None:
    first, second = (Store(f"sqlite:///{tmp_path / 'queue.db'}") for _ in range(2))
    with first.exclusive(), pytest.raises(QueueUnavailableError, match="already uses"), second.exclusive():
        pass
    with second.exclusive():
        pass
    first.close()
    second.close()


def test_the_sqlite_file_is_private_and_durable(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    path.touch(mode=0o644)
    store = Store(f"sqlite:///{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    engine = open_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        pragma = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    safe = "wal" if sqlite3.sqlite_version_info >= (3, 51, 3) else "truncate"
    assert pragma == {"journal_mode": safe, "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}
    engine.dispose()
    store.close()


def test_a_write_transaction_holds_the_lock_from_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 1)
    queue = make_queue(tmp_path)
    with queue.store.write():
        with pytest.raises(QueueUnavailableError, match="database is locked"):
            queue.submit(train_document(), owner="ann")
        assert queue.list() == ()
    queue.submit(train_document(), owner="ann")


@pytest.mark.parametrize("url", ["nonsense", "oracle://host/db", "sqlite:////proc/none/queue.db"])
def test_a_database_that_cannot_be_opened_is_a_clear_error(url: str) -> None:
    with pytest.raises(QueueUnavailableError, match="cannot be opened"):
        Store(url)


def test_a_file_that_is_no_database_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(QueueUnavailableError, match="not a database"):
        Store(f"sqlite:///{path}")
