"""Files of a dataset's folder, wherever it lies: the one door to disks, object stores and web servers.

A file appears under its name complete or not at all, whichever the storage.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Protocol

from segfleet.data_settings import DataSettings
from segfleet.settings import data_settings
from segfleet_pipelines.local_files import LocalStorage
from segfleet_pipelines.location import parse_location
from segfleet_pipelines.object_store import ObjectFiles
from segfleet_pipelines.remote import RemoteStorage
from segfleet_pipelines.retrying import Retry
from segfleet_pipelines.web import WebFiles


class Storage(Protocol):
    """The files of one folder. Every error is a DataError that names file and address."""

    @property
    def address(self) -> str:
        """The folder, for people."""
        ...

    @property
    def folder(self) -> Path | None:
        """The folder on this machine; None if it is elsewhere."""
        ...

    def read(self, name: str) -> bytes:
        """The bytes of a small file.

        Raises:
            FileMissingError: there is none of that name.
        """
        ...

    def size(self, name: str) -> int:
        """Bytes in a file.

        Raises:
            FileMissingError: there is none of that name.
        """
        ...

    def fetch(self, name: str, file: IO[bytes], size: int | None = None) -> str:
        """Copy a file's bytes into an open one, from its beginning.

        Args:
            name: The file.
            file: Open for writing; is cut to the bytes copied.
            size: What must be in it, bytes; a longer one is not copied to its end.

        Returns:
            SHA-256, hex, of the bytes copied.

        Raises:
            FileMissingError: there is none of that name.
        """
        ...

    def download(self, name: str, target: Path) -> None:
        """Copy a file to `target`, durably.

        Raises:
            FileMissingError: there is none of that name.
        """
        ...

    def upload(self, source: Path, name: str) -> None:
        """Copy a file of this machine into the folder, over what has that name."""
        ...

    def names(self) -> list[str]:
        """Names of the files in the folder, sorted; empty if there is no such folder."""
        ...


def open_storage(
    location: str | Path,
    *,
    settings: DataSettings | None = None,
    retry: Retry = Retry(),  # noqa: B008 - frozen
) -> Storage:
    """The files at a location; nothing is read yet.

    Args:
        location: See `parse_location`.
        settings: Instead of the environment's.
        retry: How often to ask a server again.

    Raises:
        DataError: no location.
        SettingsError: the environment's settings are malformed.
    """
    found = parse_location(location)
    if found.folder is not None:
        return LocalStorage(found.folder)
    settings = settings or data_settings()
    if found.scheme in ("http", "https"):
        return RemoteStorage(str(found), WebFiles(found, settings.data_hosts), retry)
    return RemoteStorage(str(found), ObjectFiles(found, settings.s3), retry)
