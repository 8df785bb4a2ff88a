from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from file_server import CHANGED, Behaviour, Fault, file_server
from segfleet.errors import DataError
from segfleet_pipelines import fetch
from segfleet_pipelines.fetch import Fetched, Fetcher, Wanted
from segfleet_pipelines.part_file import Origin, PartFile
from segfleet_pipelines.public_hosts import open_client

CONTENT = random.Random(7).randbytes(300_000)
SHA1 = f"sha1:{hashlib.sha1(CONTENT).hexdigest()}"
OTHER = "sha1:" + "0" * 40


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[Behaviour]:
    with file_server({"f.tar": CONTENT}) as running:
        yield running


def get(
    server: Behaviour,
    target: Path,
    *,
    digests: tuple[str, ...] = (SHA1,),
    size: int | None = None,
    urls: tuple[str, ...] = (),
    waits: list[float] | None = None,
    timeout_s: float = 5.0,
    tries: int = 3,
    unpacks: bool = False,
) -> Fetched:
    with open_client(server.url, timeout_s) as http:
        sleep = (waits if waits is not None else []).append
        fetcher = Fetcher(http, lambda _done, _total: None, lambda _message: None, sleep, tries)
        return fetcher.fetch(Wanted(target, urls or (f"{server.url}/f.tar",), digests, size, unpacks))


def leave_part(target: Path, origin: Origin, content: bytes) -> None:
    with closing(PartFile(target)) as part:
        part.restart(origin)
        part.write(content)


def test_a_file_comes_with_its_sha256_beside_it(server: Behaviour, tmp_path: Path) -> None:
    got = get(server, tmp_path / "deep" / "f.tar", size=len(CONTENT))
    assert (tmp_path / "deep" / "f.tar").read_bytes() == CONTENT
    assert got == Fetched(f"{server.url}/f.tar", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["f.tar", "f.tar.sha256"]
    check = ["sha256sum", "--check", "--strict", "f.tar.sha256"]
    assert subprocess.run(check, cwd=tmp_path / "deep", capture_output=True, check=False).returncode == 0


def test_a_cut_download_goes_on_where_it_was(server: Behaviour, tmp_path: Path) -> None:
    server.faults.extend([Fault(cut_after=100_000), Fault(cut_after=50_000)])
    waits: list[float] = []
    get(server, tmp_path / "f.tar", waits=waits)
    assert (tmp_path / "f.tar").read_bytes() == CONTENT
    assert [(asked.range, asked.status) for asked in server.asked] == [
        (None, 200),
        ("bytes=100000-", 206),
        ("bytes=150000-", 206),
    ]
    assert waits == [1.0, 1.0]


def test_a_busy_server_is_asked_again_later_and_later(server: Behaviour, tmp_path: Path) -> None:
    server.faults.extend([Fault(status=503), Fault(status=503, headers={"Retry-After": "7"})])
    waits: list[float] = []
    get(server, tmp_path / "f.tar", waits=waits)
    assert waits == [1.0, 7.0]


def test_a_silent_server_is_asked_again(server: Behaviour, tmp_path: Path) -> None:
    server.faults.append(Fault(cut_after=1000, stall=True))
    get(server, tmp_path / "f.tar", timeout_s=0.2)
    assert [asked.range for asked in server.asked] == [None, "bytes=1000-"]


def test_a_server_without_ranges_is_read_from_the_start(server: Behaviour, tmp_path: Path) -> None:
    server.ranges = False
    server.faults.append(Fault(cut_after=100_000))
    get(server, tmp_path / "f.tar")
    assert (tmp_path / "f.tar").read_bytes() == CONTENT
    assert [asked.status for asked in server.asked] == [200, 200]


def test_without_a_validator_nothing_is_continued(server: Behaviour, tmp_path: Path) -> None:
    server.etag = None
    server.faults.append(Fault(cut_after=100_000))
    get(server, tmp_path / "f.tar")
    assert [asked.range for asked in server.asked] == [None, None]


def test_a_server_that_always_cuts_at_one_place_is_given_up(server: Behaviour, tmp_path: Path) -> None:
    server.ranges = False
    server.faults.extend([Fault(cut_after=100_000)] * 9)
    waits: list[float] = []
    with pytest.raises(DataError, match=r"given up after 3 tries in a row"):
        get(server, tmp_path / "f.tar", waits=waits)
    assert len(server.asked) == 3
    assert waits == [1.0, 2.0]
    assert not (tmp_path / "f.tar").exists()


def test_a_changed_file_is_read_from_the_start(server: Behaviour, tmp_path: Path) -> None:
    old = CONTENT[:1000][::-1]
    leave_part(tmp_path / "f.tar", Origin(f"{server.url}/f.tar", '"v0"', len(CONTENT)), old)
    get(server, tmp_path / "f.tar")
    assert [(asked.range, asked.status) for asked in server.asked] == [("bytes=1000-", 200)]
    assert (tmp_path / "f.tar").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "answer",
    [
        {"Content-Range": "bytes 0-9/300000"},
        {"Content-Range": "bytes 1000-9999/10000"},
        {"Content-Range": "bytes 1000-299999/300000", "ETag": '"v2"'},
        {"Content-Range": "nonsense"},
        {},
    ],
)
def test_a_part_of_something_else_is_not_appended(server: Behaviour, tmp_path: Path, answer: dict[str, str]) -> None:
    leave_part(tmp_path / "f.tar", Origin(f"{server.url}/f.tar", '"v1"', len(CONTENT)), CONTENT[:1000])
    server.faults.append(Fault(status=206, headers=answer, cut_after=0))
    get(server, tmp_path / "f.tar")
    assert [asked.range for asked in server.asked] == ["bytes=1000-", None]
    assert (tmp_path / "f.tar").read_bytes() == CONTENT


