from __future__ import annotations

import gzip
import io
import os
import random
import stat
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from segfleet.errors import DataError
from segfleet_pipelines import extract as extract_module
from segfleet_pipelines.archive_members import Member
from segfleet_pipelines.extract import MARK, Extracted, Limits, extract, read_mark

FILES = {"top/data/a.txt": b"alpha", "top/data/deep/b.txt": b"beta" * 1000, "top/README": b"not wanted"}


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test outlives a power cut, so none waits for the disk."""
    monkeypatch.setattr(os, "sync", lambda: None)


def make_tar(path: Path, files: dict[str, bytes], *more: tuple[tarfile.TarInfo, bytes]) -> Path:
    mode: Any = "w" if path.suffix == ".tar" else "w:gz"
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info, content in more:
            tar.addfile(info, io.BytesIO(content))
    return path


def make_zip(path: Path, files: dict[str, bytes], *more: tuple[zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
        for info, content in more:
            opened.writestr(info, content)
    return path


def tar_info(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def zip_info(name: str, mode: int = 0, **fields: Any) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def unpack(archive: Path, inside: str = "top/data", limits: Limits | None = None) -> Extracted:
    return extract(archive, "0" * 64, inside, archive.parent / "out" / "data", lambda _done, _total: None, limits)


def refused(archive: Path, message: str, limits: Limits | None = None) -> None:
    """The archive is refused with a reason, and nothing of it is left anywhere."""
    (archive.parent / "out").mkdir(exist_ok=True)
    before = sorted(archive.parent.rglob("*"))
    with pytest.raises(DataError, match=message) as error:
        unpack(archive, limits=limits)
    assert str(archive) in str(error.value)
    assert sorted(archive.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tgz"])
def test_one_folder_of_an_archive_is_unpacked(tmp_path: Path, name: str) -> None:
    archive = (make_zip if name == "x.zip" else make_tar)(tmp_path / name, FILES)
    assert unpack(archive) == Extracted(name, "0" * 64, 2, 4005)
    out = tmp_path / "out" / "data"
    found = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert found.pop(MARK)
    assert found == {"a.txt": b"alpha", "deep/b.txt": b"beta" * 1000}
    assert read_mark(out) == Extracted(name, "0" * 64, 2, 4005)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["data"]


def test_folders_may_be_listed_or_not_and_be_listed_twice(tmp_path: Path) -> None:
    folders = [(tar_info(name, type=tarfile.DIRTYPE), b"") for name in ("./top/data/", "top/data/e", "top/data/e/")]
    unpack(make_tar(tmp_path / "x.tar", {"./top/data/a": b"1"}, *folders))
    assert (tmp_path / "out/data/e").is_dir()
    assert (tmp_path / "out/data/a").read_bytes() == b"1"


def test_modes_and_owners_of_the_archive_do_not_count(tmp_path: Path) -> None:
    unpack(make_tar(tmp_path / "x.tar", {}, (tar_info("top/data/a", mode=0o6777, uid=12345, gid=12345), b"")))
    status = (tmp_path / "out/data/a").stat()
    assert stat.S_IMODE(status.st_mode) & ~0o644 == 0
    assert status.st_uid == os.getuid()


BAD_NAMES = {
    "../escape": "leads out",
    "top/data/../../escape": "leads out",
    "top/data/..": "leads out",
    "/etc/escape": "not a relative path",
    "top/data/..\\escape": "not a relative path",
    "C:/escape": "not a relative path",
    "top/data/a\x00b": "no file name should have",
    "top/data/a\nb": "no file name should have",
    "top/data/" + "n" * 300: "too long",
    "top/data/" + "d/" * 2000 + "f": "too long",
}


@pytest.mark.parametrize(("name", "message"), BAD_NAMES.items(), ids=range(len(BAD_NAMES)))
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, kind: str, name: str, message: str) -> None:
    if kind == "zip":
        # ZipInfo's constructor would clean the name.
        archive = make_zip(tmp_path / "x.zip", FILES, (zip_info("x", filename=name), b"bad"))
        if "\x00" in name:
            assert b"a\x00b" in archive.read_bytes()
    else:
        # A name in an extended header may hold any byte.
        info = tar_info("x", pax_headers={"path": name})
        archive = make_tar(tmp_path / "x.tar", FILES, (info, b""))
    refused(archive, message)


TAR_KINDS = {
    "symbolic link": {"type": tarfile.SYMTYPE, "linkname": "a.txt"},
    "symbolic link to elsewhere": {"type": tarfile.SYMTYPE, "linkname": "../../.."},
    "hard link": {"type": tarfile.LNKTYPE, "linkname": "top/data/a.txt"},
    "character device": {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3},
    "block device": {"type": tarfile.BLKTYPE, "devmajor": 8},
    "pipe": {"type": tarfile.FIFOTYPE},
    "sparse file": {"type": tarfile.GNUTYPE_SPARSE},
}


@pytest.mark.parametrize("fields", TAR_KINDS.values(), ids=TAR_KINDS)
def test_a_tar_member_that_is_no_plain_file_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    words = {tarfile.SYMTYPE: "symbolic link", tarfile.LNKTYPE: "hard link", tarfile.GNUTYPE_SPARSE: "sparse file"}
    kind = words.get(fields["type"], "device or another special file")
    archive = make_tar(tmp_path / "x.tar", FILES, (tar_info("top/data/z", **fields), b""))
    refused(archive, f"'top/data/z' is a {kind}; only files and folders")


def test_a_chain_of_links_leads_nowhere(tmp_path: Path) -> None:
    links = [(tar_info("top/data/l", type=tarfile.SYMTYPE, linkname="../../.."), b"")]
    refused(make_tar(tmp_path / "x.tar", {}, *links, (tar_info("top/data/l/escape"), b"")), "a symbolic link")


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFCHR | 0o666, stat.S_IFIFO | 0o666, stat.S_IFSOCK])
def test_a_zip_member_that_is_no_plain_file_is_refused(tmp_path: Path, mode: int) -> None:
    kind = "symbolic link" if stat.S_ISLNK(mode) else "device or another special file"
    archive = make_zip(tmp_path / "x.zip", FILES, (zip_info("top/data/z", mode), b"../../.."))
    refused(archive, f"'top/data/z' is a {kind}; only files and folders")


def test_an_encrypted_zip_member_is_refused(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x.zip", {"top/data/a": b"alpha"})
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)
    refused(archive, "an encrypted file")


@pytest.mark.parametrize(
    "names",
    [
        ("top/data/x", "top/data/x"),
        ("top/data/x", "top/data/./x"),
        ("top/data/x", "top/data/X"),
        ("top/data/d/x", "top/data/D/y"),
        ("top/data/x", "top/data/x/y"),
        ("top/data/x/y", "top/data/x"),
        ("top/data/\u00e9", "top/data/e\u0301"),
        ("top/data/stra\u00dfe", "top/data/STRASSE"),
    ],
    ids=range(8),
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_two_members_of_one_name_are_refused(tmp_path: Path, kind: str, names: tuple[str, str]) -> None:
    members = [name.encode() for name in names]
    if kind == "zip":
        archive = make_zip(tmp_path / "x.zip", {}, *((zip_info(name), b"1") for name in names))
    else:
        archive = make_tar(tmp_path / "x.tar", {}, *((tar_info(name), b"") for name in names))
    assert len(members) == 2
    refused(archive, "have one name")


@pytest.mark.parametrize("name", ["x.zip", "x.tgz"])
@pytest.mark.parametrize("wanted", [True, False])
def test_a_bomb_is_refused_before_it_is_written(tmp_path: Path, name: str, wanted: bool) -> None:
    place = "top/data/zeros" if wanted else "elsewhere"
    archive = (make_zip if name == "x.zip" else make_tar)(tmp_path / name, {**FILES, place: bytes(17 * 1024**2)})
    assert archive.stat().st_size < 100_000
    refused(archive, "more than 100 times its own size")
    refused(archive, "more than 1 MiB", Limits(bytes=1024**2))


def test_a_small_archive_may_be_compressed_well(tmp_path: Path) -> None:
    unpack(make_zip(tmp_path / "x.zip", {"top/data/zeros": bytes(8 * 1024**2)}))


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_too_many_members_are_refused(tmp_path: Path, name: str) -> None:
    archive = (make_zip if name == "x.zip" else make_tar)(tmp_path / name, FILES)
    refused(archive, "more than 2 members", Limits(members=2))


def test_a_disk_that_is_too_small_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract_module, "free_bytes", lambda _folder: extract_module.SPARE_BYTES + 3999)
    refused(make_zip(tmp_path / "x.zip", FILES), "no room for 'top/data/deep/b.txt'")


def test_a_zip_member_that_is_larger_than_it_says_is_refused(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x.zip", {"top/data/zeros": bytes(100_000)})
    data = archive.read_bytes()
    size = (100_000).to_bytes(4, "little")
    assert data.count(size) == 2
    archive.write_bytes(data.replace(size, (10).to_bytes(4, "little")))
    refused(archive, "damaged|does not have")


@pytest.mark.parametrize("content", [b"", b"short", b"longer than it says"])
def test_a_member_that_is_not_as_long_as_it_says_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """What the libraries would have to let pass: limits are checked with the sizes that the archive tells."""
    lie = Member("top/data/z", "file", 10, lambda: io.BytesIO(content), lambda _folder: None)
    monkeypatch.setattr(extract_module, "open_members", lambda _archive: nullcontext(iter([lie])))
    refused(make_zip(tmp_path / "x.zip", FILES), "does not have the 10 bytes")


def test_the_library_s_own_filter_has_its_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
        raise tarfile.AbsolutePathError(member)

    monkeypatch.setattr(tarfile, "data_filter", refuse)
    refused(make_tar(tmp_path / "x.tar", FILES), "has an absolute path")


@pytest.mark.parametrize("what", ["folder", "file"])
def test_links_that_somebody_plants_meanwhile_are_not_followed(tmp_path: Path, what: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    work = tmp_path / "out" / ".data.unpacking"
    (tmp_path / "out").mkdir()

    def plant(_done: int, _total: int | None) -> None:
        if what == "folder" and not (work / "d").is_symlink():
            (work / "d").rename(work / "e")
            (work / "d").symlink_to(outside)
        elif what == "file" and not (work / "d" / "2").is_symlink():
            (work / "d" / "2").symlink_to(outside / "2")

    archive = make_tar(tmp_path / "x.tar", {f"top/data/d/{i}": b"1" for i in range(3)})
    with pytest.raises(DataError, match=r"leads out|File exists"):
        extract(archive, "0" * 64, "top/data", tmp_path / "out" / "data", plant)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_a_tar_header_of_gigabytes_is_not_read(tmp_path: Path, kind: bytes) -> None:
    info = tar_info("header", type=kind, size=5 * 1024**3)
    with gzip.open(tmp_path / "x.tgz", "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
    refused(tmp_path / "x.tgz", "a header of 5368709120 bytes")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.DIRTYPE])
@pytest.mark.timeout(20)
def test_a_size_below_zero_ends_no_where_but_in_an_error(tmp_path: Path, kind: bytes) -> None:
    bad = tar_info("top/data/z", type=kind, size=-1024).tobuf(tarfile.GNU_FORMAT)
    archive = make_tar(tmp_path / "x.tar", {"top/data/a": b"1"})
    archive.write_bytes(archive.read_bytes()[:1024] + bad + bytes(1024))
    refused(archive, "below zero|header of|damaged")


def test_another_archive_than_expected_is_refused(tmp_path: Path) -> None:
    refused(make_zip(tmp_path / "x.zip", {"other/a": b"1"}), "not the archive that was expected")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.rar").write_bytes(b"Rar!")
    refused(tmp_path / "x.rar", "neither")
    for name in ("x.zip", "x.tar", "x.tgz"):
        (tmp_path / name).write_bytes(b"<html>Please log in</html>" * 100)
        refused(tmp_path / name, "damaged|Not a gzipped file")


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x.zip", FILES)
    (tmp_path / "out" / "data").mkdir(parents=True)
    refused(archive, "exists")


def test_what_a_killed_run_has_left_is_removed(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x.zip", FILES)
    left = tmp_path / "out" / ".data.unpacking" / "deep"
    left.mkdir(parents=True)
    (left / "b.txt").write_text("half")
    unpack(archive)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["data"]


@pytest.mark.parametrize("change", ["flip", "cut", "swap"])
@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tgz"])
def test_damage_ends_in_an_error_or_changes_nothing_elsewhere(tmp_path: Path, name: str, change: str) -> None:
    rng = random.Random(f"{name} {change}")
    make: Callable[..., Path] = make_zip if name == "x.zip" else make_tar
    whole = make(tmp_path / name, {f"top/data/{i}": rng.randbytes(200) for i in range(5)}).read_bytes()
    for case in range(30):
        data = bytearray(whole)
        at, other = rng.randrange(len(data)), rng.randrange(len(data))
        if change == "flip":
            data[at] ^= 1 << rng.randrange(8)
        elif change == "swap":
            data[at], data[other] = data[other], data[at]
        else:
            del data[at:]
        folder = tmp_path / str(case)
        folder.mkdir()
        (folder / name).write_bytes(data)
        try:
            unpack(folder / name)
        except DataError:
            assert not (folder / "out" / "data").exists()
        assert {path.name for path in folder.iterdir()} <= {name, "out"}
        assert {path.name for path in folder.glob("out/*")} <= {"data"}
