"""Datasets in a real S3 server on the loopback interface: read, cached by many processes, prepared, trained on."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s3_server import BUCKET, KEYS, digest_dataset, s3_server
from segfleet.errors import DataError, FileMissingError
from segfleet.spec.kinds import PrepareSpec
from segfleet.spec.resolve import resolve_spec
from segfleet_pipelines.manifest import Manifest
from segfleet_pipelines.storage import Storage, open_storage
from segfleet_pipelines.verify import verify
from segfleet_pipelines.writer import prepare
from toy_shards import write_toy_dataset
from training import RecordingLink, make_dataset, make_train_spec, run_alone

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with s3_server() as environment:
        yield environment


@pytest.fixture
def cache(server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SEGFLEET_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def upload(folder: Path, name: str) -> str:
    """Put a prepared dataset into the bucket; its address."""
    address = f"s3://{BUCKET}/{name}"
    storage = open_storage(address)
    for path in sorted(folder.iterdir()):
        storage.upload(path, path.name)
    return address


@pytest.mark.usefixtures("cache")
def test_files_come_back_as_they_went(tmp_path: Path) -> None:
    storage: Storage = open_storage(f"s3://{BUCKET}/plain/files")
    assert storage.names() == []
    data = os.urandom(20 * 1024 * 1024)
    (tmp_path / "a").write_bytes(data)
    (tmp_path / "b").write_bytes(b"")
    storage.upload(tmp_path / "a", "a.tar")
    storage.upload(tmp_path / "b", "b.tar")
    assert storage.names() == ["a.tar", "b.tar"]
    assert open_storage(f"s3://{BUCKET}/plain").names() == []
    assert (storage.size("a.tar"), storage.size("b.tar")) == (len(data), 0)
    assert storage.read("a.tar") == data
    assert storage.read("b.tar") == b""
    storage.download("a.tar", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == data
    with pytest.raises(FileMissingError, match=f"s3://{BUCKET}/plain/files has no file 'none'"):
        storage.read("none")
    with pytest.raises(FileMissingError, match="no-such-bucket"):
        open_storage("s3://no-such-bucket/x").read("none")
    with pytest.raises(DataError, match=f"no prepared dataset in 's3://{BUCKET}/plain': .*segfleet prepare"):
        Manifest.load(f"s3://{BUCKET}/plain")


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_processes_share_one_copy(cache: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy_dataset(tmp_path / "toy", num_shards=6, image_bytes=30_000)
    shard_bytes = max(path.stat().st_size for path in (tmp_path / "toy").glob("*.tar"))
    monkeypatch.setenv("SEGFLEET_CACHE_LIMIT", str(3 * shard_bytes))
    address = upload(tmp_path / "toy", f"toy-{method}")
    with multiprocessing.get_context(method).Pool(3) as pool:
        digests = set(pool.map(digest_dataset, [address] * 3, chunksize=1))
    assert digests == {digest_dataset(str(tmp_path / "toy"))}
    assert sum(path.stat().st_size for path in cache.iterdir()) <= 3 * shard_bytes


def test_a_job_that_streams_from_s3_is_the_one_that_reads_from_disk(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = make_dataset(tmp_path / "boxes")
    changes = ("train.loader_processes=2", "train.steps=4")
    here, there = RecordingLink(), RecordingLink()
    expected = run_alone(make_train_spec(shards, *changes), tmp_path / "here", here)
    spec = make_train_spec(upload(Path(shards), "boxes"), *changes)
    result = run_alone(spec, tmp_path / "there", there)
    assert there.curves.keys() == here.curves.keys()
    for step, values in here.curves.items():
        assert there.curves[step]["train/loss"] == values["train/loss"]
    assert result["miou"] == expected["miou"]
    manifest = Manifest.load(shards)
    hashes = {shard.sha256 for split in manifest.splits.values() for shard in split.shards}
    assert {path.name for path in cache.iterdir()} == hashes | {manifest.index.sha256, "lock"}
    told = "".join(path.read_text() for path in (tmp_path / "there").rglob("*.json"))
    assert BUCKET in told
    assert not any(key in told + json.dumps(there.curves) for key in KEYS.values())


def prepare_spec(raw: Path, out: str, **changes: Any) -> PrepareSpec:
    document = {"kind": "prepare", "name": "boxes", "dataset": "folder", "raw": str(raw), "out": out, "processes": 1}
    spec = resolve_spec(document | changes)
    assert isinstance(spec, PrepareSpec)
    return spec


@pytest.mark.usefixtures("cache")
def test_prepare_writes_to_s3_what_it_writes_to_disk(tmp_path: Path) -> None:
    local = make_dataset(tmp_path)
    address = f"s3://{BUCKET}/prepared"
    manifest = prepare(prepare_spec(tmp_path / "raw", address))
    assert Manifest.load(address) == manifest
    assert manifest.content_id == Manifest.load(local).content_id
    assert verify(address).problems == ()
    with pytest.raises(DataError, match="prepared dataset already"):
        prepare(prepare_spec(tmp_path / "raw", address))
