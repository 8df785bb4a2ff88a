"""Shards from elsewhere on this machine's disk: once, whole, and never more of them than the limit allows.

The folder holds `SHA256` (a finished file, named by its content), `SHA256.partial` (a download) and `lock`. Locks are
flock, so the kernel drops those of a killed process:

- on a finished file, shared: somebody reads it; exclusive: it is about to be removed;
- on a partial file, exclusive: somebody downloads it; without the lock it is what a killed process has left;
- on `lock`, exclusive: somebody makes room, or gives a finished file its name.

A partial file has its full length from the start, so the sum of all sizes is what the cache takes or has promised.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from segfleet.errors import DataError
from segfleet_pipelines.local_files import sync_folder
from segfleet_pipelines.manifest import FileInfo
from segfleet_pipelines.storage import Storage

_PARTIAL = ".partial"
_LOCK = "lock"
_HINT = "raise SEGFLEET_CACHE_LIMIT"


class OpenFile:
    """A file open for `os.pread`, closed (and with it unlocked) when nobody holds this object any more.

    Attributes:
        descriptor: Of the file.
    """

    __slots__ = ("descriptor",)

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        _unlock_and_close(self.descriptor)


class ShardCache:
    """A folder of files from elsewhere, shared by all processes of a machine.

    Attributes:
        folder: Of the cache, on a local disk.
        limit_bytes: Largest size of all its files.
    """

    def __init__(
        self,
        folder: Path,
        limit_bytes: int,
        *,
        longest_wait_s: float = 600.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Prepare; nothing is made on the disk yet.

        Args:
            folder: Made when it is needed.
            limit_bytes: Largest size.
            longest_wait_s: How long to wait for room while others use all of it, seconds.
            sleep: Takes seconds.
        """
        self.folder, self.limit_bytes = folder, limit_bytes
        self._longest_wait_s, self._sleep = longest_wait_s, sleep

    def open(self, storage: Storage, info: FileInfo) -> OpenFile:
        """A file, from the cache if it is there; it cannot be evicted while the result is held.

        Hold it for one read, not longer: what is held takes room from every other process.

        Args:
            storage: Where it comes from.
            info: Its name, hash and size, as the manifest has them.

        Raises:
            DataError: it cannot be had, is not the one of the manifest, or does not fit into the cache.
        """
        with self._reporting():
            while True:
                found = self._finished(info) or self._download(storage, info)
                if found is not None:
                    return found

    def recover(self, info: FileInfo) -> bool:
        """Compare a finished file with its hash and remove it if it has changed, so that it is fetched again.

        Returns:
            Whether it had changed, or was gone.
        """
        with self._reporting():
            found = self._finished(info)
            if found is None:
                return True
            with os.fdopen(os.dup(found.descriptor), "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == info.sha256:
                    return False
            self._remove(found.descriptor, info)
            return True

    def _finished(self, info: FileInfo) -> OpenFile | None:
        """The file with a shared lock; None if it is not there, or was damaged and is not there any more."""
        try:
            found = OpenFile(os.open(self.folder / info.sha256, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
        except FileNotFoundError:
            return None
        fcntl.flock(found.descriptor, fcntl.LOCK_SH)
        status = os.fstat(found.descriptor)
        if status.st_nlink == 0:
            return None
        if status.st_size != info.bytes:
            self._remove(found.descriptor, info)
            return None
        _mark_used(found.descriptor)
        return found

    def _remove(self, descriptor: int, info: FileInfo) -> None:
        """Remove a damaged file, unless another process has done so, and perhaps fetched it anew."""
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            (self.folder / info.sha256).unlink(missing_ok=True)

    def _download(self, storage: Storage, info: FileInfo) -> OpenFile | None:
        """Fetch a file, or wait until another process has; None if it must be looked for again."""
        if info.bytes > self.limit_bytes:
            raise DataError(
                f"{info.file!r} of {storage.address} has {info.bytes} bytes, more than the cache's limit of "
                f"{self.limit_bytes}; {_HINT}"
            )
        path = self.folder / f"{info.sha256}{_PARTIAL}"
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = OpenFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        fcntl.flock(partial.descriptor, fcntl.LOCK_EX)
        if not _is_named(path, partial.descriptor):
            return None
        try:
            if (self.folder / info.sha256).exists():
                return None
            self._wait_for_room(info, partial.descriptor)
            self._fill(storage, info, partial.descriptor)
            self._publish(path, info, partial.descriptor)
        finally:
            if _is_named(path, partial.descriptor):
                path.unlink()
        return partial

    def _wait_for_room(self, info: FileInfo, partial: int) -> None:
        """Give the partial file its full length as soon as that fits under the limit."""
        waited_s, pause_s = 0.0, 0.05
        while (in_use := self._make_room(info, partial)) is not None:
            if waited_s >= self._longest_wait_s:
                raise DataError(
                    f"the cache {self.folder} has no room for the {info.bytes} bytes of {info.file!r}: {in_use} bytes "
                    f"are in use by other readers and downloads, the limit is {self.limit_bytes}; {_HINT}"
                )
            self._sleep(pause_s)
            waited_s, pause_s = waited_s + pause_s, min(2 * pause_s, 2.0)

    def _make_room(self, info: FileInfo, partial: int) -> int | None:
        """One try; the bytes that cannot be evicted if it has failed."""
        with self._exclusive():
            os.ftruncate(partial, 0)
            entries = list(self._entries())
            used = sum(entry.bytes for entry in entries)
            for entry in entries:
                if used + info.bytes <= self.limit_bytes and not entry.is_partial:
                    break
                if self._evict(entry):
                    used -= entry.bytes
            if used + info.bytes > self.limit_bytes:
                return used
            os.ftruncate(partial, info.bytes)
        return None

    def _fill(self, storage: Storage, info: FileInfo, partial: int) -> None:
        actual = ""
        # Twice: bytes that a network has changed are rare, and a wrong shard is one every time.
        for _ in range(2):
            with os.fdopen(os.dup(partial), "r+b") as file:
                file.seek(0)
                actual = storage.fetch(info.file, file, info.bytes)
                file.flush()
                os.fsync(file.fileno())
            if actual == info.sha256:
                return
        raise DataError(
            f"{info.file!r} of {storage.address} has sha256 {actual}, the manifest says {info.sha256}; "
            "restore it or prepare the dataset again"
        )

    def _publish(self, path: Path, info: FileInfo, partial: int) -> None:
        with self._exclusive():
            os.fchmod(partial, 0o400)
            _mark_used(partial)
            path.rename(self.folder / info.sha256)
            sync_folder(self.folder)
            # Still alone with the evictors: between the two locks nobody takes the file away.
            fcntl.flock(partial, fcntl.LOCK_SH)

    def _entries(self) -> Iterator[_Entry]:
        """Downloads first, then finished files, least recently used ones first."""
        found = []
        for path in self.folder.iterdir():
            if path.name == _LOCK or path.is_dir():
                continue
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append(_Entry(path, status.st_size, status.st_mtime_ns, path.name.endswith(_PARTIAL)))
        yield from sorted(found, key=lambda entry: (not entry.is_partial, entry.used_ns))

    @staticmethod
    def _evict(entry: _Entry) -> bool:
        """Remove a file that nobody reads or downloads; whether it is gone."""
        try:
            handle = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            entry.path.unlink(missing_ok=True)
        except BlockingIOError:
            return False
        finally:
            _unlock_and_close(handle)
        return True

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        handle = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            _unlock_and_close(handle)

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"the cache {self.folder} cannot be used: {error}; set SEGFLEET_CACHE_DIR") from error


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    bytes: int
    used_ns: int
    is_partial: bool


def _mark_used(descriptor: int) -> None:
    # The order of eviction is that of these times; the system's own are a few milliseconds coarse.
    now = time.time_ns()
    os.utime(descriptor, ns=(now, now))


def _unlock_and_close(descriptor: int) -> None:
    # Closing alone would leave the lock to a process that was forked meanwhile.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _is_named(path: Path, descriptor: int) -> bool:
    """Whether the path is the name of an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
