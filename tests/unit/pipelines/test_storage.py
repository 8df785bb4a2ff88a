from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from file_server import Behaviour, Fault, file_server
from segfleet.data_settings import DataSettings
from segfleet.errors import DataError, FileMissingError
from segfleet.spec.location import split_location
from segfleet_pipelines.local_files import beside
from segfleet_pipelines.remote import RemoteStorage
from segfleet_pipelines.retrying import Retry
from segfleet_pipelines.storage import Storage, open_storage
from segfleet_pipelines.web import WebFiles

DATA = os.urandom(3 * 1024 * 1024)
SHA256 = hashlib.sha256(DATA).hexdigest()


class Pauses(list[float]):
    """Instead of time.sleep."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def server() -> Iterator[Behaviour]:
    with file_server({"data/a.tar": DATA}) as running:
        yield running


def settings(tmp_path: Path, *hosts: str) -> DataSettings:
    return DataSettings(tmp_path, 1 << 30, frozenset(hosts))


def open_web(server: Behaviour, tmp_path: Path, pauses: Pauses | None = None) -> Storage:
    retry = Retry(attempts=4, sleep=Pauses() if pauses is None else pauses)
    return open_storage(f"{server.url}/data", settings=settings(tmp_path, "127.0.0.1"), retry=retry)


def impatient(server: Behaviour, attempts: int = 4) -> RemoteStorage:
    files = WebFiles(split_location(f"{server.url}/data"), frozenset({"127.0.0.1"}), timeout=httpx.Timeout(0.2))
    return RemoteStorage(f"{server.url}/data", files, Retry(attempts=attempts, sleep=Pauses()))


def test_a_folder_is_read_written_and_listed(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "new")
    assert (storage.folder, storage.address, storage.names()) == (tmp_path / "new", str(tmp_path / "new"), [])
    (tmp_path / "b").write_bytes(DATA)
    storage.upload(tmp_path / "b", "a.tar")
    assert storage.names() == ["a.tar"]
    assert storage.size("a.tar") == len(DATA)
    assert storage.read("a.tar") == DATA
    storage.download("a.tar", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == DATA
    buffer = io.BytesIO(b"x" * len(DATA) * 2)
    assert storage.fetch("a.tar", buffer, len(DATA)) == SHA256
    assert buffer.getvalue() == DATA
    for size in (len(DATA) - 1, len(DATA) + 1):
        with pytest.raises(DataError, match=rf"'a.tar' .* has {len(DATA)} bytes, the manifest says {size}"):
            storage.fetch("a.tar", io.BytesIO(), size)


def test_a_source_that_cannot_be_read_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    # Opens, and answers the first read with an I/O error.
    (tmp_path / "a.tar").symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match=r"a\.tar cannot be read: Input/output error; restore it"):
        open_storage(tmp_path).download("a.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "a\0", "a b", "/etc/passwd"])
def test_names_lead_nowhere_else(tmp_path: Path, server: Behaviour, name: str) -> None:
    for storage in (open_storage(tmp_path), open_web(server, tmp_path)):
        with pytest.raises(DataError, match="not the name of a dataset's file"):
            storage.read(name)


def test_a_missing_file_is_told_apart(tmp_path: Path, server: Behaviour) -> None:
    for storage in (open_storage(tmp_path), open_web(server, tmp_path)):
        for ask in (storage.read, storage.size):
            with pytest.raises(FileMissingError, match=r"has no file 'none\.tar'"):
                ask("none.tar")
        with pytest.raises(FileMissingError):
            storage.download("none.tar", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_nothing_half_gets_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with contextlib.suppress(KeyError), beside(tmp_path / "a") as file:
        file.write(b"new")
        raise KeyError
    assert (tmp_path / "a").read_bytes() == b"old"

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    (tmp_path / "b").write_bytes(b"new")
    with pytest.raises(DataError, match=r"a cannot be written: No space left.*free space"):
        open_storage(tmp_path).upload(tmp_path / "b", "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_web_server_is_read(server: Behaviour, tmp_path: Path) -> None:
    storage = open_web(server, tmp_path)
    assert (storage.folder, storage.address) == (None, f"{server.url}/data")
    assert storage.read("a.tar") == DATA
    assert storage.size("a.tar") == len(DATA)
    storage.download("a.tar", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA
    assert {asked.host for asked in server.asked} == {server.url.removeprefix("http://")}
    with pytest.raises(DataError, match=r"cannot be written to .*; write to a folder, s3:// or gs://"):
        storage.upload(tmp_path / "out", "b.tar")
    with pytest.raises(DataError, match="cannot be listed"):
        storage.names()


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_busy_server_is_asked_again_with_growing_pauses(server: Behaviour, tmp_path: Path, status: int) -> None:
    pauses = Pauses()
    server.faults.extend([Fault(status=status)] * 3)
    assert open_web(server, tmp_path, pauses).fetch("a.tar", io.BytesIO(), len(DATA)) == SHA256
    assert len(pauses) == 3
    assert all(0.25 * 2**n <= pause <= 0.5 * 2**n for n, pause in enumerate(pauses))


def test_a_server_that_stays_down_is_an_error_with_file_address_and_reason(server: Behaviour, tmp_path: Path) -> None:
    for ask in ("read", "size"):
        server.faults.extend([Fault(status=502)] * 3 + [Fault(status=503)])
        with pytest.raises(DataError, match=rf"'a\.tar' of {server.url}/data.* 503 .*\(4 attempts\)"):
            getattr(open_web(server, tmp_path), ask)("a.tar")
    assert len(server.asked) == 8


def test_a_cut_download_goes_on_where_it_ended(server: Behaviour, tmp_path: Path) -> None:
    server.faults.extend([Fault(cut_after=1_000_000), Fault(cut_after=500_000)])
    open_web(server, tmp_path).download("a.tar", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA
    assert [asked.status for asked in server.asked] == [200, 206, 206]
    assert server.asked[2].range == "bytes=1500000-"


def test_a_file_that_changes_meanwhile_is_fetched_from_its_beginning(server: Behaviour, tmp_path: Path) -> None:
    storage = open_web(server, tmp_path)
    other = bytes(len(DATA))

    def change(_seconds: float) -> None:
        server.files["data/a.tar"], server.etag = other, '"v2"'

    storage = open_storage(
        f"{server.url}/data", settings=settings(tmp_path, "127.0.0.1"), retry=Retry(attempts=4, sleep=change)
    )
    server.faults.append(Fault(cut_after=1_000_000))
    assert storage.read("a.tar") == other
    assert [asked.status for asked in server.asked] == [200, 200]


@pytest.mark.parametrize("change", [{"etag": None}, {"etag": 'W/"v1"'}, {"ranges": False}])
def test_without_ranges_or_a_strong_tag_it_begins_again(server: Behaviour, tmp_path: Path, change: Any) -> None:
    vars(server).update(change)
    server.faults.append(Fault(cut_after=1_000_000))
    assert open_web(server, tmp_path).read("a.tar") == DATA
    assert [asked.status for asked in server.asked] == [200, 200]


def test_progress_is_rewarded_and_standing_still_is_not(server: Behaviour, tmp_path: Path) -> None:
    retry = Retry(attempts=2, sleep=Pauses())
    storage = open_storage(f"{server.url}/data", settings=settings(tmp_path, "127.0.0.1"), retry=retry)
    server.faults.extend([Fault(cut_after=1_100_000), Fault(cut_after=1_100_000)])
    assert storage.read("a.tar") == DATA
    server.faults.extend([Fault(cut_after=10)] * 2)
    with pytest.raises(DataError, match=r"connection|bytes"):
        storage.read("a.tar")


def test_a_body_that_is_shorter_than_told_is_not_taken(server: Behaviour, tmp_path: Path) -> None:
    server.faults.extend([Fault(longer=5)] * 4)
    with pytest.raises(DataError, match=r"'a\.tar' .*\(4 attempts\)"):
        open_web(server, tmp_path).download("a.tar", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [True, False])
def test_a_file_of_another_size_than_the_manifests_is_not_fetched_to_its_end(
    server: Behaviour, tmp_path: Path, length: bool
) -> None:
    server.length = length
    for size in (len(DATA) - 1, len(DATA) + 1):
        file = io.BytesIO()
        with pytest.raises(DataError, match=rf"'a\.tar' .* the manifest says {size}"):
            open_web(server, tmp_path).fetch("a.tar", file, size)
        assert len(file.getvalue()) <= size


def test_what_is_read_into_memory_has_a_bound(
    server: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segfleet_pipelines.remote._LARGEST_READ", len(DATA) - 1)
    with pytest.raises(DataError, match=rf"'a\.tar' of .* has more than {len(DATA) - 1} bytes"):
        open_web(server, tmp_path).read("a.tar")
    assert len(server.asked) == 1


def test_a_silent_server_is_left_after_a_while(server: Behaviour) -> None:
    server.faults.append(Fault(cut_after=2_000_000, stall=True))
    assert impatient(server).read("a.tar") == DATA
    server.faults.append(Fault(cut_after=0, stall=True))
    with pytest.raises(DataError, match="silent"):
        impatient(server, attempts=1).read("a.tar")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(server: Behaviour, tmp_path: Path, status: int) -> None:
    elsewhere = {"Location": "http://169.254.169.254/latest/meta-data"}
    server.faults.append(Fault(status=status, headers=elsewhere))
    with pytest.raises(DataError, match="redirects are not followed; use the final address"):
        open_web(server, tmp_path).read("a.tar")
    assert len(server.asked) == 1


@pytest.mark.parametrize("fault", [Fault(status=401), Fault(status=403), Fault(headers={"Content-Encoding": "gzip"})])
def test_what_time_does_not_mend_is_not_tried_again(server: Behaviour, tmp_path: Path, fault: Fault) -> None:
    server.faults.append(fault)
    with pytest.raises(DataError, match=r"'a\.tar' of http"):
        open_web(server, tmp_path).read("a.tar")
    assert len(server.asked) == 1


def answer_with(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Every host name has these addresses, one after the other; the last one stays. Returns the names asked for."""
    left, asked = list(addresses), []

    def resolve(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        address = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return asked


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]", "0x7f000001", "2130706433", "localhost", "[::ffff:10.0.0.1]", "169.254.169.254"]
)
def test_private_hosts_are_refused(tmp_path: Path, host: str) -> None:
    storage = open_storage(f"http://{host}:1/x", settings=settings(tmp_path, "other.example"))
    with pytest.raises(DataError, match=r"not a public host.*the operator lists .*:1 in SEGFLEET_DATA_HOSTS"):
        storage.read("manifest.json")


