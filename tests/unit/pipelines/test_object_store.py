from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from segfleet.data_settings import S3Settings
from segfleet.errors import DataError, FileMissingError, SettingsError
from segfleet.spec.location import split_location
from segfleet_pipelines.object_store import ObjectFiles
from segfleet_pipelines.remote import RemoteStorage
from segfleet_pipelines.retrying import Retry, TransientError

DATA = os.urandom(20 * 1024 * 1024)
SECRET = "wJalrXUtnFEMI/K7MDENG"


class Store:
    """A local folder as an object store that fails as told: one error a call, first first."""

    def __init__(self, folder: Path) -> None:
        self.files = pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem())
        self.errors: list[Exception] = []

    def __getattr__(self, name: str) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        return getattr(self.files, name)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "bucket" / "data").mkdir(parents=True)
    (tmp_path / "bucket" / "data" / "a.tar").write_bytes(DATA)
    return Store(tmp_path)


def open_store(store: Store, sleep: Any = lambda _: None) -> RemoteStorage:
    location = split_location("gs://bucket/data")
    files = ObjectFiles(location, S3Settings(secret_key=SECRET), store)
    return RemoteStorage(str(location), files, Retry(attempts=3, sleep=sleep))


def test_objects_are_read_written_and_listed(store: Store, tmp_path: Path) -> None:
    storage = open_store(store)
    assert storage.read("a.tar") == DATA
    assert storage.size("a.tar") == len(DATA)
    storage.upload(tmp_path / "bucket" / "data" / "a.tar", "b.tar")
    assert storage.names() == ["a.tar", "b.tar"]
    storage.download("b.tar", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA
    for ask in (storage.read, storage.size):
        with pytest.raises(FileMissingError, match=r"gs://bucket/data has no file 'none'"):
            ask("none")


def test_the_address_of_an_object_is_percent_encoded(store: Store, tmp_path: Path) -> None:
    (tmp_path / "bucket" / "what? 100%").mkdir()
    (tmp_path / "bucket" / "what? 100%" / "b.tar").write_bytes(b"b")
    files = ObjectFiles(split_location("s3://bucket/what%3F%20100%25"), S3Settings(), store)
    assert (files.names(), files.size("b.tar")) == (["b.tar"], 1)


@pytest.mark.parametrize(
    "reason",
    [
        "AWS Error UNKNOWN (HTTP status 503) during GetObject operation: No response body.",
        "AWS Error SLOW_DOWN during GetObject operation",
        "AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 28, Timeout was reached",
        "AWS Error UNKNOWN (HTTP status 429) during HeadObject operation",
        "google::cloud::Status(UNAVAILABLE: try again)",
    ],
)
def test_passing_errors_are_tried_again(store: Store, reason: str) -> None:
    store.errors = [OSError(reason)] * 2
    assert open_store(store).read("a.tar") == DATA
    store.errors = [OSError(reason)] * 3
    with pytest.raises(DataError, match=r"'a\.tar' of gs://bucket/data cannot be read: .*\(3 attempts\)"):
        open_store(store).read("a.tar")


@pytest.mark.parametrize(
    "error",
    [
        OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body."),
        OSError("AWS Error INVALID_ACCESS_KEY_ID during ListObjectsV2 operation"),
        OSError("AWS Error UNKNOWN (HTTP status 400) during HeadObject operation"),
        OSError("google::cloud::Status(PERMISSION_DENIED: no)"),
        PermissionError("no"),
        pa.ArrowInvalid("bad bucket"),
    ],
)
def test_lasting_errors_are_not(store: Store, error: Exception) -> None:
    store.errors = [error]
    with pytest.raises(DataError, match=r"the store refuses: .*check the address, the keys"):
        open_store(store, sleep=pytest.fail).read("a.tar")


def test_errors_hold_no_keys(store: Store) -> None:
    for reason in (f"key {SECRET} unknown, ACCESS_DENIED", f"timeout with {SECRET}"):
        store.errors = [OSError(reason)] * 3
        with pytest.raises(DataError) as caught:
            open_store(store).read("a.tar")
        assert SECRET not in str(caught.value)
        assert "***" in str(caught.value)
        assert SECRET not in repr(caught.value.__cause__)


def test_keys_are_not_shown() -> None:
    settings = S3Settings(access_key="AKIA", secret_key=SECRET, session_token="token")
    assert settings.secrets == ("AKIA", SECRET, "token")
    assert not any(secret in repr(settings) for secret in settings.secrets)


def test_an_upload_that_fails_leaves_no_half_object(store: Store, tmp_path: Path, monkeypatch: Any) -> None:
    class Cut:
        def __init__(self, out: Any) -> None:
            self.out, self.writes = out, 0

        def write(self, chunk: bytes) -> None:
            self.writes += 1
            if self.writes == 2:
                raise OSError("AWS Error NETWORK_CONNECTION during UploadPart operation")
            self.out.write(chunk)

        def close(self) -> None:
            self.out.close()

    real = store.files.open_output_stream
    opened: list[Cut] = []

    def cut(path: str) -> Cut:
        opened.append(Cut(real(path)))
        return opened[-1]

    store.open_output_stream = cut  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"'b\.tar' .*cannot be written.*3 attempts"):
        open_store(store).upload(tmp_path / "bucket" / "data" / "a.tar", "b.tar")
    assert len(opened) == 3
    assert open_store(store).names() == ["a.tar"]
    with pytest.raises(DataError, match=r"none cannot be read"):
        open_store(store).upload(tmp_path / "none", "b.tar")
    assert open_store(store).names() == ["a.tar"]


