"""The last act of making a dataset: index and manifest out of the records of its finished shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from segfleet.errors import DataError
from segfleet_pipelines.datasets.base import RawDataset
from segfleet_pipelines.manifest import INDEX_NAME, Images, Manifest, SplitInfo
from segfleet_pipelines.shard_rows import ShardRows, save_table
from segfleet_pipelines.staging import Staging


class Recorded(Protocol):
    """A unit of work that has left a record of its shard."""

    @property
    def rows_path(self) -> Path:
        """The record."""
        ...


def seal(
    dataset: RawDataset, planned: Mapping[str, Sequence[Recorded]], staging: Staging, images: Images = "keep"
) -> Manifest:
    """Write index and manifest of finished shards into the staging folder.

    Args:
        dataset: Name and classes.
        planned: The shards of each split, in order.
        staging: Holds the records.
        images: See `Manifest`.

    Raises:
        DataError: a record is gone.
        OSError: the disk is full or gone.
    """
    splits: dict[str, SplitInfo] = {}
    tables = []
    for split, tasks in planned.items():
        records = [_record(task.rows_path) for task in tasks]
        shards = tuple(record.info for record in records)
        splits[split] = SplitInfo(sum(shard.num_samples for shard in shards), shards)
        tables += [record.table for record in records]
    index = save_table(pa.concat_tables(tables), staging.dataset / INDEX_NAME)
    # A folder's name may hold bytes that are no text, and a manifest may not.
    name = dataset.name.encode("utf-8", "replace").decode()
    manifest = Manifest(name, dataset.class_names, dataset.palette, dataset.ignore_index, splits, index, images)
    manifest.save(staging.dataset)
    return manifest


def _record(path: Path) -> ShardRows:
    record = ShardRows.load(path)
    if record is None:
        raise DataError(f"{path} is missing or damaged; prepare again")
    return record
