from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import pickle
import shutil
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from file_server import Behaviour, file_server
from segfleet.errors import DataError
from segfleet_pipelines import shard_files
from segfleet_pipelines.cache import ShardCache
from segfleet_pipelines.manifest import Manifest, ShardInfo
from segfleet_pipelines.reader import INDEX_SCHEMA, SampleIndex, read_table
from toy_shards import seal, write_toy_dataset


@pytest.fixture(scope="module")
def shared_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "data"
    write_toy_dataset(folder)
    return folder


@pytest.fixture
def toy(shared_toy: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shared_toy, tmp_path / "toy")


def expected_samples(folder: Path) -> list[tuple[str, bytes, bytes]]:
    """The samples by walking the tar files."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = [(info.name, tar.extractfile(info)) for info in tar]
            data = [(name.partition(".")[0], file.read()) for name, file in members if file is not None]
        found += [(key, image, mask) for (key, image), (_, mask) in zip(data[::2], data[1::2], strict=True)]
    return found


def test_samples_are_those_of_the_shards_in_any_order(shared_toy: Path) -> None:
    index = SampleIndex.load(shared_toy, "train")
    expected = expected_samples(shared_toy)
    assert len(index) == len(expected) == 12
    for i in (7, 0, 11, 3, 3):
        assert index.read_sample(i) == expected[i]
        assert index.members(i) == ("image.jpg", "mask.npy.zst")
        assert index.shard_of(i) == f"train-{i // 4:06d}.tar"
    assert index.shard_counts.tolist() == [4, 4, 4]
    assert index.sizes.tolist() == [[20, 30]] * 12


def test_keys_are_a_sequence(shared_toy: Path) -> None:
    keys = SampleIndex.load(shared_toy, "train").keys
    expected = [f"s{i:04d}" for i in range(12)]
    assert list(keys) == expected
    assert (keys[0], keys[-1], keys[np.int64(3)], keys[2:4]) == ("s0000", "s0011", "s0003", ["s0002", "s0003"])
    assert (len(keys), keys.index("s0005"), "s0099" in keys) == (12, 5, False)
    for i in (12, -13):
        with pytest.raises(IndexError):
            keys[i]


def test_class_counts_are_read_when_asked_for(toy: Path) -> None:
    index = SampleIndex.load(toy, "train")
    assert "class_pixels" not in vars(index)
    assert index.class_pixels.tolist() == [[i, i + 1, i + 2] for i in range(12)]
    assert index.class_pixels is index.class_pixels
    late = SampleIndex.load(toy, "train")
    (toy / "samples.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"'samples\.parquet' of .* is damaged: sha256"):
        _ = late.class_pixels


def test_an_index_travels_and_opens_its_own_files(shared_toy: Path) -> None:
    index = SampleIndex.load(shared_toy, "train")
    expected = index.read_sample(5)
    copy = pickle.loads(pickle.dumps(index))
    index.close()
    assert copy.read_sample(5) == index.read_sample(5) == expected


def test_open_shards_are_bounded_and_threads_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_files, "_MOST_OPEN", 3)
    write_toy_dataset(tmp_path / "many", num_shards=10, samples_each=1)
    index = SampleIndex.load(tmp_path / "many", "train")
    expected = expected_samples(tmp_path / "many")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    wrong: list[int] = []

    def read(seed: int) -> None:
        places = np.random.default_rng(seed).integers(0, 10, 300).tolist()
        wrong.extend(i for i in places if index.read_sample(i) != expected[i])

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(os.listdir("/proc/self/fd")) <= before + 3  # noqa: PTH208
    for i in (0, 1, 2, 0, 3):
        index.read_sample(i)
    opened: list[str] = []
    monkeypatch.setattr(index._files, "_opened", lambda name: opened.append(name) or pytest.fail(name))
    index.read_sample(0)


def rewrite(toy: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change rows of the index and make the manifest agree, as a faulty or hostile writer could."""
    manifest = Manifest.load(toy)
    rows = pq.read_table(toy / "samples.parquet").to_pylist()
    change(rows)
    table = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
    seal(toy, table, manifest.splits["train"].shards, manifest.num_classes)


