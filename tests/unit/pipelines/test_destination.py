from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as pq
import pytest

from segfleet.errors import DataError, FileMissingError
from segfleet_pipelines import destination, writer
from segfleet_pipelines.manifest import MANIFEST_NAME
from segfleet_pipelines.verify import verify
from segfleet_pipelines.writer import prepare

MakeSpec = Callable[..., Any]
ADDRESS = "s3://bucket/data/v1"


class MemoryStorage:
    """An object store in a dictionary; the `fail_at`-th upload fails."""

    address = ADDRESS
    folder = None

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.sent: list[str] = []
        self.fail_at = 0
        self._lock = threading.Lock()

    def read(self, name: str) -> bytes:
        if name not in self.files:
            raise FileMissingError(name, self.address)
        return self.files[name]

    def size(self, name: str) -> int:
        return len(self.read(name))

    def fetch(self, name: str, file: IO[bytes], size: int | None = None) -> str:
        raise NotImplementedError

    def download(self, name: str, target: Path) -> None:
        target.write_bytes(self.read(name))

    def upload(self, source: Path, name: str) -> None:
        with self._lock:
            if len(self.sent) + 1 == self.fail_at:
                raise DataError(f"{self.address}/{name} cannot be written: the network is gone")
            self.files[name] = source.read_bytes()
            self.sent.append(name)

    def names(self) -> list[str]:
        return sorted(self.files)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    storage = MemoryStorage()
    monkeypatch.setenv("SEGFLEET_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(destination, "open_storage", lambda _location: storage)
    monkeypatch.setattr(destination, "_UPLOADS", 1)
    monkeypatch.setattr(writer, "MAX_SHARD_SAMPLES", 3)
    return storage


def materialize(bucket: MemoryStorage, folder: Path) -> Path:
    folder.mkdir()
    for name, data in bucket.files.items():
        (folder / name).write_bytes(data)
    return folder


def test_a_dataset_is_uploaded_with_its_manifest_last(
    raw: Path, tmp_path: Path, prepare_spec: MakeSpec, bucket: MemoryStorage
) -> None:
    seen: list[tuple[int, int]] = []
    manifest = prepare(prepare_spec(raw=str(raw), out=ADDRESS), lambda done, total: seen.append((done, total)))
    local = prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "local")))
    assert manifest == local
    assert bucket.sent[-1] == MANIFEST_NAME
    assert len(bucket.sent) == len(set(bucket.sent)) == 6
    assert bucket.files == {path.name: path.read_bytes() for path in (tmp_path / "local").iterdir()}
    assert not verify(materialize(bucket, tmp_path / "copy")).problems
    assert not list((tmp_path / "cache" / "staging").iterdir())
    assert seen[-1] == (22, 22)
    assert sorted(seen) == seen


def test_a_place_with_a_manifest_is_refused(raw: Path, prepare_spec: MakeSpec, bucket: MemoryStorage) -> None:
    bucket.files[MANIFEST_NAME] = b"of somebody"
    with pytest.raises(DataError, match="s3://bucket/data/v1 holds a prepared dataset already"):
        prepare(prepare_spec(raw=str(raw), out=ADDRESS))
    assert bucket.sent == []


def test_files_of_others_are_not_written_over(
    raw: Path, tmp_path: Path, prepare_spec: MakeSpec, bucket: MemoryStorage
) -> None:
    bucket.files["train-000000.tar"] = b"of somebody"
    with pytest.raises(DataError, match=r"holds other files.*\(1\):(.|\n)*train-000000\.tar"):
        prepare(prepare_spec(raw=str(raw), out=ADDRESS))
    assert bucket.files == {"train-000000.tar": b"of somebody"}
    assert not list(tmp_path.glob("cache/staging/*"))


def test_a_file_of_others_that_comes_in_the_meantime_is_not_written_over(
    raw: Path, prepare_spec: MakeSpec, bucket: MemoryStorage
) -> None:
    def overtake(done: int, _total: int) -> None:
        if done == 5:
            bucket.files["val-000000.tar"] = b"of somebody"

    with pytest.raises(DataError, match="holds other files"):
        prepare(prepare_spec(raw=str(raw), out=ADDRESS), overtake)
    assert bucket.files == {"val-000000.tar": b"of somebody"}


