from __future__ import annotations

import fcntl
import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from segfleet.errors import DataError
from segfleet_pipelines.cache import ShardCache
from segfleet_pipelines.local_files import LocalStorage
from segfleet_pipelines.manifest import FileInfo

SIZE = 200_000


class CountingStorage(LocalStorage):
    """A folder that is far away: counts what is fetched from it, in a file that processes share."""

    def __init__(self, folder: Path, log: Path, pause_s: float = 0.0, stop_at: int | None = None) -> None:
        super().__init__(folder)
        self.log, self.pause_s, self.stop_at = log, pause_s, stop_at

    def fetch(self, name: str, file: IO[bytes], size: int | None = None) -> str:
        with self.log.open("a") as log:
            log.write(f"{name}\n")
        if self.stop_at is not None:
            file.write((self._folder / name).read_bytes()[: self.stop_at])
            file.flush()
            with self.log.open("a") as log:
                log.write("half\n")
            time.sleep(60)
        time.sleep(self.pause_s)
        return super().fetch(name, file, size)

    def fetched(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []


def read(cache: ShardCache, storage: Any, info: FileInfo) -> bytes:
    found = cache.open(storage, info)
    return os.pread(found.descriptor, info.bytes + 1, 0)


@pytest.fixture
def infos(tmp_path: Path) -> list[FileInfo]:
    (tmp_path / "far").mkdir()
    infos = []
    for number in range(6):
        data = os.urandom(SIZE)
        (tmp_path / "far" / f"{number}.tar").write_bytes(data)
        infos.append(FileInfo(f"{number}.tar", hashlib.sha256(data).hexdigest(), SIZE))
    return infos


@pytest.fixture
def storage(tmp_path: Path) -> CountingStorage:
    return CountingStorage(tmp_path / "far", tmp_path / "log")


def make_cache(tmp_path: Path, shards: float, **options: Any) -> ShardCache:
    return ShardCache(tmp_path / "cache", int(shards * SIZE), **options)


def content(tmp_path: Path, infos: list[FileInfo]) -> set[str]:
    names = {info.sha256: info.file for info in infos}
    return {names.get(path.name, path.name) for path in (tmp_path / "cache").iterdir()} - {"lock"}


def size_on_disk(tmp_path: Path) -> int:
    """Of all files at one moment: files get and lose their names under the cache's lock."""
    with (tmp_path / "cache" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return sum(path.stat().st_size for path in (tmp_path / "cache").iterdir())


def test_a_file_is_fetched_once_and_kept_read_only(tmp_path: Path, storage: CountingStorage, infos: Any) -> None:
    for _ in range(3):
        assert read(make_cache(tmp_path, 2), storage, infos[0]) == (tmp_path / "far" / "0.tar").read_bytes()
    assert storage.fetched() == ["0.tar"]
    path = tmp_path / "cache" / infos[0].sha256
    assert path.stat().st_mode & 0o777 == 0o400
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_the_least_recently_used_goes_first(tmp_path: Path, storage: CountingStorage, infos: Any) -> None:
    cache = make_cache(tmp_path, 3)
    for number in (0, 1, 2, 0, 3):
        read(cache, storage, infos[number])
    assert content(tmp_path, infos) == {"0.tar", "2.tar", "3.tar"}
    read(cache, storage, infos[1])
    assert content(tmp_path, infos) == {"0.tar", "3.tar", "1.tar"}


def test_what_is_read_is_not_evicted(tmp_path: Path, storage: CountingStorage, infos: Any) -> None:
    cache = make_cache(tmp_path, 2)
    held = cache.open(storage, infos[0])
    for number in (1, 2, 3):
        read(cache, storage, infos[number])
    assert content(tmp_path, infos) == {"0.tar", "3.tar"}
    del held
    read(cache, storage, infos[1])
    assert content(tmp_path, infos) == {"3.tar", "1.tar"}


def test_what_does_not_fit_is_an_error_with_figures_and_the_setting(
    tmp_path: Path, storage: CountingStorage, infos: Any
) -> None:
    with pytest.raises(
        DataError, match=r"'0\.tar' .* 200000 bytes, more than .* limit of 100000; .*SEGFLEET_CACHE_LIMI"
    ):
        read(make_cache(tmp_path, 0.5), storage, infos[0])
    waited: list[float] = []
    cache = make_cache(tmp_path, 2.5, longest_wait_s=5.0, sleep=waited.append)
    held = [cache.open(storage, info) for info in infos[:2]]
    with pytest.raises(DataError, match=r"200000 bytes of '2\.tar': 400000 bytes are in use .* limit is 500000"):
        read(cache, storage, infos[2])
    assert 5.0 <= sum(waited) < 10.0
    assert content(tmp_path, infos) == {"0.tar", "1.tar"}
    del held
    read(cache, storage, infos[2])


def test_room_is_waited_for(tmp_path: Path, storage: CountingStorage, infos: Any) -> None:
    held = [make_cache(tmp_path, 1).open(storage, infos[0])]
    assert read(make_cache(tmp_path, 1, sleep=lambda _: held.clear()), storage, infos[1])


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b""])
def test_a_copy_of_another_size_is_fetched_again(
    tmp_path: Path, storage: CountingStorage, infos: Any, damage: Any
) -> None:
    cache = make_cache(tmp_path, 2)
    expected = read(cache, storage, infos[0])
    path = tmp_path / "cache" / infos[0].sha256
    path.chmod(0o600)
    path.write_bytes(damage(expected))
    assert read(cache, storage, infos[0]) == expected
    assert storage.fetched() == ["0.tar"] * 2