def _swap_shards(rows: list[dict[str, Any]]) -> None:
    rows[0]["shard"], rows[4]["shard"] = rows[4]["shard"], rows[0]["shard"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.pop(), "its shards of 'train' are not those of the manifest"),
        (_swap_shards, "its shards of 'train' are not those of the manifest"),
        (lambda rows: rows[3].update(image_offset=-1), "images lie outside their shards"),
        (lambda rows: rows[3].update(mask_bytes=2**62), "masks lie outside their shards"),
        (lambda rows: rows[3].update(mask_offset=2**63 - 1), "masks lie outside their shards"),
        (lambda rows: rows[3].update(image_bytes=None), "values are missing"),
        (lambda rows: rows[3].update(key=None), "values are missing"),
    ],
)
def test_an_index_that_contradicts_the_manifest_is_refused(toy: Path, change: Any, message: str) -> None:
    rewrite(toy, change)
    with pytest.raises(DataError, match=rf"'samples\.parquet' of .*: {message}"):
        SampleIndex.load(toy, "train")


@pytest.mark.parametrize("counts", [[1, 2], [1, None, 3], None])
def test_class_counts_that_are_not_one_a_class_are_refused(toy: Path, counts: Any) -> None:
    rewrite(toy, lambda rows: rows[2].update(class_pixels=counts))
    with pytest.raises(DataError, match="not 3 class counts in every row"):
        _ = SampleIndex.load(toy, "train").class_pixels


def test_an_index_of_another_form_is_refused(toy: Path) -> None:
    manifest = Manifest.load(toy)
    for data in (b"", b"PAR1" * 20):
        (toy / "samples.parquet").write_bytes(data)
        with pytest.raises(DataError, match=r"samples\.parquet"):
            read_table(toy, manifest)


@pytest.fixture
def server(toy: Path) -> Iterator[Behaviour]:
    with file_server({f"d/{path.name}": path.read_bytes() for path in toy.iterdir()}) as running:
        yield running