@pytest.mark.parametrize("host", ["\u2603.net", "xn--a", "[v1.a]", pytest.param("h" * 70_000, id="long")])
def test_impossible_hosts_are_an_error_of_the_location(tmp_path: Path, host: str) -> None:
    with pytest.raises(DataError, match="not a location: no https:// address"):
        open_storage(f"https://{host}/x", settings=settings(tmp_path))


def test_the_operator_lists_private_hosts_with_or_without_port(server: Behaviour, tmp_path: Path) -> None:
    netloc = server.url.removeprefix("http://")
    for allowed in (netloc, "127.0.0.1"):
        assert open_storage(f"{server.url}/data", settings=settings(tmp_path, allowed)).read("a.tar") == DATA
    with pytest.raises(DataError, match="not a public host"):
        open_storage(f"{server.url}/data", settings=settings(tmp_path, "127.0.0.1:1")).read("a.tar")


def test_a_name_that_moves_into_the_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer_with(monkeypatch, "10.0.0.1")
    with pytest.raises(DataError, match="not a public host"):
        open_storage("https://data.example/x", settings=settings(tmp_path)).read("a.tar")
    assert asked == ["data.example"]


def test_proxies_of_the_environment_are_not_used(
    server: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert open_web(server, tmp_path).read("a.tar") == DATA


def test_storage_travels_to_other_processes(server: Behaviour, tmp_path: Path) -> None:
    storage = open_storage(f"{server.url}/data", settings=settings(tmp_path, "127.0.0.1"))
    assert pickle.loads(pickle.dumps(storage)).read("a.tar") == DATA
