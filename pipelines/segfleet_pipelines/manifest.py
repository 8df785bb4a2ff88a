"""manifest.json: what a prepared dataset holds, with a hash for every byte of it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from segfleet.errors import DataError
from segfleet_pipelines.location import resolve_location

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
INDEX_NAME = "samples.parquet"
MAX_CLASSES = 255

_SHARD_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}-[0-9]{6}\.tar")
_CLOSED = ConfigDict(extra="forbid", strict=True)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Byte = Annotated[int, Field(ge=0, le=255)]
Color = tuple[Byte, Byte, Byte]


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file's name inside the dataset's folder, its hash and its size."""

    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    file: str
    sha256: Sha256
    bytes: Count


@dataclass(frozen=True, slots=True)
class ShardInfo(FileInfo):
    """One tar shard of a split."""

    num_samples: Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True)
class SplitInfo:
    """The shards of one split, in sample order."""

    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    num_samples: Annotated[int, Field(ge=1)]
    shards: tuple[ShardInfo, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The table of contents of a prepared dataset.

    Attributes:
        name: Name of the dataset, for people.
        class_names: K names; a label in a mask is an index into them.
        palette: K colours, RGB 0..255.
        ignore_index: Label of pixels that are neither trained on nor scored; K..255.
        splits: By name, never empty.
        index: samples.parquet.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    name: str
    class_names: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_CLASSES)]
    palette: tuple[Color, ...]
    ignore_index: Byte
    splits: Annotated[dict[str, SplitInfo], Field(min_length=1)]
    index: FileInfo

    @property
    def num_classes(self) -> int:
        """K, without the ignored label."""
        return len(self.class_names)

    @property
    def content_id(self) -> str:
        """SHA-256, hex: equal exactly for equal classes, palette, ignore index, splits and shards."""
        content = {
            "format_version": FORMAT_VERSION,
            "class_names": self.class_names,
            "palette": self.palette,
            "ignore_index": self.ignore_index,
            "splits": {name: asdict(split) for name, split in self.splits.items()},
        }
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def split(self, name: str) -> SplitInfo:
        """The split of that name.

        Raises:
            DataError: there is none.
        """
        if name not in self.splits:
            raise DataError(f"dataset {self.name!r} has no split {name!r}; it has {', '.join(sorted(self.splits))}")
        return self.splits[name]

    @classmethod
    def load(cls, location: str | Path) -> Manifest:
        """Read and check the manifest of a prepared dataset.

        Args:
            location: The dataset's folder: a path or file://.

        Raises:
            DataError: no dataset there, a manifest of another format version, or a damaged one.
        """
        path = resolve_location(location) / MANIFEST_NAME
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            hint = "run 'segfleet prepare' to make one" if path.parent.is_dir() else "the folder does not exist"
            raise DataError(
                f"no prepared dataset in {str(path.parent)!r}: {MANIFEST_NAME} is missing; {hint}"
            ) from error
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise _damaged(path, f"not readable as JSON ({error})") from error
        return _from_document(document, path)

    def save(self, folder: Path) -> None:
        """Write manifest.json into `folder`, durably."""
        document = {"format_version": FORMAT_VERSION, "content_id": self.content_id, **asdict(self)}
        with (folder / MANIFEST_NAME).open("x", encoding="utf-8") as file:
            json.dump(document, file, indent=2, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())


def _from_document(document: Any, path: Path) -> Manifest:
    if not isinstance(document, dict):
        raise _damaged(path, "not a JSON object")
    version = document.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {version!r}, this program reads {FORMAT_VERSION}; prepare the dataset again"
        )
    recorded = document.pop("content_id", None)
    try:
        manifest = _MANIFEST.validate_json(json.dumps(document))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _damaged(path, f"{place}: {first['msg']}") from error
    if wrong := _contradiction(manifest):
        raise _damaged(path, wrong)
    if recorded != manifest.content_id:
        raise _damaged(path, f"content id is {recorded!r}, the content gives {manifest.content_id!r}")
    return manifest


def _contradiction(manifest: Manifest) -> str:
    """What no single field can see; empty if all is well."""
    if len(manifest.palette) != manifest.num_classes:
        return f"{len(manifest.palette)} colours for {manifest.num_classes} classes"
    if manifest.ignore_index < manifest.num_classes:
        return f"ignore index {manifest.ignore_index} is also a class"
    if manifest.index.file != INDEX_NAME:
        return f"index.file is {manifest.index.file!r}, not {INDEX_NAME!r}"
    names = [shard.file for split in manifest.splits.values() for shard in split.shards]
    # A shard's name is joined to the folder's path: it must not lead out of it.
    if unsafe := next((name for name in names if not _SHARD_NAME.fullmatch(name)), None):
        return f"{unsafe!r} is not a shard's name"
    if len(set(names)) < len(names):
        return "a shard is listed twice"
    for name, split in manifest.splits.items():
        total = sum(shard.num_samples for shard in split.shards)
        if total != split.num_samples:
            return f"split {name!r} has {split.num_samples} samples, its shards {total}"
    return ""


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"{path} is damaged: {what}; restore it or prepare the dataset again")


_MANIFEST = TypeAdapter(Manifest)
