"""manifest.json: what a prepared dataset holds, with a hash for every byte of it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from segfleet.errors import DataError, FileMissingError
from segfleet_pipelines.storage import open_storage

FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"
INDEX_NAME = "samples.parquet"
MAX_CLASSES = 255
SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.tar")

_CLOSED = ConfigDict(extra="forbid", strict=True)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Byte = Annotated[int, Field(ge=0, le=255)]
Color = tuple[Byte, Byte, Byte]
Images = Literal["keep", "jpeg95"]


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
        images: `keep`: pictures as they were; `jpeg95`: PNG pictures have become JPEG of quality 95, 4:4:4.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    name: str
    class_names: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_CLASSES)]
    palette: tuple[Color, ...]
    ignore_index: Byte
    splits: Annotated[dict[str, SplitInfo], Field(min_length=1)]
    index: FileInfo
    images: Images = "keep"

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
        return _hash(content)

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
            location: The dataset's folder (see `parse_location`).

        Raises:
            DataError: no dataset there, a manifest of another format version, or a damaged one.
        """
        storage = open_storage(location)
        try:
            data = storage.read(MANIFEST_NAME)
        except FileMissingError as error:
            is_gone = storage.folder is not None and not storage.folder.is_dir()
            hint = "the folder does not exist" if is_gone else "run 'segfleet prepare' to make one"
            raise DataError(
                f"no prepared dataset in {storage.address!r}: {MANIFEST_NAME} is missing; {hint}"
            ) from error
        return cls.parse(data, f"{storage.address}/{MANIFEST_NAME}")

    @classmethod
    def parse(cls, data: bytes, where: str) -> Manifest:
        """The manifest that `encode` gave these bytes; not one byte may differ.

        Args:
            data: A whole manifest.json.
            where: Its path or address, for errors.

        Raises:
            DataError: another format version, or damaged.
        """
        try:
            manifest = _from_document(json.loads(data), where)
        except (ValueError, RecursionError) as error:
            raise _damaged(where, f"not readable as JSON ({error})") from error
        if data != manifest.encode():
            raise _damaged(where, "its bytes are not those that were written")
        return manifest

    def encode(self) -> bytes:
        """manifest.json, byte for byte; `digest` is the SHA-256 of everything else in it."""
        document = {"format_version": FORMAT_VERSION, "content_id": self.content_id, **asdict(self)}
        sealed = {**document, "digest": _hash(document)}
        return json.dumps(sealed, indent=2, ensure_ascii=False).encode() + b"\n"

    def save(self, folder: Path) -> None:
        """Write manifest.json into `folder`, durably."""
        with (folder / MANIFEST_NAME).open("xb") as file:
            file.write(self.encode())
            file.flush()
            os.fsync(file.fileno())


def _from_document(document: Any, where: str) -> Manifest:
    if not isinstance(document, dict):
        raise _damaged(where, "not a JSON object")
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise DataError(
            f"{where} has format version {version!r}, this program reads {FORMAT_VERSION}; prepare the dataset again"
        )
    recorded = {name: document.get(name) for name in ("digest", "content_id")}
    fields = {name: value for name, value in document.items() if name not in (*recorded, "format_version")}
    try:
        manifest = _MANIFEST.validate_json(json.dumps(fields))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _damaged(where, f"{place}: {first['msg']}") from error
    if wrong := _contradiction(manifest):
        raise _damaged(where, wrong)
    if recorded["content_id"] != manifest.content_id:
        raise _damaged(where, f"content id is {recorded['content_id']!r}, the content gives {manifest.content_id!r}")
    digest = _hash({name: value for name, value in document.items() if name != "digest"})
    if recorded["digest"] != digest:
        raise _damaged(where, f"digest is {recorded['digest']!r}, the fields give {digest!r}")
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
    if unsafe := [name for name in names if not SHARD_NAME.fullmatch(name)]:
        return f"{unsafe[0]!r} is not a shard's name"
    if len(set(names)) < len(names):
        return "a shard is listed twice"
    for name, split in manifest.splits.items():
        total = sum(shard.num_samples for shard in split.shards)
        if total != split.num_samples:
            return f"split {name!r} has {split.num_samples} samples, its shards {total}"
    return ""


def _hash(document: dict[str, Any]) -> str:
    """SHA-256, hex, of the canonical JSON: sorted keys, no spaces, ASCII."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _damaged(where: str, what: str) -> DataError:
    return DataError(f"{where} is damaged: {what}; restore it or prepare the dataset again")


_MANIFEST = TypeAdapter(Manifest)
