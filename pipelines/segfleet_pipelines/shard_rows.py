"""The record of a finished shard, beside the dataset in the making: its rows, its hash, and what it was made from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from segfleet.errors import DataError
from segfleet_pipelines.check import LabelRules
from segfleet_pipelines.datasets.base import RawSample
from segfleet_pipelines.datasets.sources import Source
from segfleet_pipelines.manifest import FORMAT_VERSION, FileInfo, ShardInfo
from segfleet_pipelines.reader import INDEX_SCHEMA

_METADATA = b"segfleet.shard"
_SHARD_INFO = TypeAdapter(ShardInfo)


@dataclass(frozen=True, slots=True)
class ShardRows:
    """The record of one finished shard.

    Attributes:
        info: The shard as the manifest lists it.
        fingerprint: Of everything that the shard was made from.
        table: Its rows of samples.parquet.
    """

    info: ShardInfo
    fingerprint: str
    table: Any

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]], info: ShardInfo, fingerprint: str) -> ShardRows:
        """A record from rows as plain values."""
        return cls(info, fingerprint, pa.Table.from_pylist(list(rows), schema=INDEX_SCHEMA))

    @classmethod
    def load(cls, path: Path) -> ShardRows | None:
        """Read a record; None if there is none, or not a whole one."""
        try:
            table = pq.read_table(path, page_checksum_verification=True)
            recorded = json.loads(table.schema.metadata[_METADATA])
            info = _SHARD_INFO.validate_json(json.dumps(recorded["info"]))
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
            return None
        plain = table.replace_schema_metadata(None)
        return cls(info, recorded["fingerprint"], plain) if plain.schema.equals(INDEX_SCHEMA) else None

    def vouches_for(self, path: Path, fingerprint: str) -> bool:
        """Whether a shard was made from the same and has not changed since; reads it to its end."""
        if self.fingerprint != fingerprint:
            return False
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.info.sha256
        except OSError:
            return False

    def save(self, path: Path) -> None:
        """Write the record, durably and in one step."""
        recorded = {"fingerprint": self.fingerprint, "info": asdict(self.info)}
        table = self.table.replace_schema_metadata({_METADATA: json.dumps(recorded)})
        with unfinished(path) as part:
            save_table(table, part)
            part.replace(path)


def fingerprint(samples: Sequence[RawSample], rules: LabelRules, *made_from: str) -> str:
    """SHA-256, hex, of what decides a shard: code, label rules, and every raw file's name, size and time.

    Args:
        samples: In their order.
        rules: What the raw labels become.
        made_from: What else decides it.
    """
    document = {
        "code": [FORMAT_VERSION, version("segfleet"), PIL.__version__, pa.__version__],
        "made_from": made_from,
        "labels": [rules.table.tolist(), rules.num_classes],
        "samples": [(sample.key, _stamp(sample.image), _stamp(sample.mask)) for sample in samples],
    }
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()


def _stamp(source: Source) -> str:
    try:
        return f"{source} {source.stamp()}"
    except DataError as error:
        # Nothing to compare with. Reading the file will fail too, so that no shard ever keeps this.
        return str(error)


def save_table(table: Any, path: Path) -> FileInfo:
    """Write a parquet file whose bytes depend on its rows alone, durably."""
    # One chunk a column: how many parts the table came in would show in the pages.
    pq.write_table(table.combine_chunks(), path, compression="zstd", write_page_checksum=True)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return FileInfo(path.name, sha256, path.stat().st_size)


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to and rename; whatever still has it at the end is removed."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.unlink(missing_ok=True)
        yield part
    finally:
        part.unlink(missing_ok=True)
