"""Where the files of a raw dataset lie: in a folder, or in a zip file that is read where it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from segfleet.errors import DataError
from segfleet_pipelines.datasets.base import listed
from segfleet_pipelines.datasets.sources import FileSource, Source, ZipSource, zip_members


@dataclass(frozen=True, slots=True)
class Place:
    """A folder or a zip file.

    Attributes:
        path: Of the folder or of the zip file.
        inside: Folder in the zip file that stands for the folder; ends with a slash, or is empty.
    """

    path: Path
    inside: str = ""

    def find(self, pattern: str) -> dict[str, Source]:
        """Files by their name below this place, sorted.

        Args:
            pattern: With `*` inside of a folder's or file's name, as in `images/*/*.jpg`.

        Raises:
            DataError: not a whole zip file.
        """
        if self.path.is_dir():
            paths = sorted(path for path in self.path.glob(pattern) if not path.name.startswith("."))
            return {path.relative_to(self.path).as_posix(): FileSource(path) for path in paths}
        parts = (self.inside + pattern).split("/")
        names = sorted(name for name in zip_members(self.path) if _matches(name.split("/"), parts))
        return {name.removeprefix(self.inside): ZipSource(self.path, name) for name in names}


def find(places: Iterable[Place], pattern: str) -> dict[str, Source]:
    """Files of several places by name, sorted; of two with equal names the first place's."""
    found: dict[str, Source] = {}
    for place in places:
        found = {**place.find(pattern), **found}
    return dict(sorted(found.items()))


def by_stem(found: Mapping[str, Source], ending: str) -> dict[str, Source]:
    """Files by their names without folders and `ending`.

    Raises:
        DataError: two files would be one.
    """
    stems: dict[str, Source] = {}
    doubles = []
    for name, source in found.items():
        stem = PurePosixPath(name).name.removesuffix(ending)
        if stem in stems:
            doubles.append(f"{source}: same name as {stems[stem]}")
        stems[stem] = source
    if doubles:
        raise listed("files must differ in their names; rename them", doubles)
    return stems


def find_root(raw: Path, candidates: Iterable[str], marker: str) -> Path:
    """The first of `raw` and its candidates that holds `marker`.

    Args:
        raw: What the user gave.
        candidates: Folders below it.
        marker: File or folder that only the right one has.

    Raises:
        DataError: none does.
    """
    for folder in (raw, *(raw / name for name in candidates)):
        if (folder / marker).exists():
            return folder
    below = " or ".join(candidates)
    raise DataError(f"{raw} holds no {marker}, nor does {below} in it; give the folder that has it")


def _matches(name: list[str], pattern: list[str]) -> bool:
    return len(name) == len(pattern) and all(map(fnmatchcase, name, pattern)) and not name[-1].startswith(".")
