from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segfleet.errors import DataError
from segfleet_pipelines.manifest import Manifest
from segfleet_pipelines.reader import INDEX_SCHEMA, SampleIndex
from segfleet_pipelines.verify import check_shards, verify

SHARD = "train-000000.tar"


def test_a_sound_dataset_has_no_problems(shared_dataset: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = verify(shared_dataset, lambda done, total: seen.append((done, total)))
    assert report.problems == ()
    assert (report.num_shards, report.num_samples) == (2, 11)
    assert report.bytes == sum(path.stat().st_size for path in shared_dataset.glob("*.tar"))
    assert seen[-1] == (11, 11)
    check_shards(shared_dataset, ["train", "val"])


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10240])


def _cut_at_member(path: Path) -> None:
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-2].offset
    path.write_bytes(path.read_bytes()[:last] + bytes(1024))


def _flip_data(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)


def _flip_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


def _zero_block(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[512:1024] = bytes(512)
    path.write_bytes(data)


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def _swap(path: Path) -> None:
    path.write_bytes(path.with_name("val-000000.tar").read_bytes())


def _remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    "damage", [_cut, _cut_at_member, _flip_data, _flip_header, _zero_block, _append, _swap, _remove]
)
def test_every_damage_to_a_shard_is_found(dataset: Path, damage: Callable[[Path], None]) -> None:
    damage(dataset / SHARD)
    assert any(SHARD in problem for problem in verify(dataset).problems)
    with pytest.raises(DataError, match=f"{SHARD}.*(cannot be read|the manifest says)"):
        check_shards(dataset, ["val", "train"])
    check_shards(dataset, ["val"])


def test_damage_names_the_shard_the_key_and_both_hashes(dataset: Path) -> None:
    index = SampleIndex.load(dataset, "train")
    before = hashlib.sha256((dataset / SHARD).read_bytes()).hexdigest()
    _flip_data(dataset / SHARD)
    after = hashlib.sha256((dataset / SHARD).read_bytes()).hexdigest()
    problems = verify(dataset).problems
    assert len(problems) == 2
    assert before in problems[0]
    assert after in problems[0]
    assert index.keys[0] in problems[1]
    with pytest.raises(DataError, match=f"{SHARD}.*{index.keys[0]}.*has changed"):
        index.read_sample(0)
    index.read_sample(1)


def test_a_shard_that_is_cut_while_it_is_read_is_an_error_and_no_crash(dataset: Path) -> None:
    index = SampleIndex.load(dataset, "train")
    index.read_sample(0)
    _cut_at_member(dataset / SHARD)
    with pytest.raises(DataError, match="cut short"):
        index.read_sample(len(index) - 1)


def test_a_missing_shard_is_an_error_when_it_is_read(dataset: Path) -> None:
    index = SampleIndex.load(dataset, "train")
    _remove(dataset / SHARD)
    with pytest.raises(DataError, match=f"{SHARD}.*cannot be opened"):
        index.read_sample(0)


@pytest.mark.parametrize("damage", [_flip_data, _cut, _remove])
def test_a_damaged_index_is_refused(dataset: Path, damage: Callable[[Path], None]) -> None:
    damage(dataset / "samples.parquet")
    for use in (verify, lambda folder: check_shards(folder, ["train"]), lambda folder: SampleIndex.load(folder, "val")):
        with pytest.raises(DataError, match=r"samples\.parquet"):
            use(dataset)


def test_a_shard_that_the_manifest_does_not_know_is_reported(dataset: Path) -> None:
    (dataset / "train-000007.tar").write_bytes((dataset / SHARD).read_bytes())
    assert verify(dataset).problems == ("'train-000007.tar' is not in the manifest",)


def forge_index(dataset: Path, change: Callable[[list[dict[str, object]]], None]) -> None:
    """Change rows of the index and make the manifest agree, as a faulty or hostile writer could."""
    path = dataset / "samples.parquet"
    rows = pq.read_table(path).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), path)
    document = json.loads((dataset / "manifest.json").read_text())
    document["index"] |= {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
    (dataset / "manifest.json").write_text(json.dumps(document))


def test_an_index_that_contradicts_the_shards_is_found(dataset: Path) -> None:
    def lie(rows: list[dict[str, object]]) -> None:
        rows[0]["height"] = 7
        rows[1]["class_pixels"] = [1, 2, 3]
        rows[2]["key"] = "renamed"

    forge_index(dataset, lie)
    problems = verify(dataset).problems
    assert len(problems) == 3
    assert "not the 18 of the index" in problems[0]
    assert "differ in size" in problems[1]
    assert "class counts" in problems[2]


def test_an_index_without_all_samples_is_refused(dataset: Path) -> None:
    forge_index(dataset, lambda rows: rows.pop(0) and None)
    with pytest.raises(DataError, match="not those of the manifest"):
        SampleIndex.load(dataset, "train")


def test_labels_beyond_the_classes_are_found(dataset: Path) -> None:
    manifest = Manifest.load(dataset)
    document = json.loads((dataset / "manifest.json").read_text())
    document |= {"class_names": list(manifest.class_names[:2]), "palette": document["palette"][:2]}
    (dataset / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="content id"):
        verify(dataset)
    fewer = Manifest(
        manifest.name, manifest.class_names[:2], manifest.palette[:2], 255, manifest.splits, manifest.index
    )
    document["content_id"] = fewer.content_id
    (dataset / "manifest.json").write_text(json.dumps(document))
    forge_index(dataset, lambda rows: [row.update(class_pixels=row["class_pixels"][:2]) for row in rows] and None)
    problems = verify(dataset).problems
    assert len(problems) == 11
    assert all("labels [2] are neither classes nor the ignore index 255" in problem for problem in problems)