def test_a_cut_object_goes_on_if_it_is_the_same_still(store: Store, tmp_path: Path) -> None:
    offsets: list[int] = []

    class Flaky:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> Flaky:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def read_at(self, size: int, offset: int) -> bytes:
            offsets.append(offset)
            if len(offsets) == 2:
                raise OSError("AWS Error NETWORK_CONNECTION")
            return bytes(self.file.read_at(size, offset))

        def metadata(self) -> dict[bytes, bytes]:
            return {b"ETag": tag}

    tag = b"1"
    store.open_input_file = lambda path: Flaky(store.files.open_input_file(path))  # type: ignore[attr-defined]
    assert open_store(store).read("a.tar") == DATA
    chunk = 8 * 1024 * 1024
    assert offsets == [0, chunk, chunk, 2 * chunk]
    offsets.clear()

    def change(_seconds: float) -> None:
        nonlocal tag
        tag = b"2"

    assert open_store(store, sleep=change).read("a.tar") == DATA
    assert offsets == [0, chunk, 0, chunk, 2 * chunk]


@pytest.mark.parametrize(("address", "is_refused"), [("8.8.8.8", True), ("10.1.2.3", False), ("127.0.0.1", False)])
def test_plain_http_only_to_private_stores(monkeypatch: Any, address: str, is_refused: bool) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, 1, 6, "", (address, 0))])
    settings = S3Settings("http", "store.example:9000", "eu-west-1", "key", SECRET)
    made: list[dict[str, Any]] = []

    def make(**options: Any) -> Any:
        made.append(options)
        raise OSError("HTTP status 503")

    monkeypatch.setattr(pafs, "S3FileSystem", make)
    files = ObjectFiles(split_location("s3://bucket/data"), settings)
    if is_refused:
        with pytest.raises(SettingsError, match=r"plain http to the public host 'store\.example'; use https"):
            files.size("a.tar")
    else:
        with pytest.raises(TransientError):
            files.size("a.tar")
        wanted = {"scheme": "http", "endpoint_override": "store.example:9000", "region": "eu-west-1"}
        assert wanted.items() <= made[0].items()


def test_google_is_reached_without_keys_of_ours(monkeypatch: Any) -> None:
    made: list[dict[str, Any]] = []

    def make(**options: Any) -> Any:
        made.append(options)
        return pafs.LocalFileSystem()

    monkeypatch.setattr(pafs, "GcsFileSystem", make)
    with pytest.raises(FileMissingError):
        ObjectFiles(split_location("gs://no-such-bucket/data"), S3Settings()).size("a.tar")
    assert made[0].keys() == {"retry_time_limit"}


def test_objects_at_any_depth_are_listed_and_deleted(store: Store, tmp_path: Path) -> None:
    files = ObjectFiles(split_location("gs://bucket/data"), S3Settings(), store)
    (tmp_path / "bucket" / "data" / "x" / "y").mkdir(parents=True)
    (tmp_path / "bucket" / "data" / "x" / "y" / "b").write_bytes(b"b")
    assert files.names_below() == ["a.tar", "x/y/b"]
    for _ in range(2):
        files.delete("x/y/b")
    assert files.names_below() == ["a.tar"]
    assert ObjectFiles(split_location("gs://bucket/none"), S3Settings(), store).names_below() == []
