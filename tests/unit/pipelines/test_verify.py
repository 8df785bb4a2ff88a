from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from file_server import Behaviour, file_server
from segfleet.errors import DataError
from segfleet_pipelines.manifest import FileInfo, Manifest
from segfleet_pipelines.reader import INDEX_SCHEMA, SampleIndex
from segfleet_pipelines.tar_write import tar_header
from segfleet_pipelines.verify import check_shards, verify

SHARD = "train-000000.tar"


def test_a_sound_dataset_has_no_problems(shared_dataset: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = verify(shared_dataset, lambda done, total: seen.append((done, total)))
    assert report.problems == ()
    assert (report.num_shards, report.num_samples) == (2, 11)
    assert report.bytes == sum(path.stat().st_size for path in shared_dataset.glob("*.tar"))
    assert seen[-1] == (11, 11)
    assert check_shards(shared_dataset, "train") == check_shards(shared_dataset, "val", 0.5) == frozenset()


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
    """F62: also the kinds that WebDataset takes for the end of the shard."""
    damage(dataset / SHARD)
    assert any(SHARD in problem for problem in verify(dataset).problems)
    with pytest.raises(DataError, match=f"{SHARD}.*(cannot be read|the manifest says)"):
        check_shards(dataset, "train")
    check_shards(dataset, "val")


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
    for use in (verify, lambda folder: check_shards(folder, "train"), lambda folder: SampleIndex.load(folder, "val")):
        with pytest.raises(DataError, match=r"samples\.parquet"):
            use(dataset)


def test_a_shard_that_the_manifest_does_not_know_is_reported(dataset: Path) -> None:
    (dataset / "train-000007.tar").write_bytes((dataset / SHARD).read_bytes())
    assert verify(dataset).problems == ("'train-000007.tar' is not in the manifest",)


def damage_sample(dataset: Path, place: int, split: str = "train") -> str:
    """Flip a bit in a picture; gives its key."""
    index = SampleIndex.load(dataset, split)
    _, image, _ = index.read_sample(place)
    path = dataset / index.shard_of(place)
    data = path.read_bytes()
    start = data.index(image)
    path.write_bytes(data[:start] + bytes([data[start] ^ 1]) + data[start + 1 :])
    return index.keys[place]


def test_the_error_names_shard_keys_and_both_figures(dataset: Path) -> None:
    keys = [damage_sample(dataset, place) for place in (2, 5)]
    with pytest.raises(DataError) as error:
        check_shards(dataset, "train")
    text = str(error.value)
    assert f"2 of its 9 samples are damaged: {keys[0]!r}, {keys[1]!r}" in text
    assert "split 'train': 2 of 9 samples damaged or missing, the skip budget of 0 % allows 0" in text
    assert SHARD in text


@pytest.mark.parametrize(("budget", "allowed"), [(0.1, 0), (0.2, 1), (0.34, 3), (1.0, 9)])
def test_damage_within_the_budget_is_left_out_and_damage_beyond_it_is_an_error(
    dataset: Path, budget: float, allowed: int
) -> None:
    """F64: and each time the same samples."""
    for place in (0, 8):
        damage_sample(dataset, place)
    if allowed >= 2:
        assert check_shards(dataset, "train", budget) == check_shards(dataset, "train", budget) == {0, 8}
    else:
        with pytest.raises(DataError, match=f"2 of 9 samples .* allows {allowed};"):
            check_shards(dataset, "train", budget)


def test_a_share_that_binary_fractions_miss_is_still_the_share(dataset: Path) -> None:
    damage_sample(dataset, 1)
    assert check_shards(dataset, "train", 1 / 9 - 1e-12) == {1}


def test_damage_between_the_samples_costs_none_of_them_but_is_never_passed_over_without_a_budget(
    dataset: Path,
) -> None:
    _flip_header(dataset / SHARD)
    with pytest.raises(DataError, match="9 samples are sound, what differs lies between them"):
        check_shards(dataset, "train")
    assert check_shards(dataset, "train", 0.01) == frozenset()


@pytest.mark.parametrize("budget", [0.0, 1.0])
def test_no_budget_covers_a_missing_shard(dataset: Path, budget: float) -> None:
    _remove(dataset / SHARD)
    with pytest.raises(DataError, match=r"9 of 9 samples damaged or missing(.|\n)*none of its 9 samples"):
        check_shards(dataset, "train", budget)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_shard_that_is_no_file_is_an_error_and_nothing_hangs(dataset: Path, make: Callable[[Path], None]) -> None:
    (dataset / SHARD).unlink()
    make(dataset / SHARD)
    with pytest.raises(DataError, match=f"{SHARD}' is not a file: none of its 9"):
        check_shards(dataset, "train", 1.0)
    assert "is not a file (9 samples)" in verify(dataset).problems[0]


def test_a_linked_shard_counts_by_its_bytes(dataset: Path) -> None:
    (dataset / SHARD).rename(dataset / "elsewhere")
    (dataset / SHARD).symlink_to(dataset / "elsewhere")
    check_shards(dataset, "train")
    assert verify(dataset).problems == ()
    (dataset / SHARD).unlink()
    (dataset / SHARD).symlink_to("/etc/hostname")
    with pytest.raises(DataError, match=f"{SHARD}.*the manifest says"):
        check_shards(dataset, "train")


def forge(dataset: Path, change: Callable[[list[dict[str, Any]]], object], **fields: object) -> None:
    """Change rows of the index and fields of the manifest, and make all hashes agree, as a hostile writer would."""
    path = dataset / "samples.parquet"
    rows = pq.read_table(path).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), path)
    index = FileInfo(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
    manifest = replace(Manifest.load(dataset), index=index, **fields)  # type: ignore[arg-type]
    (dataset / "manifest.json").write_bytes(manifest.encode())


def forge_shard(dataset: Path, data: bytes) -> None:
    """Put other bytes in the place of a shard, and make all hashes agree."""
    (dataset / SHARD).write_bytes(data)
    splits = dict(Manifest.load(dataset).splits)
    (shard,) = splits["train"].shards
    forged = replace(shard, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    splits["train"] = replace(splits["train"], shards=(forged,))
    forge(dataset, lambda rows: None, splits=splits)


def test_an_index_that_contradicts_the_shards_is_found(dataset: Path) -> None:
    def lie(rows: list[dict[str, Any]]) -> None:
        rows[0]["height"] += 1
        rows[1]["class_pixels"] = [1, 2, 3]
        rows[2]["key"] = "renamed"
        rows[3]["mask_crc32"] ^= 1
        rows[4], rows[5] = rows[4] | {"key": rows[5]["key"]}, rows[5] | {"key": rows[4]["key"]}

    forge(dataset, lie)
    problems = verify(dataset).problems
    assert "18 members that are not the 18 of the index; first: 's0" in problems[0]
    assert "where 'renamed.image" in problems[0]
    assert "the mask is " in problems[1]
    assert "class counts" in problems[2]
    assert "the mask has changed" in problems[3]
    assert len(problems) == 4


def test_a_key_of_two_samples_is_found(dataset: Path) -> None:
    """F66: even if both splits have it, so that training would see what validation scores."""
    forge(dataset, lambda rows: rows[-1].update(key=rows[0]["key"]))
    assert [problem for problem in verify(dataset).problems if "is in the index 2 times" in problem]


def test_members_that_the_index_does_not_know_are_found_and_notes_are_not_counted(dataset: Path) -> None:
    data = (dataset / SHARD).read_bytes().rstrip(b"\0")
    data += bytes(-len(data) % 512)
    end = bytes(1024)
    forge_shard(dataset, data + tar_header("x.json", 1) + b"1".ljust(512, b"\0") + end)
    assert verify(dataset).problems == ()
    forge_shard(dataset, data + tar_header("x.pkl", 1) + b"1".ljust(512, b"\0") + end)
    assert [problem for problem in verify(dataset).problems if "19 members that are not the 18" in problem]


def test_an_index_without_all_samples_is_refused(dataset: Path) -> None:
    forge(dataset, lambda rows: rows.pop(0))
    with pytest.raises(DataError, match="not those of the manifest"):
        SampleIndex.load(dataset, "train")


def test_labels_beyond_the_classes_are_found(dataset: Path) -> None:
    manifest = Manifest.load(dataset)
    forge(
        dataset,
        lambda rows: [row.update(class_pixels=row["class_pixels"][:2]) for row in rows],
        class_names=manifest.class_names[:2],
        palette=manifest.palette[:2],
    )
    problems = verify(dataset).problems
    assert len(problems) == 11
    assert all("labels [2] are neither classes nor the ignore index 255" in problem for problem in problems)


@pytest.fixture
def served(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Behaviour]:
    """The dataset on a web server of this machine, and a cache of its own."""
    monkeypatch.setenv("SEGFLEET_DATA_HOSTS", "127.0.0.1")
    monkeypatch.setenv("SEGFLEET_CACHE_DIR", str(tmp_path / "cache"))
    with file_server({f"data/{path.name}": path.read_bytes() for path in dataset.iterdir()}) as server:
        yield server


def test_a_dataset_elsewhere_is_verified_by_its_own_bytes_and_not_by_the_cache(served: Behaviour) -> None:
    address = f"{served.url}/data"
    assert verify(address).problems == ()
    SampleIndex.load(address, "train").read_sample(0)
    data = bytearray(served.files[f"data/{SHARD}"])
    data[600] ^= 1
    served.files[f"data/{SHARD}"] = bytes(data)
    problems = verify(address).problems
    assert len(problems) == 2
    assert "has sha256" in problems[0]
    assert "has changed since the dataset was prepared" in problems[1]
    del served.files[f"data/{SHARD}"]
    assert "(9 samples)" in verify(address).problems[0]


def test_shards_elsewhere_must_exist_and_have_their_size_before_the_first_step(
    served: Behaviour, tmp_path: Path
) -> None:
    address = f"{served.url}/data"
    assert check_shards(address, "train") == frozenset()
    assert [path.name for path in (tmp_path / "cache").iterdir() if len(path.name) == 64] == [
        Manifest.load(address).index.sha256
    ]
    served.files[f"data/{SHARD}"] += b"x"
    with pytest.raises(DataError, match=f"{SHARD}' has .* bytes, the manifest says .*: none of its 9 samples"):
        check_shards(address, "train", 1.0)
    del served.files[f"data/{SHARD}"]
    with pytest.raises(DataError, match=f"9 of 9 samples damaged or missing(.|\n)*{SHARD}"):
        check_shards(address, "train", 1.0)