@pytest.fixture
def remote(server: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SEGFLEET_DATA_HOSTS", server.url.removeprefix("http://"))
    monkeypatch.setenv("SEGFLEET_CACHE_DIR", str(tmp_path / "cache"))
    return f"{server.url}/d"


def test_a_dataset_elsewhere_reads_like_one_here(remote: str, server: Behaviour, toy: Path) -> None:
    index = SampleIndex.load(remote, "train")
    assert index.is_remote
    assert [index.read_sample(i) for i in range(12)] == expected_samples(toy)
    assert index.class_pixels.tolist() == SampleIndex.load(toy, "train").class_pixels.tolist()
    copy = pickle.loads(pickle.dumps(index))
    assert copy.read_sample(3) == index.read_sample(3)
    assert sorted(asked.path for asked in server.asked) == [
        "/d/manifest.json",
        "/d/samples.parquet",
        *(f"/d/train-{number:06d}.tar" for number in range(3)),
    ]


def test_a_shard_is_fetched_ahead(remote: str, server: Behaviour, toy: Path) -> None:
    index = SampleIndex.load(remote, "train")
    index.fetch(1)
    server.files.clear()
    assert index.read_sample(4) == expected_samples(toy)[4]
    with pytest.raises(DataError, match=rf"{remote} has no file 'train-000002\.tar'"):
        index.read_sample(8)


def test_a_cached_shard_that_changes_is_fetched_again(remote: str, server: Behaviour, tmp_path: Path) -> None:
    index = SampleIndex.load(remote, "train")
    expected = index.read_sample(0)
    (place,) = (tmp_path / "cache").glob(index.manifest.splits["train"].shards[0].sha256)
    place.chmod(0o600)
    data = bytearray(place.read_bytes())
    data[700] ^= 1
    place.write_bytes(data)
    assert index.read_sample(0) == expected
    assert index.read_sample(1)
    assert [asked.path for asked in server.asked].count("/d/train-000000.tar") == 2
    sealed = tmp_path / "cache" / index.manifest.index.sha256
    sealed.chmod(0o600)
    sealed.write_bytes(bytes(index.manifest.index.bytes))
    assert index.class_pixels.shape == (12, 3)


def test_a_shard_that_is_another_one_is_named_with_both_hashes(remote: str, server: Behaviour, toy: Path) -> None:
    index = SampleIndex.load(remote, "train")
    server.files["d/train-000000.tar"] = bytes(len(server.files["d/train-000000.tar"]))
    wanted = index.manifest.splits["train"].shards[0].sha256
    with pytest.raises(DataError, match=rf"'train-000000\.tar' of {remote} has sha256 [0-9a-f]+, .*{wanted}"):
        index.read_sample(0)


def test_the_cache_may_be_smaller_than_the_dataset(remote: str, toy: Path, tmp_path: Path) -> None:
    shard_bytes = max(path.stat().st_size for path in toy.iterdir())
    index = SampleIndex.load(remote, "train", cache=ShardCache(tmp_path / "small", shard_bytes))
    assert [index.read_sample(i) for i in (0, 11, 1, 5)] == [expected_samples(toy)[i] for i in (0, 11, 1, 5)]
    assert sum(path.stat().st_size for path in (tmp_path / "small").iterdir()) <= shard_bytes


def write_long_dataset(folder: Path, num_samples: int, num_classes: int) -> None:
    """One small shard that holds the bytes of every one of many samples."""
    folder.mkdir()
    with tarfile.open(folder / "train-000000.tar", "w") as tar:
        info = tarfile.TarInfo("a.image.jpg")
        info.size = 500
        tar.addfile(info, io.BytesIO(bytes(500)))
    data = (folder / "train-000000.tar").read_bytes()
    same = {"image_offset": 512, "image_bytes": 500, "mask_offset": 512, "mask_bytes": 100, "height": 5, "width": 5}
    same |= {"image_crc32": zlib.crc32(bytes(500)), "mask_crc32": zlib.crc32(bytes(100)), "split": "train"}
    same |= {"shard": "train-000000.tar", "image_member": "image.jpg", "mask_member": "mask.npy.zst"}
    columns = {name: pa.array([value] * num_samples, INDEX_SCHEMA.field(name).type) for name, value in same.items()}
    columns["key"] = pa.array([f"ADE_train_{i:08d}" for i in range(num_samples)])
    counts = pa.array(np.tile(np.arange(num_classes), num_samples))
    columns["class_pixels"] = pa.ListArray.from_arrays(np.arange(num_samples + 1) * num_classes, counts)
    table = pa.table(columns).select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)
    shard = ShardInfo("train-000000.tar", hashlib.sha256(data).hexdigest(), len(data), num_samples)
    seal(folder, table, (shard,), num_classes)


def private_mib() -> float:
    text = Path("/proc/self/smaps_rollup").read_text()
    lines = [line.split() for line in text.splitlines() if line.startswith("Private_")]
    return sum(int(line[1]) for line in lines) / 1024


def _read_all(index: SampleIndex, results: Connection) -> None:
    before = private_mib()
    for i in range(len(index)):
        index.read_sample(i)
        index.members(i)
        index.shard_of(i)
        tuple(index.sizes[i])
    results.send(private_mib() - before)


@pytest.mark.integration
def test_forked_readers_share_the_index(tmp_path: Path) -> None:
    write_long_dataset(tmp_path / "long", num_samples=100_000, num_classes=150)
    index = SampleIndex.load(tmp_path / "long", "train")
    held = sum(part.nbytes for part in vars(index).values() if isinstance(part, np.ndarray))
    assert held < 10 * 1024 * 1024
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_read_all, args=(index, theirs))
    process.start()
    grown = ours.recv()
    process.join()
    assert grown < 3.0, grown