def test_what_was_longer_is_cut(server: Behaviour, tmp_path: Path) -> None:
    leave_part(tmp_path / "f.tar", Origin(f"{server.url}/f.tar", '"v0"', 999_999), CONTENT + b"more")
    get(server, tmp_path / "f.tar")
    assert (tmp_path / "f.tar").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "origin", [("http://other.example/f.tar", '"v1"'), ("{}/f.tar", None)], ids=["address", "validator"]
)
def test_a_part_of_another_address_or_version_is_not_continued(
    server: Behaviour, tmp_path: Path, origin: tuple[str, str | None]
) -> None:
    leave_part(tmp_path / "f.tar", Origin(origin[0].format(server.url), origin[1], len(CONTENT)), CONTENT[:1000])
    get(server, tmp_path / "f.tar")
    assert [asked.range for asked in server.asked] == [None]


def test_a_weak_etag_does_not_tell_bytes_apart(server: Behaviour, tmp_path: Path) -> None:
    server.etag = 'W/"v1"'
    server.faults.append(Fault(cut_after=1000))
    get(server, tmp_path / "f.tar")
    assert [asked.range for asked in server.asked] == [None, None]


def test_the_time_of_the_last_change_serves_as_well(server: Behaviour, tmp_path: Path) -> None:
    server.etag = None
    server.faults.append(Fault(headers={"Last-Modified": CHANGED}, cut_after=1000))
    get(server, tmp_path / "f.tar")
    assert [asked.range for asked in server.asked] == [None, "bytes=1000-"]


def test_a_rest_that_is_too_long_is_thrown_away(server: Behaviour, tmp_path: Path) -> None:
    leave_part(tmp_path / "f.tar", Origin(f"{server.url}/f.tar", '"v1"', len(CONTENT)), CONTENT[:1000])
    server.faults.append(Fault(status=206, headers={"Content-Range": "bytes 1000-299999/300000"}))
    get(server, tmp_path / "f.tar")
    assert [asked.range for asked in server.asked] == ["bytes=1000-", None]
    assert (tmp_path / "f.tar").read_bytes() == CONTENT


def test_a_whole_part_is_finished_without_asking(server: Behaviour, tmp_path: Path) -> None:
    leave_part(tmp_path / "f.tar", Origin(f"{server.url}/f.tar", '"v1"', len(CONTENT)), CONTENT)
    get(server, tmp_path / "f.tar")
    assert server.asked == []
    assert (tmp_path / "f.tar").read_bytes() == CONTENT


def test_a_part_without_an_origin_is_not_trusted(server: Behaviour, tmp_path: Path) -> None:
    (tmp_path / "f.tar.part").write_bytes(b"x" * 1000)
    get(server, tmp_path / "f.tar")
    assert (tmp_path / "f.tar").read_bytes() == CONTENT
    assert server.asked[0].range is None


