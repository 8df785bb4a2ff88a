"""Files of a folder on this machine. What is written appears under its name complete or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from segfleet.errors import DataError, FileMissingError

_CHUNK_BYTES = 4 * 1024 * 1024
_PLAIN_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,200}")


class LocalStorage:
    """A folder on this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def address(self) -> str:
        """See `segfleet_pipelines.storage.Storage`."""
        return str(self._folder)

    @property
    def folder(self) -> Path:
        """See `segfleet_pipelines.storage.Storage`."""
        return self._folder

    def read(self, name: str) -> bytes:
        """See `segfleet_pipelines.storage.Storage`."""
        with self._reporting(name, "read"):
            return (self._folder / plain_name(name)).read_bytes()

    def size(self, name: str) -> int:
        """See `segfleet_pipelines.storage.Storage`."""
        with self._reporting(name, "read"):
            return (self._folder / plain_name(name)).stat().st_size

    def fetch(self, name: str, file: IO[bytes], size: int | None = None) -> str:
        """See `segfleet_pipelines.storage.Storage`."""
        digest, done = hashlib.sha256(), 0
        with self._reporting(name, "read"), (self._folder / plain_name(name)).open("rb") as source:
            while chunk := source.read(_CHUNK_BYTES):
                done += len(chunk)
                if size is not None and done > size:
                    raise wrong_size(name, self.address, source.seek(0, os.SEEK_END), size)
                write_to(file, chunk)
                digest.update(chunk)
        if size is not None and done != size:
            raise wrong_size(name, self.address, done, size)
        file.truncate(done)
        return digest.hexdigest()

    def download(self, name: str, target: Path) -> None:
        """See `segfleet_pipelines.storage.Storage`."""
        with beside(target) as file:
            self.fetch(name, file)

    def upload(self, source: Path, name: str) -> None:
        """See `segfleet_pipelines.storage.Storage`."""
        target = self._folder / plain_name(name)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        LocalStorage(source.parent).download(source.name, target)

    def names(self) -> list[str]:
        """See `segfleet_pipelines.storage.Storage`."""
        try:
            return sorted(path.name for path in self._folder.iterdir() if path.is_file())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DataError(f"{self.address} cannot be listed: {error.strerror}; restore it") from error

    @contextmanager
    def _reporting(self, name: str, what: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileMissingError(name, self.address) from error
        except OSError as error:
            raise DataError(f"{self._folder / name} cannot be {what}: {error.strerror}; restore it") from error


def plain_name(name: str) -> str:
    """The name, if it is one of a file in the folder itself.

    Raises:
        DataError: it could lead somewhere else.
    """
    if not _PLAIN_NAME.fullmatch(name):
        raise DataError(f"{name!r} is not the name of a dataset's file; use letters, digits, '.', '_' and '-'")
    return name


@contextmanager
def beside(target: Path) -> Iterator[IO[bytes]]:
    """A file to write, which gets the name `target` at the end, durably, if nothing went wrong.

    Raises:
        DataError: it cannot be written.
    """
    staged = target.with_name(f".{target.name}.partial-{secrets.token_hex(4)}")
    try:
        with staged.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        staged.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        staged.unlink(missing_ok=True)


def write_to(file: IO[bytes], data: bytes | memoryview) -> None:
    """Write, so that a full disk is not mistaken for a fault of the source.

    Raises:
        DataError: it cannot be written.
    """
    try:
        file.write(data)
    except OSError as error:
        raise _unwritable(Path(str(file.name)), error) from error


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it durably if that is on another file system.

    Raises:
        DataError: it is missing, or cannot be read or written.
    """
    try:
        # Not of a symbolic link itself: that would end with the first one, and lead elsewhere from another folder.
        os.link(os.path.realpath(source), target)
    except OSError:
        LocalStorage(source.parent).download(source.name, target)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def wrong_size(name: str, address: str, actual: int, expected: int) -> DataError:
    """A file is not as long as the manifest has it."""
    return DataError(
        f"{name!r} of {address} has {actual} bytes, the manifest says {expected}; "
        "restore it or prepare the dataset again"
    )


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be written: {error.strerror}; free space or choose another place")
