"""Open files of a dataset for reading at any place: where they lie, or out of the cache."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Protocol

from segfleet.errors import DataError
from segfleet.settings import data_settings
from segfleet_pipelines.cache import OpenFile, ShardCache
from segfleet_pipelines.manifest import FileInfo
from segfleet_pipelines.storage import Storage

_MOST_OPEN = 64


class ShardFiles(Protocol):
    """The files of a dataset on this machine's disks; safe for threads, forks and pickling."""

    def open(self, info: FileInfo) -> OpenFile:
        """A file for `os.pread`; hold the result for one read.

        Raises:
            DataError: it cannot be had.
        """
        ...

    def recover(self, info: FileInfo) -> bool:
        """Look for damage done to the copy on this machine; whether another try may read sound bytes."""
        ...

    def close(self) -> None:
        """Close what is kept open."""
        ...


def open_shard_files(storage: Storage, cache: ShardCache | None = None) -> ShardFiles:
    """The files of a dataset's folder.

    Args:
        storage: The folder.
        cache: For files from elsewhere, instead of the environment's.
    """
    if storage.folder is not None:
        return LocalShards(storage.folder)
    if cache is None:
        settings = data_settings()
        cache = ShardCache(settings.cache_folder, settings.cache_limit_bytes)
    return CachedShards(storage, cache)


class LocalShards:
    """Files where they lie; those used last stay open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, OpenFile] = {}

    def open(self, info: FileInfo) -> OpenFile:
        """See `ShardFiles`."""
        found = self._open.pop(info.file, None) or self._opened(info.file)
        # Last in the dictionary is used last. Whoever still reads from the one that drops out holds it open.
        self._open[info.file] = found
        if len(self._open) > _MOST_OPEN:
            self._open.pop(next(iter(self._open)), None)
        return found

    def recover(self, info: FileInfo) -> bool:  # noqa: ARG002 - there is no copy
        """See `ShardFiles`; the dataset itself is never touched."""
        return False

    def close(self) -> None:
        """See `ShardFiles`."""
        self._open.clear()

    def __getstate__(self) -> tuple[None, dict[str, object]]:
        return None, {"_folder": self._folder, "_open": {}}

    def _opened(self, name: str) -> OpenFile:
        try:
            # Not waiting for somebody to write, if it is a pipe.
            file = OpenFile(os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
        except OSError as error:
            raise DataError(f"{name!r} of {self._folder} cannot be opened: {error.strerror}; restore it") from error
        if not stat.S_ISREG(os.fstat(file.descriptor).st_mode):
            raise DataError(f"{name!r} of {self._folder} is not a file; restore it")
        return file


class CachedShards:
    """Files out of the cache. None stays open: an idle process would keep room from all the others."""

    def __init__(self, storage: Storage, cache: ShardCache) -> None:
        self._storage, self._cache = storage, cache

    def open(self, info: FileInfo) -> OpenFile:
        """See `ShardFiles`; downloads what is not there."""
        return self._cache.open(self._storage, info)

    def recover(self, info: FileInfo) -> bool:
        """See `ShardFiles`; a changed copy is removed, to be fetched anew."""
        return self._cache.recover(info)

    def close(self) -> None:
        """See `ShardFiles`."""
