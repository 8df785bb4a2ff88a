"""Where the bytes of a raw picture or mask come from."""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from segfleet.errors import DataError

MAX_MEMBER_BYTES = 256 * 1024 * 1024  # no picture is larger; what unpacks to more is a bomb


class Source(Protocol):
    """A raw picture (JPEG or PNG) or mask (PNG, 8-bit labels); small, and may be sent to another process.

    Its text names it for people.
    """

    def read(self) -> bytes:
        """The encoded bytes.

        Raises:
            DataError: missing or unreadable; names the file.
        """
        ...

    def stamp(self) -> str:
        """Changes when the content does, as far as the file system tells.

        Raises:
            DataError: missing.
        """
        ...

    def size(self) -> int:
        """About as many bytes as `read` gives, without reading them.

        Raises:
            DataError: missing.
        """
        ...


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file."""

    path: Path

    def read(self) -> bytes:
        """See `Source`."""
        try:
            check_size(self, self.size())
            return self.path.read_bytes()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from error

    def stamp(self) -> str:
        """See `Source`."""
        return file_stamp(self.path)

    def size(self) -> int:
        """See `Source`."""
        return file_size(self.path)

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class ZipSource:
    """A member of a zip file, which is read where it is."""

    archive: Path
    member: str

    def read(self) -> bytes:
        """See `Source`."""
        try:
            archive = _opened(self.archive, self.stamp())
            check_size(self, archive.getinfo(self.member).file_size)
            return archive.read(self.member)
        except (*_ZIP_ERRORS, KeyError) as error:
            raise DataError(f"{self}: cannot be read: {error}") from error

    def stamp(self) -> str:
        """See `Source`."""
        return file_stamp(self.archive)

    def size(self) -> int:
        """See `Source`."""
        try:
            return _opened(self.archive, self.stamp()).getinfo(self.member).file_size
        except (*_ZIP_ERRORS, KeyError) as error:
            raise DataError(f"{self}: cannot be read: {error}") from error

    def __str__(self) -> str:
        return f"{self.archive}/{self.member}"


def check_size(source: Source, size: int) -> None:
    """Make sure that a picture or mask may be read into memory.

    Raises:
        DataError: it is too large for one.
    """
    if size > MAX_MEMBER_BYTES:
        raise DataError(f"{source}: {size:,} bytes; no picture is that large")


def zip_members(archive: Path) -> list[str]:
    """Names of the files in a zip file.

    Raises:
        DataError: missing, or not a whole zip file.
    """
    try:
        return [info.filename for info in _opened(archive, file_stamp(archive)).infolist() if not info.is_dir()]
    except _ZIP_ERRORS as error:
        raise DataError(f"{archive}: not a whole zip file ({error}); fetch it again") from error


def file_stamp(path: Path) -> str:
    """Size and time of a file.

    Raises:
        DataError: missing.
    """
    status = _status(path)
    return f"{status.st_size}-{status.st_mtime_ns}"


def file_size(path: Path) -> int:
    """Bytes of a file.

    Raises:
        DataError: missing.
    """
    return _status(path).st_size


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


@lru_cache(maxsize=4)
def _opened(archive: Path, _stamp: str) -> zipfile.ZipFile:
    # Kept open: reading the table of a dataset's zip takes a second, and every process reads thousands of members.
    return zipfile.ZipFile(archive)


# ValueError: among others of names that are not the UTF-8 that the file says they are.
_ZIP_ERRORS = (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError)