def test_a_part_that_is_a_link_is_not_followed(server: Behaviour, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "f.tar.part").symlink_to(tmp_path / "victim")
    with pytest.raises(DataError, match="cannot be written"):
        get(server, tmp_path / "f.tar")
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_wrong_file_is_removed_and_both_digests_are_told(server: Behaviour, tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        get(server, tmp_path / "f.tar", digests=(OTHER,))
    assert f"sha1 is {SHA1[5:]}, not {OTHER[5:]}" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_every_digest_must_fit(server: Behaviour, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="md5 is"):
        get(server, tmp_path / "f.tar", digests=(SHA1, "md5:" + "0" * 32))


def test_the_next_address_is_tried(server: Behaviour, tmp_path: Path) -> None:
    server.files["wrong.tar"] = CONTENT[1:]
    urls = tuple(f"{server.url}/{name}" for name in ("none.tar", "wrong.tar", "f.tar"))
    assert get(server, tmp_path / "f.tar", urls=urls).url == urls[2]
    with pytest.raises(DataError) as refused:
        get(server, tmp_path / "g.tar", urls=urls[:2])
    assert "none.tar: the server answered 404" in str(refused.value)
    assert "wrong.tar: not the expected file" in str(refused.value)
    assert "--mirror" in str(refused.value)


@pytest.mark.parametrize("length", [True, False])
def test_a_file_of_another_size_is_refused(server: Behaviour, tmp_path: Path, length: bool) -> None:
    server.length = length
    with pytest.raises(DataError, match="but the file has 1000"):
        get(server, tmp_path / "f.tar", size=1000)
    assert not (tmp_path / "f.tar").exists()


def test_a_file_of_untold_length_is_read_to_its_end(server: Behaviour, tmp_path: Path) -> None:
    server.length = False
    get(server, tmp_path / "f.tar")
    assert (tmp_path / "f.tar").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("http://127.0.0.2:9/x", "not a public host"),
        ("http://localhost:9/x", "not a public host"),
        ("http://0x7f000001:9/x", "not a public host"),
        ("http://[::ffff:127.0.0.1]:9/x", "not a public host"),
        ("http://169.254.169.254/latest/meta-data", "not a public host"),
        ("http://10.0.0.1/x", "not a public host"),
        ("ftp://127.0.0.1/x", "less safe; refused"),
        ("file:///etc/passwd", "refused"),
    ],
)
def test_a_redirect_into_the_local_network_is_refused(
    server: Behaviour, tmp_path: Path, place: str, message: str
) -> None:
    server.faults.append(Fault(status=302, headers={"Location": place}))
    with pytest.raises(DataError, match=message):
        get(server, tmp_path / "f.tar")


def test_redirects_on_the_mirror_are_followed_a_few_times(server: Behaviour, tmp_path: Path) -> None:
    server.faults.extend([Fault(status=302, headers={"Location": "/f.tar"})] * 5)
    get(server, tmp_path / "f.tar")
    server.faults.extend([Fault(status=302, headers={"Location": "/f.tar"})] * 9)
    with pytest.raises(DataError, match="more than 5 redirects"):
        get(server, tmp_path / "g.tar")


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(
    server: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "free_bytes", lambda _folder: fetch.SPARE_BYTES + 2 * len(CONTENT) - 1)
    get(server, tmp_path / "f.tar")
    with pytest.raises(DataError, match="MiB free; g"):
        get(server, tmp_path / "g.tar", unpacks=True)
    assert not (tmp_path / "g.tar.part").exists()


def test_an_endless_file_of_untold_length_leaves_room_on_the_disk(
    server: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.length = False
    monkeypatch.setattr(
        fetch, "free_bytes", lambda folder: fetch.SPARE_BYTES + 1000 - (folder / "f.tar.part").stat().st_size
    )
    with pytest.raises(DataError, match="MiB free"):
        get(server, tmp_path / "f.tar", digests=())


CHILD = """
import sys, time
from pathlib import Path
from segfleet_pipelines.fetch import Fetcher, Wanted
from segfleet_pipelines.public_hosts import open_client
url, target, digest = sys.argv[1:]
with open_client(url) as http:
    fetcher = Fetcher(http, lambda done, total: None, print)
    fetcher.fetch(Wanted(Path(target), (f"{url}/f.tar",), (digest,)))
"""


def test_a_killed_download_goes_on_in_the_next_process(server: Behaviour, tmp_path: Path) -> None:
    server.faults.append(Fault(cut_after=200_000, stall=True))
    command = [sys.executable, "-P", "-c", CHILD, server.url, str(tmp_path / "f.tar"), SHA1]
    with subprocess.Popen(command) as child:
        part = tmp_path / "f.tar.part"
        until = time.monotonic() + 20
        while not (part.exists() and part.stat().st_size == 200_000) and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.tar.part", "f.tar.part.json"]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "f.tar").read_bytes() == CONTENT
    assert [asked.range for asked in server.asked] == [None, "bytes=200000-"]
