from __future__ import annotations

import errno
import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from segfleet import archive
from segfleet.archive import digest_header, pack, unpack
from segfleet.errors import DataError


def member(name: str, content: bytes = b"x", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def take(data: bytes, out: Path, piece: int = 1000, digest: str | None = None) -> Path:
    pieces = [data[start : start + piece] for start in range(0, len(data), piece)]
    return unpack(pieces, out, digest or digest_header(hashlib.sha256(data).digest()))


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Path, bytes, str]:
    folder = tmp_path / "files"
    (folder / "data").mkdir(parents=True)
    (folder / "MLmodel").write_bytes(b"m" * 700)
    (folder / "data" / "w.bin").write_bytes(bytes(range(256)) * 300)
    (folder / "data" / "link").symlink_to("/etc/passwd")
    out = io.BytesIO()
    digest = pack(folder, out)
    return folder, out.getvalue(), digest


@pytest.mark.parametrize("piece", [1, 511, 512, 10_000, 10**7])
def test_what_was_packed_is_unpacked_without_its_links(packed: Any, tmp_path: Path, piece: int) -> None:
    folder, data, digest = packed
    out = take(data, tmp_path / "out", piece, digest)
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert names == ["MLmodel", "data/w.bin"]
    assert (out / "data" / "w.bin").read_bytes() == (folder / "data" / "w.bin").read_bytes()


def test_every_cut_and_many_flips_are_noticed(packed: Any, tmp_path: Path) -> None:
    _, data, digest = packed
    damaged = [data[:length] for length in range(0, len(data), 997)]
    damaged += [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(0, len(data), 1009)]
    for broken in damaged:
        with pytest.raises(DataError):
            take(broken, tmp_path / "out", 4096, digest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files"]


@pytest.mark.parametrize(
    "evil",
    [
        member("../x"),
        member("/tmp/x"),
        member("a/../../x"),
        member("."),
        member("a\\..\\x"),
        member("link", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("hard", b"", type=tarfile.LNKTYPE, linkname="MLmodel"),
        member("device", b"", type=tarfile.CHRTYPE),
        member("pipe", b"", type=tarfile.FIFOTYPE),
        member("folder", b"", type=tarfile.DIRTYPE),
        member("../" + "d/" * 2000 + "x"),
    ],
    ids=lambda evil: evil[0].name[:20],
)
def test_anything_but_plain_files_below_is_refused(evil: Any, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    with pytest.raises(DataError, match="refused"):
        take(tar_of(member("MLmodel"), evil), inner / "out")
    assert list(inner.iterdir()) == []
    assert list(tmp_path.iterdir()) == [inner]


def test_a_file_given_twice_is_refused(tmp_path: Path) -> None:
    for second in ("a", "a/b"):
        with pytest.raises(DataError):
            take(tar_of(member("a"), member(second)), tmp_path / "out")


def test_the_number_of_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    with pytest.raises(DataError, match="more than 3"):
        take(tar_of(*(member(f"f{number}") for number in range(4))), tmp_path / "out")


def test_permissions_of_the_archive_do_not_count(tmp_path: Path) -> None:
    out = take(tar_of(member("run.sh", b"#!", mode=0o6777, uid=0)), tmp_path / "out")
    assert (out / "run.sh").stat().st_mode & 0o7111 == 0


def test_a_full_disk_is_told_and_leaves_nothing(packed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archive.shutil, "copyfileobj", full)
    with pytest.raises(DataError, match="No space left"):
        take(packed[1], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files"]