def test_what_an_upload_of_other_content_has_left_is_named(
    raw: Path, prepare_spec: MakeSpec, bucket: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.fail_at = 5
    with pytest.raises(DataError, match="the network is gone"):
        prepare(prepare_spec(raw=str(raw), out=ADDRESS))
    bucket.fail_at = 0
    monkeypatch.setattr(writer, "MAX_SHARD_SAMPLES", 9)
    with pytest.raises(DataError, match=r"holds other files.*\(2\)"):
        prepare(prepare_spec(raw=str(raw), out=ADDRESS))
    assert MANIFEST_NAME not in bucket.files


def test_a_run_that_was_killed_after_its_upload_leaves_nothing_for_long(
    raw: Path, tmp_path: Path, prepare_spec: MakeSpec, bucket: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as killed:
        killed.setattr("segfleet_pipelines.staging.shutil.rmtree", lambda *_a, **_k: None)
        prepare(prepare_spec(raw=str(raw), out=ADDRESS))
    assert list(tmp_path.glob("cache/staging/.*.partial/sent/*.tar"))
    with pytest.raises(DataError, match="holds a prepared dataset already"):
        prepare(prepare_spec(raw=str(raw), out=ADDRESS))
    assert not list(tmp_path.glob("cache/staging/*"))


def test_an_upload_goes_on_where_it_was(
    raw: Path, tmp_path: Path, prepare_spec: MakeSpec, bucket: MemoryStorage
) -> None:
    bucket.fail_at = 3
    with pytest.raises(DataError, match="the network is gone"):
        prepare(prepare_spec(raw=str(raw), out=ADDRESS))
    first = list(bucket.sent)
    assert len(first) == 2
    bucket.fail_at = 0
    prepare(prepare_spec(raw=str(raw), out=ADDRESS))
    assert len(bucket.sent) == 6
    assert set(bucket.sent[2:]).isdisjoint(first)
    assert not verify(materialize(bucket, tmp_path / "copy")).problems


def test_what_was_sent_is_known_even_where_a_failure_is_heard_of_first(
    raw: Path, prepare_spec: MakeSpec, bucket: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failures_first(futures: Iterable[Future[None]]) -> list[Future[None]]:
        return sorted(wait(futures).done, key=lambda future: future.exception() is None)

    monkeypatch.setattr(destination, "as_completed", failures_first)
    bucket.fail_at = 3
    with pytest.raises(DataError, match="the network is gone"):
        prepare(prepare_spec(raw=str(raw), out=ADDRESS))
    bucket.fail_at = 0
    prepare(prepare_spec(raw=str(raw), out=ADDRESS))
    assert len(bucket.sent) == len(set(bucket.sent)) == 6


def test_a_file_that_arrived_unnoticed_is_sent_again(
    raw: Path, tmp_path: Path, prepare_spec: MakeSpec, bucket: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def arrive(source: Path, name: str) -> None:
        bucket.files[name] = source.read_bytes()
        raise DataError("the answer is lost")

    with monkeypatch.context() as broken:
        broken.setattr(bucket, "upload", arrive)
        with pytest.raises(DataError, match="the answer is lost"):
            prepare(prepare_spec(raw=str(raw), out=ADDRESS))
    begun = set(bucket.files)
    prepare(prepare_spec(raw=str(raw), out=ADDRESS))
    assert begun
    assert begun <= set(bucket.sent)
    assert not verify(materialize(bucket, tmp_path / "copy")).problems


def test_content_that_an_upload_of_other_content_has_replaced_is_sent_again(
    raw: Path, tmp_path: Path, prepare_spec: MakeSpec, bucket: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def arrive(source: Path, name: str) -> None:
        bucket.files[name] = source.read_bytes()
        raise DataError("the answer is lost")

    bucket.fail_at = 6
    with pytest.raises(DataError, match="the network is gone"):
        prepare(prepare_spec(raw=str(raw), out=ADDRESS))
    image = raw / "images" / "s01.jpg"
    data = image.read_bytes()
    image.write_bytes(data[:14] + bytes([data[14] ^ 1]) + data[15:])
    with monkeypatch.context() as broken:
        broken.setattr(bucket, "upload", arrive)
        with pytest.raises(DataError, match="the answer is lost"):
            prepare(prepare_spec(raw=str(raw), out=ADDRESS))
    image.write_bytes(data)
    bucket.fail_at = 0
    prepare(prepare_spec(raw=str(raw), out=ADDRESS))
    assert not verify(materialize(bucket, tmp_path / "copy")).problems


def test_what_was_sent_is_sent_again_if_it_changed_or_is_gone(
    raw: Path, tmp_path: Path, prepare_spec: MakeSpec, bucket: MemoryStorage
) -> None:
    bucket.fail_at = 6
    with pytest.raises(DataError, match="the network is gone"):
        prepare(prepare_spec(raw=str(raw), out=ADDRESS))
    rows = {path.stem: path for path in (tmp_path / "cache" / "staging").glob("*/rows/*.parquet")}
    holder = next(name for name, path in rows.items() if "s01" in pq.read_table(path)["key"].to_pylist())
    lost = next(name for name in rows if name != holder)
    del bucket.files[lost]
    image = raw / "images" / "s01.jpg"
    data = bytearray(image.read_bytes())
    data[14] ^= 1  # the density, which says nothing about pixels: as many bytes, but others
    image.write_bytes(data)
    bucket.fail_at = 0
    bucket.sent.clear()
    prepare(prepare_spec(raw=str(raw), out=ADDRESS))
    assert set(bucket.sent) == {holder, lost, "samples.parquet", MANIFEST_NAME}
    assert not verify(materialize(bucket, tmp_path / "copy")).problems


def test_a_manifest_that_appears_in_the_meantime_is_not_written_over(
    raw: Path, prepare_spec: MakeSpec, bucket: MemoryStorage
) -> None:
    def overtake(done: int, total: int) -> None:
        if done == total:
            bucket.files[MANIFEST_NAME] = b"of somebody"

    with pytest.raises(DataError, match="holds a prepared dataset already"):
        prepare(prepare_spec(raw=str(raw), out=ADDRESS), overtake)
    assert bucket.files[MANIFEST_NAME] == b"of somebody"
