"""The members of zip and tar files, as names, kinds and bytes that nobody vouches for."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast

from segfleet.errors import DataError

_MAX_NAME, _MAX_PART = 1024, 255
# The headers of a tar file are read as a whole; none that is meant well comes near to this.
_MAX_READ = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of an archive.

    Attributes:
        name: As written in the archive.
        kind: `file`, `folder`, or what else it is, for people.
        size: Bytes, as the archive says.
        open: Gives the bytes; for files, while the archive is at this member.
        check: Raises what the library's own filter finds wrong with unpacking the member to a folder.
    """

    name: str
    kind: Literal["file", "folder"] | str
    size: int
    open: Callable[[], IO[bytes]]
    check: Callable[[Path], object]


@contextmanager
def open_members(archive: Path) -> Iterator[Iterator[Member]]:
    """The members of a .zip, .tar, .tar.gz or .tgz file, in its order.

    Raises:
        DataError: another kind of file. The libraries' own errors pass for what is damaged.
    """
    name = archive.name.lower()
    if name.endswith(".zip"):
        with zipfile.ZipFile(archive) as opened:
            yield (_zip_member(opened, info) for info in opened.infolist())
    elif name.endswith((".tar", ".tar.gz", ".tgz")):
        with archive.open("rb") if name.endswith(".tar") else gzip.open(archive) as stream:
            bounded = _BoundedReads(cast(IO[bytes], stream))
            with tarfile.open(fileobj=cast(IO[bytes], bounded), mode="r:") as tar:
                yield (_tar_member(tar, info) for info in tar)
    else:
        raise DataError(f"{archive} is neither .zip, .tar, .tar.gz nor .tgz")


def safe_parts(name: str) -> tuple[str, ...]:
    """The parts of a member's name below the folder that it is unpacked to; none for that folder itself.

    Raises:
        DataError: absolute, with `..`, a drive, a backslash or control characters, or too long.
    """
    shown = repr(name[:200])
    if name.startswith("/") or "\\" in name or name[1:2] == ":":
        raise DataError(f"the name {shown} is not a relative path with '/'")
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in name):
        raise DataError(f"the name {shown} has characters that no file name should have")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise DataError(f"the name {shown} leads out of the folder")
    if len(name.encode()) > _MAX_NAME or any(len(part.encode()) > _MAX_PART for part in parts):
        raise DataError(f"the name that begins {shown} is too long")
    return parts


def _zip_member(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    # `filename` ends at a NUL byte; the archive's own words are in `orig_filename`.
    kind = _zip_kind(info)
    return Member(info.orig_filename, kind, info.file_size, lambda: opened.open(info), lambda _: None)


def _zip_kind(info: zipfile.ZipInfo) -> str:
    mode = info.external_attr >> 16
    if info.flag_bits & 1:
        return "an encrypted file"
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a device or another special file"
    return "folder" if info.is_dir() else "file"


def _tar_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    def opened() -> IO[bytes]:
        return tar.extractfile(info) or io.BytesIO()

    return Member(info.name, _tar_kind(info), info.size, opened, lambda folder: tarfile.data_filter(info, str(folder)))


def _tar_kind(info: tarfile.TarInfo) -> str:
    if info.issym():
        return "a symbolic link"
    if info.islnk():
        return "a hard link"
    if info.issparse():
        return "a sparse file"
    if info.isfile():
        return "file"
    return "folder" if info.isdir() else "a device or another special file"


class _BoundedReads:
    """A tar file's stream that refuses to read a header of gigabytes into memory."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        # Below zero would be all that is left.
        if not 0 <= size <= _MAX_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._stream.read(size)