def test_a_copy_with_changed_bytes_is_found_and_removed_on_demand(
    tmp_path: Path, storage: CountingStorage, infos: Any
) -> None:
    cache = make_cache(tmp_path, 2)
    expected = read(cache, storage, infos[0])
    assert not cache.recover(infos[0])
    path = tmp_path / "cache" / infos[0].sha256
    path.chmod(0o600)
    path.write_bytes(b"x" + expected[1:])
    assert cache.recover(infos[0])
    assert read(cache, storage, infos[0]) == expected


def test_wrong_bytes_from_afar_are_fetched_twice_and_then_named(
    tmp_path: Path, storage: CountingStorage, infos: Any
) -> None:
    wrong = os.urandom(SIZE)
    (tmp_path / "far" / "0.tar").write_bytes(wrong)
    with pytest.raises(DataError, match=f"'0.tar' .*{hashlib.sha256(wrong).hexdigest()}.*says {infos[0].sha256}"):
        read(make_cache(tmp_path, 2), storage, infos[0])
    assert storage.fetched() == ["0.tar"] * 2
    assert content(tmp_path, infos) == set()


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path, storage: CountingStorage, infos: Any) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cache .* cannot be used: .*SEGFLEET_CACHE_DIR"):
        read(ShardCache(tmp_path / "file", 10 * SIZE), storage, infos[0])


