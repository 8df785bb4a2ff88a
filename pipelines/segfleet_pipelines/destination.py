"""Where a complete dataset goes: to a folder of this machine, by one rename, or to an object store, by upload."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from segfleet.errors import DataError
from segfleet.settings import data_settings
from segfleet_pipelines.datasets.base import listed
from segfleet_pipelines.location import parse_location
from segfleet_pipelines.manifest import MANIFEST_NAME, FileInfo, Manifest
from segfleet_pipelines.pool import Progress
from segfleet_pipelines.staging import Staging, publish, refuse_occupied, staging_beside
from segfleet_pipelines.storage import Storage, open_storage

_UPLOADS = 4  # at a time


class Destination(Protocol):
    """Where a dataset goes. Its text names it for people."""

    @property
    def is_remote(self) -> bool:
        """Whether publishing takes its time."""
        ...

    @property
    def staging(self) -> Path:
        """The folder to make it in; always the same one for the same place."""
        ...

    def refuse_occupied(self) -> None:
        """Make sure that nothing would be overwritten.

        Raises:
            DataError: there is something.
        """
        ...

    def publish(self, staging: Staging, manifest: Manifest, report: Progress) -> None:
        """Bring a complete dataset to its place; the manifest appears last.

        Raises:
            DataError: the place was taken meanwhile, or cannot be written.
        """
        ...


def open_destination(location: str) -> Destination:
    """The place that a location names.

    Raises:
        DataError: no location.
    """
    folder = parse_location(location).folder
    return FolderDestination(folder) if folder is not None else RemoteDestination(open_storage(location))


@dataclass(frozen=True, slots=True)
class FolderDestination:
    """A folder of this machine."""

    folder: Path

    @property
    def is_remote(self) -> bool:
        """See `Destination`."""
        return False

    @property
    def staging(self) -> Path:
        """See `Destination`."""
        return staging_beside(self.folder)

    def refuse_occupied(self) -> None:
        """See `Destination`."""
        refuse_occupied(self.folder)

    def publish(self, staging: Staging, manifest: Manifest, report: Progress) -> None:  # noqa: ARG002 - one rename
        """See `Destination`."""
        publish(staging.dataset, self.folder)

    def __str__(self) -> str:
        return str(self.folder)


@dataclass(frozen=True, slots=True)
class RemoteDestination:
    """A folder of an object store."""

    storage: Storage

    @property
    def is_remote(self) -> bool:
        """See `Destination`."""
        return True

    @property
    def staging(self) -> Path:
        """See `Destination`."""
        name = hashlib.sha256(self.storage.address.encode()).hexdigest()[:16]
        return staging_beside(data_settings().cache_folder / "staging" / name)

    def refuse_occupied(self) -> None:
        """See `Destination`. Files of an interrupted upload do not count."""
        names = self.storage.names()
        if MANIFEST_NAME in names:
            raise DataError(f"{self} holds a prepared dataset already; choose another place or remove it first")
        self._refuse_others(names, self._log().names)

    def publish(self, staging: Staging, manifest: Manifest, report: Progress) -> None:
        """See `Destination`. Files that an interrupted upload has brought there are not sent again."""
        files = _files(manifest)
        log = self._log()
        self._refuse_others(self.storage.names(), log.names & {info.file for info, _ in files})
        missing = [(info, samples) for info, samples in files if not log.holds(info, self.storage)]
        log.begin(info for info, _ in missing)
        total = sum(samples for _, samples in files)
        done = total - sum(samples for _, samples in missing)

        def send(info: FileInfo) -> None:
            self.storage.upload(staging.dataset / info.file, info.file)
            # Noted where it was sent: the failure of another file may be heard of first.
            log.add(info)

        with ThreadPoolExecutor(_UPLOADS) as pool:
            sending = {pool.submit(send, info): samples for info, samples in missing}
            try:
                for future in as_completed(sending):
                    future.result()
                    done += sending[future]
                    report(done, total)
            finally:
                pool.shutdown(cancel_futures=True)
        self.refuse_occupied()
        self.storage.upload(staging.dataset / MANIFEST_NAME, MANIFEST_NAME)
        staging.dataset.rename(staging.root / "sent")

    def _log(self) -> _UploadLog:
        return _UploadLog(self.staging / "uploaded.json")

    def _refuse_others(self, names: Sequence[str], own: Set[str]) -> None:
        """What lies there is neither written over nor made a part of the dataset."""
        if others := [name for name in names if name not in own]:
            raise listed(f"{self} holds other files; choose another place or remove them first", others)

    def __str__(self) -> str:
        return self.storage.address


def _files(manifest: Manifest) -> list[tuple[FileInfo, int]]:
    """Every file but the manifest, with its number of samples."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    return [*((shard, shard.num_samples) for shard in shards), (manifest.index, 0)]


class _UploadLog:
    """Which content was sent under which name; sizes alone would not tell two versions of a shard apart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._sent: dict[str, str] = {}
        with suppress(OSError, ValueError, TypeError):
            self._sent = dict(json.loads(path.read_text()))

    @property
    def names(self) -> Set[str]:
        """Files that were sent, or begun."""
        return self._sent.keys()

    def begin(self, files: Iterable[FileInfo]) -> None:
        """The files may be there from now on, old, new or in part."""
        for info in files:
            self._sent[info.file] = ""
        self._save()

    def holds(self, info: FileInfo, storage: Storage) -> bool:
        """Whether the file was sent as it is, and is still there."""
        if self._sent.get(info.file) != info.sha256:
            return False
        with suppress(DataError):
            return storage.size(info.file) == info.bytes
        return False

    def add(self, info: FileInfo) -> None:
        """A file is there. Any thread may say so."""
        with self._lock:
            self._sent[info.file] = info.sha256
            self._save()

    def _save(self) -> None:
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self._sent))
        part.replace(self._path)
