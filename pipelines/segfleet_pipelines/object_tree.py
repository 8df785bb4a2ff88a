"""All that lies below an address in an object store, at any depth: what is there, and how it goes away."""

from __future__ import annotations

from segfleet.data_settings import DataSettings
from segfleet.errors import DataError
from segfleet.settings import data_settings
from segfleet_pipelines.location import parse_location
from segfleet_pipelines.object_store import ObjectFiles
from segfleet_pipelines.retrying import Retry


class ObjectTree:
    """The objects below an s3:// or gs:// address, asked for again when the way to them fails.

    Args:
        address: The place.
        settings: Instead of the environment's.
        retry: How often to ask again.

    Raises:
        DataError: no such address.
    """

    def __init__(self, address: str, settings: DataSettings | None = None, retry: Retry | None = None) -> None:
        location = parse_location(address)
        if location.scheme not in ("s3", "gs"):
            raise DataError(f"{address!r} is not in an object store; write for instance s3://BUCKET/FOLDER")
        self.address = str(location)
        self._files = ObjectFiles(location, (settings or data_settings()).s3)
        self._retry = retry or Retry()

    def names(self) -> list[str]:
        """Names of all objects, relative to the address, sorted; empty if there are none.

        Raises:
            DataError: the store refuses, or stayed away.
        """
        return self._retry.run(self._files.names_below, lambda *last: self._given_up("listed", *last))

    def delete(self, name: str) -> None:
        """Delete an object; one that is not there is deleted.

        Raises:
            DataError: the store refuses, or stayed away.
        """
        self._retry.run(lambda: self._files.delete(name), lambda *last: self._given_up(f"rid of {name!r}", *last))

    def _given_up(self, what: str, reason: str, attempts: int) -> DataError:
        return DataError(f"{self.address} cannot be {what}: {reason} ({attempts} attempts); check the storage")
