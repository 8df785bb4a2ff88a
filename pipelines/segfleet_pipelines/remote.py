"""Files elsewhere: what to do when the way to them fails."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from segfleet.errors import DataError
from segfleet_pipelines.local_files import beside, plain_name, write_to, wrong_size
from segfleet_pipelines.retrying import Retry, TransientError

# What is read into memory are manifests, a few hundred bytes a shard; more is a mistake, or meant to fill that memory.
_LARGEST_READ = 64 * 1024**2
_PROGRESS_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Stream:
    """The bytes of a file from some place on.

    Attributes:
        start: The place; 0 if the server begins again.
        size: Bytes of the whole file; None if the server does not say.
        version: Differs when the content does; None if the server does not say.
        chunks: The bytes; raises TransientError when they end early.
    """

    start: int
    size: int | None
    version: str | None
    chunks: Iterator[bytes]


class Files(Protocol):
    """One try of each operation; raises TransientError if another try may help, DataError if not."""

    def size(self, name: str) -> int:
        """Bytes in a file."""
        ...

    def stream(self, name: str, start: int, version: str | None) -> AbstractContextManager[Stream]:
        """A file from `start` on, if it is still the one of `version`; else from 0."""
        ...

    def upload(self, source: Path, name: str) -> None:
        """Copy a file of this machine there, completely or not at all."""
        ...

    def names(self) -> list[str]:
        """Names of the files there, sorted."""
        ...


class RemoteStorage:
    """A folder of an object store or a web server, asked again when it fails."""

    def __init__(self, address: str, files: Files, retry: Retry) -> None:
        self._address, self._files, self._retry = address, files, retry

    @property
    def folder(self) -> None:
        """See `segfleet_pipelines.storage.Storage`."""
        return

    @property
    def address(self) -> str:
        """See `segfleet_pipelines.storage.Storage`."""
        return self._address

    def read(self, name: str) -> bytes:
        """See `segfleet_pipelines.storage.Storage`."""
        buffer = io.BytesIO()
        self._copy(name, buffer, None, _LARGEST_READ)
        return buffer.getvalue()

    def size(self, name: str) -> int:
        """See `segfleet_pipelines.storage.Storage`."""
        return self._retry.run(
            lambda: self._files.size(plain_name(name)), lambda *last: self._given_up(name, "read", *last)
        )

    def fetch(self, name: str, file: IO[bytes], size: int | None = None) -> str:
        """See `segfleet_pipelines.storage.Storage`; continues where a cut connection ended, if the server can."""
        return self._copy(name, file, size, size)

    def download(self, name: str, target: Path) -> None:
        """See `segfleet_pipelines.storage.Storage`."""
        with beside(target) as file:
            self.fetch(name, file)

    def upload(self, source: Path, name: str) -> None:
        """See `segfleet_pipelines.storage.Storage`."""
        self._retry.run(
            lambda: self._files.upload(source, plain_name(name)), lambda *last: self._given_up(name, "written", *last)
        )

    def names(self) -> list[str]:
        """See `segfleet_pipelines.storage.Storage`."""
        return self._retry.run(self._files.names, lambda *last: self._given_up("", "listed", *last))

    def _copy(self, name: str, file: IO[bytes], size: int | None, limit: int | None) -> str:
        copy = _Copy(self._address, plain_name(name), file, size, limit)
        failures = 0
        while True:
            before = copy.done
            try:
                copy.advance(self._files)
                return copy.finish()
            except TransientError as error:
                # What brought us further does not count: a shard of hours over a bad line still arrives.
                failures = 1 if copy.done - before >= _PROGRESS_BYTES else failures + 1
                if failures >= self._retry.attempts:
                    raise self._given_up(name, "read", str(error), failures) from error
            self._retry.pause(failures)

    def _given_up(self, name: str, what: str, reason: str, attempts: int) -> DataError:
        file = f"{name!r} of {self._address}" if name else self._address
        return DataError(f"{file} cannot be {what}: {reason} ({attempts} attempts); check the storage and try again")


class _Copy:
    """A file on its way, over as many connections as it takes."""

    def __init__(self, address: str, name: str, file: IO[bytes], size: int | None, limit: int | None) -> None:
        self._address, self._name, self._file, self._size, self._limit = address, name, file, size, limit
        self._digest = hashlib.sha256()
        self._version: str | None = None
        self.done = 0

    def advance(self, files: Files) -> None:
        """Copy as far as one connection goes.

        Raises:
            TransientError: it ended early.
            DataError: the file is not of the expected size, or cannot be had.
        """
        with files.stream(self._name, self.done, self._version) as stream:
            if stream.start != self.done:
                self._restart()
            self._version = stream.version
            self._require(stream.size)
            for chunk in stream.chunks:
                self._require_room(self.done + len(chunk))
                write_to(self._file, chunk)
                self._digest.update(chunk)
                self.done += len(chunk)
            if stream.size is not None and self.done != stream.size:
                raise TransientError(f"the connection ended after {self.done} of {stream.size} bytes")
        self._require(self.done)

    def finish(self) -> str:
        self._file.truncate(self.done)
        return self._digest.hexdigest()

    def _restart(self) -> None:
        self._file.seek(0)
        self._digest, self.done = hashlib.sha256(), 0

    def _require_room(self, actual: int) -> None:
        if self._limit is None or actual <= self._limit:
            return
        if self._size is not None:
            raise wrong_size(self._name, self._address, actual, self._size)
        raise DataError(f"{self._name!r} of {self._address} has more than {self._limit} bytes; it is none of a dataset")

    def _require(self, actual: int | None) -> None:
        if actual is not None and self._size is not None and actual != self._size:
            raise wrong_size(self._name, self._address, actual, self._size)
