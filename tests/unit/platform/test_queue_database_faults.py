"""The database locked, full, damaged, gone or cut off: nothing is half-written, and afterwards the queue goes on."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from factories import make_queue, migrated_database, train_document
from segfleet.errors import QueueUnavailableError
from segfleet.queue import database
from segfleet.queue.service import Queue
from segfleet.queue.store import Store


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "segfleet.db"
    migrated_database(path)
    return path


def submit(queue: Queue) -> str:
    return queue.submit(train_document(), owner="ann")[0].id


def stored(path: Path) -> set[str]:
    connection = sqlite3.connect(path)
    try:
        return {row[0] for row in connection.execute("SELECT id FROM jobs")}
    finally:
        connection.close()


def test_a_lock_that_stays_is_an_error_and_what_follows_works(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 50)
    queue = make_queue(tmp_path, url=f"sqlite:///{file}")
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(QueueUnavailableError, match=r"database is locked; nothing was stored"):
        submit(queue)
    other.execute("ROLLBACK")
    other.close()
    job_id = submit(queue)
    assert stored(file) == {job_id}


def test_a_full_disk_stores_nothing_by_halves_and_space_brings_it_back(file: Path, tmp_path: Path) -> None:
    queue = make_queue(tmp_path, url=f"sqlite:///{file}")
    acknowledged = {submit(queue)}
    with queue.store.read() as tx:
        # The pool has this one connection; a bound of its pages is what a full disk is to SQLite.
        pages = tx._connection.exec_driver_sql("PRAGMA page_count").scalar()
        tx._connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    with pytest.raises(QueueUnavailableError, match=r"disk is full; nothing was stored"):
        acknowledged.update(submit(queue) for _ in range(100))
    assert {job.id for job in queue.list()} == acknowledged  # reading goes on
    with queue.store.read() as tx:
        tx._connection.exec_driver_sql("PRAGMA max_page_count=1000000")
    acknowledged.add(submit(queue))
    assert stored(file) == acknowledged


def test_a_database_that_lost_its_name_takes_nothing_more(file: Path, tmp_path: Path) -> None:
    queue = make_queue(tmp_path, url=f"sqlite:///{file}")
    submit(queue)
    moved = file.rename(tmp_path / "moved.db")
    with pytest.raises(QueueUnavailableError, match=r"segfleet\.db' is gone"):
        submit(queue)
    shutil.copy(moved, file)
    with pytest.raises(QueueUnavailableError, match="was replaced while in use; start the service again"):
        submit(queue)
    assert len(stored(moved)) == len(stored(file)) == 1
    file.unlink()
    moved.rename(file)
    submit(queue)
    assert len(stored(file)) == 2


def test_a_damaged_file_is_found_at_the_start(file: Path, tmp_path: Path) -> None:
    queue = make_queue(tmp_path, url=f"sqlite:///{file}")
    for _ in range(20):
        submit(queue)
    queue.store.close()
    size = file.stat().st_size
    with file.open("r+b") as damaged:
        damaged.seek(size // 2)
        damaged.write(os.urandom(size // 4))
    with pytest.raises(QueueUnavailableError, match=r"damaged|malformed"):
        Store(f"sqlite:///{file}")


def test_kill_9_amid_writes_keeps_all_that_was_acknowledged(file: Path, tmp_path: Path) -> None:
    for round_ in range(4):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover - ends by SIGKILL
            queue = make_queue(tmp_path, url=f"sqlite:///{file}")
            while True:
                os.write(writer, submit(queue).encode() + b"\n")
        os.close(writer)
        with os.fdopen(reader, "rb") as told:
            acknowledged = {told.readline().decode().strip() for _ in range(3 + 4 * round_)}
            os.kill(child, 9)
            os.waitpid(child, 0)
            acknowledged |= {line.decode().strip() for line in told if line.endswith(b"\n")}
        assert acknowledged <= stored(file)
        connection = sqlite3.connect(file)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()


@pytest.fixture
def shared(database_url: str, tmp_path: Path) -> tuple[Queue, Queue]:
    if not database_url.startswith("postgres"):
        pytest.skip("only PostgreSQL cuts connections and finds deadlocks")
    return make_queue(tmp_path, url=database_url), make_queue(tmp_path, url=database_url)


def test_cut_connections_cost_at_most_the_transaction_they_were_in(
    shared: tuple[Queue, Queue], database_url: str
) -> None:
    queue, _ = shared
    first = submit(queue)
    engine = create_engine(database_url)
    others = "pid <> pg_backend_pid() AND datname = current_database()"
    cut = text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
    with engine.begin() as connection:
        connection.execute(cut)
    assert queue.get(first).id == first  # an idle connection is replaced

    def work_in_vain() -> None:
        with queue.store.write() as tx:
            tx.job(first)
            with engine.begin() as connection:
                connection.execute(cut)
            tx.job(first)

    with pytest.raises(QueueUnavailableError, match="nothing was stored"):
        work_in_vain()
    engine.dispose()
    second = submit(queue)
    assert {job.id for job in queue.list()} == {first, second}


def test_of_two_crossing_transactions_one_goes_through_and_one_may_try_again(shared: tuple[Queue, Queue]) -> None:
    one, two = shared
    first, second = submit(one), submit(one)
    meeting = threading.Barrier(2, timeout=30)
    outcomes = []

    def cross(queue: Queue, here: str, there: str) -> None:
        try:
            with queue.store.write() as tx:
                tx.job(here)
                meeting.wait()
                tx.job(there)
            outcomes.append("done")
        except QueueUnavailableError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=cross, args=args) for args in ((one, first, second), (two, second, first))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcome == "done" for outcome in outcomes) == [False, True]
    assert any("deadlock detected" in outcome for outcome in outcomes)


@pytest.mark.parametrize(
    ("path", "network"),
    [
        ("/home/ann/segfleet.db", True),
        ("/home/ann/local/segfleet.db", False),
        ("/data/my files/segfleet.db", True),
        ("/homes/segfleet.db", False),
    ],
)
def test_a_network_s_file_system_is_recognised(path: str, network: bool, tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    lines = ["/dev/sda / ext4 rw 0 0", "nas:/home /home ext4 rw 0 0", "nas:/home /home nfs4 rw 0 0"]
    lines += ["/dev/sdb /home/ann/local xfs rw 0 0", "ann@nas:/ /data/my\\040files fuse.sshfs rw 0 0"]
    mounts.write_text("\n".join(lines))
    assert database.is_on_network(path, mounts) is network
    assert not database.is_on_network(path, tmp_path / "no such file")


@pytest.mark.parametrize(
    ("safe", "network", "journal"), [(True, False, "wal"), (True, True, "delete"), (False, False, "delete")]
)
def test_the_journal_is_written_ahead_only_where_that_is_safe(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, safe: bool, network: bool, journal: str
) -> None:
    monkeypatch.setattr(database, "WAL_IS_SAFE", safe)
    monkeypatch.setattr(database, "is_on_network", lambda _: network)
    submit(make_queue(tmp_path, url=f"sqlite:///{file}"))
    connection = sqlite3.connect(file)
    # A file remembers that it is in write-ahead mode, and nothing of the other journals.
    assert connection.execute("PRAGMA journal_mode").fetchone() == (journal,)
    connection.close()
