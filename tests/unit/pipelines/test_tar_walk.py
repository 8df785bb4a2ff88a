from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from segfleet.errors import DataError
from segfleet_pipelines.tar_walk import walk_tar

LONG = "long-" * 40 + "é.jpg"
FILES = {"a.jpg": b"x" * 700, "a.png": b"", "b.jpg": b"y" * 512, LONG: b"z"}


def write_tar(path: Path, files: dict[str, bytes] = FILES, fmt: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=fmt) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5 if fmt == tarfile.PAX_FORMAT else 1
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("fmt", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_places_and_sizes_are_those_of_the_files(tmp_path: Path, fmt: int) -> None:
    path = write_tar(tmp_path / "s.tar", fmt=fmt)
    data = path.read_bytes()
    walked = {member.name: data[member.offset : member.offset + member.size] for member in walk_tar(path)}
    assert walked == FILES
    assert list(walked) == list(FILES)


def _replace(start: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data[:start] + new + data[start + len(new) :]


def _header(size_field: bytes, kind: bytes = tarfile.REGTYPE) -> Callable[[bytes], bytes]:
    """The first header with another size field and type, and a checksum that fits."""

    def change(data: bytes) -> bytes:
        block = bytearray(data[:512])
        block[124:136], block[156:157], block[148:156] = size_field, kind, b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        return bytes(block) + data[512:]

    return change


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut at a member's end": (lambda data: data[: 512 + 1024], "without an end mark"),
    "cut inside a header": (lambda data: data[: 512 + 1024 + 100], "without an end mark"),
    "cut inside a file": (lambda data: data[:700], "leads beyond the end"),
    "cut inside the end mark": (lambda data: data.rstrip(b"\0").ljust(6 * 512 + 3 * 512, b"\0"), "end mark"),
    "empty": (lambda data: b"", "without an end mark"),
    "a flipped header byte": (
        lambda data: _replace(1536, bytes([data[1536] ^ 1]))(data),
        "damaged header at byte 1536",
    ),
    "a header of zeros": (_replace(1536, bytes(512)), "more data behind it"),
    "a second archive behind the first": (lambda data: data + data, "more data behind it"),
    "garbage behind the end": (lambda data: data + b"x", "more data behind it"),
    "a size that leads backwards": (_header(b"\xff" * 12), "leads beyond the end"),
    "a size beyond the file": (_header(b"77777777777\0"), "leads beyond the end"),
    "a huge name": (_header(b"77777777777\0", tarfile.GNUTYPE_LONGNAME), "name or record of"),
    "a name of negative size": (_header(b"\xff" * 12, tarfile.GNUTYPE_LONGNAME), "name or record of"),
    "broken records": (_header(b"00000000700\0", tarfile.XHDTYPE), "not a sound tar file"),
    "a symbolic link": (_header(b"00000000000\0", tarfile.SYMTYPE), "is a symbolic link"),
    "a hard link": (_header(b"00000000000\0", tarfile.LNKTYPE), "is a hard link"),
    "a device": (_header(b"00000000000\0", tarfile.CHRTYPE), "is a device"),
    "a folder": (_header(b"00000000000\0", tarfile.DIRTYPE), "is a folder"),
    "a sparse file": (_header(b"00000000700\0", tarfile.GNUTYPE_SPARSE), "is a sparse file"),
    "an unknown kind": (_header(b"00000000700\0", b"Z"), "of an unknown kind"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_that_tarfile_takes_for_the_end_is_an_error(tmp_path: Path, name: str) -> None:
    """F62, S14."""
    change, message = DAMAGE[name]
    path = write_tar(tmp_path / "s.tar")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=rf"shard 's\.tar' .*{message}"):
        walk_tar(path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shard 's\.tar' cannot be read: No such file"):
        walk_tar(tmp_path / "s.tar")
