from __future__ import annotations

import fcntl
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from segfleet import backup
from segfleet.cluster.launcher import RayState
from segfleet.errors import SettingsError
from segfleet.queue.states import JobState
from segfleet.settings import Home
from world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "home").mkdir(mode=0o700)
    for name in backup.SECRETS:
        (tmp_path / "home" / name).write_text(f"secret of {name}")
    return World(tmp_path / "home")


def content(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(path)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: connection.execute(f"SELECT * FROM {table} ORDER BY rowid").fetchall() for table in tables}


def test_a_queue_that_works_meanwhile_is_saved_and_goes_on_elsewhere(world: World, tmp_path: Path) -> None:
    done, waiting = world.submit(), world.submit(workers=2)
    world.step()
    grant = world.claim(done)
    world.queue.complete(grant.attempt_id, grant.token, {"miou": 0.5})
    names = backup.save(Home(world.root), tmp_path / "saved")
    assert names == ["ray-token", "segfleet.db", "token", "webhook-key"]
    before = content(world.root / "segfleet.db")
    world.submit()  # comes too late
    backup.restore(tmp_path / "saved", Home(tmp_path / "elsewhere"))
    assert content(tmp_path / "elsewhere" / "segfleet.db") == before
    restored = World(tmp_path / "elsewhere", ray=world.ray)
    assert (restored.state(done), restored.state(waiting)) == (JobState.SUCCEEDED, JobState.QUEUED)
    assert [event.kind for event in restored.queue.events(done.id)] == [e.kind for e in world.queue.events(done.id)]
    world.ray.end(grant.attempt_id, RayState.SUCCEEDED)
    restored.pass_time(30)
    assert restored.state(waiting) == JobState.STARTING
    assert (tmp_path / "elsewhere" / "token").read_text() == "secret of token"


def test_nobody_else_can_read_a_backup(world: World, tmp_path: Path) -> None:
    backup.save(Home(world.root), tmp_path / "saved")
    assert (tmp_path / "saved").stat().st_mode & 0o777 == 0o700
    modes = {path.stat().st_mode & 0o077 for path in (tmp_path / "saved").iterdir() if path.name != "backup.json"}
    assert modes == {0}


def test_a_backup_is_never_written_over_another_nor_over_a_queue(world: World, tmp_path: Path) -> None:
    backup.save(Home(world.root), tmp_path / "saved")
    with pytest.raises(SettingsError, match="is there already"):
        backup.save(Home(world.root), tmp_path / "saved")
    with pytest.raises(SettingsError, match=r"has segfleet\.db already"):
        backup.restore(tmp_path / "saved", Home(world.root))
    with pytest.raises(SettingsError, match=r"has no segfleet\.db"):
        backup.save(Home(tmp_path / "nowhere"), tmp_path / "again")


def test_a_damaged_database_is_not_saved_as_a_good_one(world: World, tmp_path: Path) -> None:
    world.queue.store.close()
    with (world.root / "segfleet.db").open("r+b") as file:
        file.seek(0)
        file.write(b"\xff" * 2000)
    with pytest.raises(SettingsError, match="nothing was written"):
        backup.save(Home(world.root), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("name", ["segfleet.db", "token", "backup.json"])
@pytest.mark.parametrize("harm", ["flipped", "missing"])
def test_a_backup_that_changed_is_refused(world: World, tmp_path: Path, name: str, harm: str) -> None:
    saved = tmp_path / "saved"
    backup.save(Home(world.root), saved)
    if harm == "missing":
        (saved / name).unlink()
    else:
        data = bytearray((saved / name).read_bytes())
        data[len(data) // 2] ^= 0x80
        (saved / name).write_bytes(data)
    with pytest.raises(SettingsError, match="take another"):
        backup.restore(saved, Home(tmp_path / "elsewhere"))
    assert not (tmp_path / "elsewhere").exists()


def test_under_a_running_service_nothing_is_restored(world: World, tmp_path: Path) -> None:
    backup.save(Home(world.root), tmp_path / "saved")
    home = Home(tmp_path / "elsewhere")
    home.create()
    with home.service_lock.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SettingsError, match="a service runs on home"):
            backup.restore(tmp_path / "saved", home)


def test_the_command_says_what_it_did(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEGFLEET_HOME", str(world.root))
    assert backup.main(["save", str(tmp_path / "saved")]) == 0
    assert backup.main(["restore", str(tmp_path / "saved")]) == 2
    monkeypatch.setenv("SEGFLEET_HOME", str(tmp_path / "elsewhere"))
    assert backup.main(["restore", str(tmp_path / "saved")]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"{what}d ray-token, segfleet.db, token, webhook-key" for what in ("save", "restore")]
    assert "already" in err
    assert "secret of" not in out + err
