"""Training data out of an object store: the same batches, and the next window's shards in time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs
import pytest
import torch

from s3_server import BUCKET, KEYS, s3_server
from segfleet.errors import DataError
from segfleet.spec.sections import AugmentSpec, DataSpec, LoopSpec
from segfleet_pipelines.batch import Batch
from segfleet_pipelines.loader import train_loader
from segfleet_pipelines.manifest import Manifest
from segfleet_pipelines.storage import open_storage
from training import make_dataset

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

WINDOW = 2
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Eight shards of three training samples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segfleet_pipelines.writer.MAX_SHARD_SAMPLES", 3)
        yield Path(make_dataset(tmp_path_factory.mktemp("boxes"), num_samples=29))


@pytest.fixture
def cache(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the cache will be; it has room for two windows and a half, and for the index."""
    sizes = sorted(path.stat().st_size for path in shards.glob("train-*.tar"))
    limit = sum(sizes[-2 * WINDOW - 1 :]) + (shards / "samples.parquet").stat().st_size
    monkeypatch.setenv("SEGFLEET_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SEGFLEET_CACHE_LIMIT", str(limit))
    return tmp_path / "cache"


@pytest.fixture
def store(shards: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The dataset's address in an object store of its own."""
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        storage = open_storage(f"s3://{BUCKET}/boxes")
        for path in shards.iterdir():
            storage.upload(path, path.name)
        yield storage.address


def running(location: str | Path, processes: int = 0, window: int | None = WINDOW) -> Iterator[Batch]:
    loop = LoopSpec(steps=24, global_batch=3, crop=32, loader_processes=processes)
    return iter(train_loader(DataSpec(shards=str(location), shuffle_shards=window), AugmentSpec(), loop))


@pytest.mark.parametrize("processes", [0, 2])
def test_batches_from_a_store_are_those_from_the_disk(shards: Path, store: str, processes: int) -> None:
    for local, remote in zip(running(shards), running(store, processes), strict=True):
        assert local.keys == remote.keys
        assert torch.equal(local.images, remote.images)
        assert torch.equal(local.masks, remote.masks)
        assert torch.equal(local.extents, remote.extents)


def test_the_next_window_is_there_before_it_is_read(store: str, cache: Path) -> None:
    batches = running(store)
    next(batches)
    wanted = 2 * WINDOW + 1  # and the index
    deadline = time.monotonic() + PATIENCE_S
    while len([path for path in cache.iterdir() if len(path.name) == 64]) < wanted:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    batches.close()  # type: ignore[attr-defined]


def test_a_shard_that_the_store_has_lost_is_named(shards: Path, store: str) -> None:
    batches = running(store)
    next(batches)
    files = pafs.S3FileSystem(
        access_key=KEYS["AWS_ACCESS_KEY_ID"],
        secret_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        endpoint_override=os.environ["AWS_ENDPOINT_URL"],
    )
    for shard in Manifest.load(shards).split("train").shards:
        files.delete_file(f"{BUCKET}/boxes/{shard.file}")
    with pytest.raises(DataError, match=r"train-00000\d.tar"):
        list(batches)
