"""Memory of the loader over long trainings and long indexes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segfleet.spec.sections import AugmentSpec, DataSpec, LoopSpec
from segfleet_pipelines.batch import Batch
from segfleet_pipelines.loader import train_loader
from segfleet_pipelines.manifest import Manifest, SplitInfo
from segfleet_pipelines.reader import INDEX_SCHEMA, read_table
from training import make_dataset

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

MIB = 1024 * 1024
LONG = 400_000


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """40 training samples."""
    return make_dataset(tmp_path_factory.mktemp("boxes"), num_samples=45)


@pytest.fixture(scope="module")
def long_index(shards: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same shard under an index of 400,000 rows, all of its first sample."""
    folder = tmp_path_factory.mktemp("long")
    manifest = Manifest.load(shards)
    shard = manifest.split("train").shards[0]
    row = read_table(shards, manifest).slice(0, 1).to_pylist()[0]
    columns: dict[str, Any] = {
        name: pa.repeat(pa.scalar(row[name], INDEX_SCHEMA.field(name).type), LONG) for name in row
    }
    columns["key"] = pa.array(np.char.mod("sample-%08d", np.arange(LONG)))
    pq.write_table(pa.table(columns, schema=INDEX_SCHEMA), folder / "samples.parquet")
    data = (folder / "samples.parquet").read_bytes()
    (folder / shard.file).hardlink_to(Path(shards) / shard.file)
    split = SplitInfo(LONG, (replace(shard, num_samples=LONG),))
    index = replace(manifest.index, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    replace(manifest, splits={"train": split}, index=index).save(folder)
    return str(folder)


def running(location: str, steps: int, processes: int) -> Iterator[Batch]:
    loop = LoopSpec(steps=steps, global_batch=4, crop=32, loader_processes=processes)
    return iter(train_loader(DataSpec(shards=location), AugmentSpec(), loop))


def used_mib() -> float:
    """Memory of this process, and what its loader processes do not share with it."""
    own = psutil.Process()
    return (own.memory_info().rss + sum(child.memory_full_info().uss for child in own.children())) / MIB


@pytest.mark.parametrize("processes", [0, 2])
def test_memory_does_not_grow_over_fifty_epochs(shards: str, processes: int) -> None:
    # Some steps more, or the loader's processes would be done before they are asked.
    batches = running(shards, 530, processes)
    used = {}
    for batch in batches:
        if batch.step in (49, 499):
            used[batch.step] = used_mib()
    assert used[499] - used[49] < 6, used


def test_loader_processes_share_the_index(shards: str, long_index: str) -> None:
    used = {}
    for location in (shards, long_index):
        batches = running(location, 400, 2)
        for batch in batches:
            if batch.step == 390:
                children = psutil.Process().children()
                used[location] = max(child.memory_full_info().uss for child in children) / MIB
        del batches
    # Keys, places and sizes take some 80 bytes a sample, 30 MiB; an epoch's order 4, and 16 more while it is drawn.
    assert used[long_index] - used[shards] < 14, used
