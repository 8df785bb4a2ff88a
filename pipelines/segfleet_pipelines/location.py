"""Where a dataset lives, as pipelines understand it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from segfleet.errors import DataError
from segfleet.spec.location import Location, split_location


def parse_location(location: str | Path) -> Location:
    """Take a location apart; a path becomes absolute.

    Args:
        location: A path, file://, s3://, gs://, http:// or https://. Anything else is refused, above all `pipe:`,
            which WebDataset would hand to a shell.

    Raises:
        DataError: no location, or one that holds more than a place (see `split_location`).
    """
    try:
        found = Location("file", "", str(location)) if isinstance(location, Path) else split_location(location)
        if found.folder is None:
            return found
        return replace(found, path=str(found.folder.expanduser().absolute()))
    except (ValueError, RuntimeError) as error:
        raise DataError(f"not a location: {error}") from None


def resolve_location(location: str | Path) -> Path:
    """The folder that a location names, as an absolute path, for what must be on this machine.

    Raises:
        DataError: no location, or one elsewhere.
    """
    found = parse_location(location)
    if found.folder is None:
        raise DataError(f"location {str(found)!r} is not on this machine; use a folder's path or file:///path here")
    return found.folder