def test_a_file_that_is_evicted_between_opening_and_locking_is_fetched_again(
    tmp_path: Path, storage: CountingStorage, infos: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(tmp_path, 2)
    read(cache, storage, infos[0])
    lock, chances = fcntl.flock, [None]

    def late(descriptor: int, how: int) -> None:
        if how == fcntl.LOCK_SH and chances:
            chances.pop()
            (tmp_path / "cache" / infos[0].sha256).unlink()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    assert read(cache, storage, infos[0])
    assert storage.fetched() == ["0.tar"] * 2
    assert content(tmp_path, infos) == {"0.tar"}


def test_what_a_process_leaves_that_was_killed_while_it_waited_is_removed(
    tmp_path: Path, storage: CountingStorage, infos: Any
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / f"{infos[1].sha256}.partial").touch()
    assert read(make_cache(tmp_path, 2), storage, infos[0])
    assert content(tmp_path, infos) == {"0.tar"}


def test_threads_share_one_download(tmp_path: Path, storage: CountingStorage, infos: Any) -> None:
    storage.pause_s = 0.05
    cache = make_cache(tmp_path, 2)
    threads = [threading.Thread(target=read, args=(cache, storage, infos[0])) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert storage.fetched() == ["0.tar"]


def test_what_another_process_has_finished_meanwhile_is_not_fetched_again(
    tmp_path: Path, storage: CountingStorage, infos: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(tmp_path, 2)
    read(cache, storage, infos[0])
    find, late = cache._finished, [None]
    monkeypatch.setattr(cache, "_finished", lambda info: late.pop() if late else find(info))
    assert read(cache, storage, infos[0])
    assert storage.fetched() == ["0.tar"]
    assert content(tmp_path, infos) == {"0.tar"}


def test_a_process_forked_in_the_middle_keeps_no_lock(tmp_path: Path, storage: CountingStorage, infos: Any) -> None:
    cache = make_cache(tmp_path, 1)
    held = cache.open(storage, infos[0])
    pid = os.fork()
    if pid == 0:
        time.sleep(30)
        os._exit(0)
    try:
        del held
        assert read(make_cache(tmp_path, 1, longest_wait_s=0.0), storage, infos[1])
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _read_many(storage: CountingStorage, folder: Path, limit: int, infos: list[FileInfo], seed: int) -> None:
    cache = ShardCache(folder, limit)
    for turn in range(12):
        info = infos[(turn * (seed + 1) + seed) % len(infos)]
        if hashlib.sha256(read(cache, storage, info)).hexdigest() != info.sha256:
            os._exit(3)


def _open_one(storage: CountingStorage, folder: Path, limit: int, info: FileInfo) -> None:
    read(ShardCache(folder, limit), storage, info)


@contextmanager
def processes(targets: list[tuple[Any, tuple[Any, ...]]]) -> Iterator[list[Any]]:
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=target, args=args) for target, args in targets]
    for process in started:
        process.start()
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.join()


def test_many_processes_share_two_places_for_six_shards(tmp_path: Path, storage: CountingStorage, infos: Any) -> None:
    storage.pause_s = 0.002
    (tmp_path / "cache").mkdir()
    jobs = [(_read_many, (storage, tmp_path / "cache", 2 * SIZE, infos, seed)) for seed in range(4)]
    largest = 0
    with processes(jobs) as running:
        deadline = time.monotonic() + 60
        while any(process.is_alive() for process in running) and time.monotonic() < deadline:
            largest = max(largest, size_on_disk(tmp_path))
        codes = [process.exitcode for process in running]
    assert codes == [0] * 4
    assert 0 < largest <= 2 * SIZE
    assert set(storage.fetched()) == {info.file for info in infos}


def test_many_processes_download_a_shard_once(tmp_path: Path, storage: CountingStorage, infos: Any) -> None:
    storage.pause_s = 0.2
    jobs = [(_open_one, (storage, tmp_path / "cache", 2 * SIZE, infos[0])) for _ in range(4)]
    with processes(jobs) as running:
        for process in running:
            process.join(30)
        assert [process.exitcode for process in running] == [0] * 4
    assert storage.fetched() == ["0.tar"]


def test_a_killed_download_leaves_nothing_in_the_way(tmp_path: Path, storage: CountingStorage, infos: Any) -> None:
    dying = CountingStorage(tmp_path / "far", tmp_path / "log", stop_at=SIZE // 2)
    with processes([(_open_one, (dying, tmp_path / "cache", 2 * SIZE, infos[0]))]) as (process,):
        deadline = time.monotonic() + 30
        while "half" not in storage.fetched() and time.monotonic() < deadline:
            time.sleep(0.005)
        assert content(tmp_path, infos) == {f"{infos[0].sha256}.partial"}
        # Alive, it has its room; another shard has the rest.
        assert read(make_cache(tmp_path, 2), storage, infos[1])
        held = make_cache(tmp_path, 2).open(storage, infos[1])
        with pytest.raises(DataError, match="400000 bytes are in use"):
            read(make_cache(tmp_path, 2, longest_wait_s=0.0), storage, infos[2])
        del held
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    # Dead, it has none, and the same shard is fetched from its beginning.
    assert read(make_cache(tmp_path, 1), storage, infos[2])
    assert content(tmp_path, infos) == {"2.tar"}
    assert hashlib.sha256(read(make_cache(tmp_path, 1), storage, infos[0])).hexdigest() == infos[0].sha256
