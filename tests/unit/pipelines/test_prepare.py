from __future__ import annotations

import fcntl
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from segfleet.errors import DataError
from segfleet_pipelines import writer
from segfleet_pipelines.check import CheckedSample
from segfleet_pipelines.manifest import Manifest
from segfleet_pipelines.picture import decode_mask
from segfleet_pipelines.reader import SampleIndex
from segfleet_pipelines.shards import ShardWriter
from segfleet_pipelines.verify import verify
from segfleet_pipelines.writer import prepare

MakeSpec = Callable[..., Any]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def leftovers(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir() if out.name in path.name)


def test_the_result_does_not_depend_on_the_number_of_processes(
    raw: Path, tmp_path: Path, prepare_spec: MakeSpec
) -> None:
    for processes in (1, 2):
        prepare(prepare_spec(raw=str(raw), out=str(tmp_path / f"p{processes}"), processes=processes))
    assert contents(tmp_path / "p1") == contents(tmp_path / "p2")
    assert sorted(contents(tmp_path / "p1")) == [
        "manifest.json",
        "samples.parquet",
        "train-000000.tar",
        "val-000000.tar",
    ]


def test_pictures_are_stored_byte_for_byte_and_masks_with_their_palette(raw: Path, shared_dataset: Path) -> None:
    for split in ("train", "val"):
        index = SampleIndex.load(shared_dataset, split)
        for i in range(len(index)):
            key, image, mask = index.read_sample(i)
            source = next((raw / "images").glob(f"{key}.*"))
            assert image == source.read_bytes()
            with Image.open(raw / "masks" / f"{key}.png") as expected:
                labels = np.asarray(expected)
            assert np.array_equal(decode_mask(mask), labels)
            assert index.sizes[i].tolist() == list(labels.shape)
            assert index.class_pixels[i].tolist() == [int((labels == c).sum()) for c in range(3)]
            assert index.members(i) == (f"image{source.suffix}", "mask.png")


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_any_webdataset_reader_can_open_the_shards(shared_dataset: Path) -> None:
    index = SampleIndex.load(shared_dataset, "train")
    samples = list(wds.WebDataset(str(shared_dataset / "train-000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == index.keys
    for i, sample in enumerate(samples):
        image_member, mask_member = index.members(i)
        assert (sample[image_member], sample[mask_member]) == index.read_sample(i)[1:]


def test_tar_headers_carry_nothing_of_the_machine(shared_dataset: Path) -> None:
    with tarfile.open(shared_dataset / "train-000000.tar") as tar:
        marks = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar}
    assert marks == {(0, 0, 0, "", "", 0o644)}


def test_labels_are_mapped(raw: Path, tmp_path: Path, prepare_spec: MakeSpec) -> None:
    (raw / "classes.yaml").write_text("names: [a, b]\nlabel_map: {0: 1, 1: 0, 2: 255, 255: 255}\n")
    prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "out")))
    index = SampleIndex.load(tmp_path / "out", "train")
    key, _, mask = index.read_sample(0)
    with Image.open(raw / "masks" / f"{key}.png") as image:
        labels = np.asarray(image)
    assert np.array_equal(decode_mask(mask), np.array([1, 0, 255], np.uint8)[np.where(labels == 255, 2, labels)])


def test_with_a_label_map_every_raw_label_must_be_in_it(raw: Path, tmp_path: Path, prepare_spec: MakeSpec) -> None:
    (raw / "classes.yaml").write_text("names: [a, b]\nlabel_map: {0: 1, 1: 0, 255: 255}\n")
    with pytest.raises(DataError, match="label 2 out of range; allowed: 0-1, 255"):
        prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "out")))


def spoil(raw: Path) -> dict[str, str]:
    """Make six samples bad; file name -> what must be said of it."""
    exif = Image.Exif()
    exif[0x0112] = 3
    image = raw / "images" / "s01.jpg"
    image.write_bytes(image.read_bytes()[:-200])
    (raw / "images" / "s02.jpg").write_bytes(b"GIF89a")
    Image.new("RGB", (10, 10)).save(raw / "masks" / "s04.png")
    Image.new("L", (10, 10)).save(raw / "masks" / "s05.png")
    with Image.open(raw / "masks" / "s07.png") as mask:
        Image.new("L", mask.size, 200).save(raw / "masks" / "s07.png")
    with Image.open(raw / "images" / "s08.jpg") as turned:
        turned.save(raw / "images" / "s08.jpg", exif=exif)
    return {
        "s01.jpg": "cut short",
        "s02.jpg": "neither a readable JPEG",
        "s04.png": "mode RGB",
        "s05.png": "10x10 pixels, but its picture has",
        "s07.png": "label 200 out of range; allowed: 0-2, 255",
        "s08.jpg": "EXIF orientation 3",
    }


@pytest.mark.parametrize("processes", [1, 2])
def test_all_bad_samples_are_listed_at_once(raw: Path, tmp_path: Path, prepare_spec: MakeSpec, processes: int) -> None:
    expected = spoil(raw)
    out = tmp_path / "out"
    with pytest.raises(DataError) as caught:
        prepare(prepare_spec(raw=str(raw), out=str(out), processes=processes))
    lines = str(caught.value).splitlines()
    for name, message in expected.items():
        assert any(name in line and message in line for line in lines[1:])
    assert "(6)" in lines[0]
    assert leftovers(out) == []


def test_a_place_that_is_taken_is_refused(raw: Path, dataset: Path, tmp_path: Path, prepare_spec: MakeSpec) -> None:
    before = contents(dataset)
    with pytest.raises(DataError, match="holds a prepared dataset already"):
        prepare(prepare_spec(raw=str(raw), out=str(dataset)))
    assert contents(dataset) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(DataError, match="not an empty folder"):
        prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "full")))
    (tmp_path / "empty").mkdir()
    prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "empty")))


def test_an_interrupted_run_leaves_nothing_and_can_be_run_again(
    raw: Path, tmp_path: Path, prepare_spec: MakeSpec
) -> None:
    spec = prepare_spec(raw=str(raw), out=str(tmp_path / "out"))

    def interrupt(done: int, _total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(spec, interrupt)
    assert leftovers(tmp_path / "out") == []
    prepare(spec)
    assert not verify(tmp_path / "out").problems


def test_what_a_killed_run_left_is_removed_and_what_a_living_one_holds_is_not(
    raw: Path, tmp_path: Path, prepare_spec: MakeSpec
) -> None:
    dead, alive = tmp_path / ".out.partial-dead", tmp_path / ".out.partial-alive"
    for work in (dead, alive):
        (work / "dataset").mkdir(parents=True)
    lock = os.open(alive, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "out")))
        assert leftovers(tmp_path / "out") == [".out.partial-alive", "out"]
    finally:
        os.close(lock)


def test_of_two_runs_to_one_place_the_second_is_refused(raw: Path, tmp_path: Path, prepare_spec: MakeSpec) -> None:
    spec = prepare_spec(raw=str(raw), out=str(tmp_path / "out"))

    def overtake(done: int, _total: int) -> None:
        if done == 5:
            prepare(spec)

    with pytest.raises(DataError, match="holds a prepared dataset already"):
        prepare(spec, overtake)
    assert leftovers(tmp_path / "out") == ["out"]
    assert not verify(tmp_path / "out").problems


def test_a_full_disk_leaves_nothing(
    raw: Path, tmp_path: Path, prepare_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_write_index", full)
    with pytest.raises(DataError, match="No space left"):
        prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "out")))
    assert leftovers(tmp_path / "out") == []


def test_progress_counts_every_sample(tmp_path: Path, raw: Path, prepare_spec: MakeSpec) -> None:
    seen: list[tuple[int, int]] = []
    prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "a")), lambda done, total: seen.append((done, total)))
    assert seen == [(i, 11) for i in range(1, 12)]
    seen.clear()
    spec = prepare_spec(dataset="synthetic", samples=3, out=str(tmp_path / "b"))
    prepare(spec, lambda done, total: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(1, 7)]
    assert sorted(contents(tmp_path / "b")) == sorted(contents(tmp_path / "a"))


def checked(i: int, key: str = "") -> CheckedSample:
    return CheckedSample(key or f"k{i}", bytes([i]) * (100 + i), "jpg", b"mask" * i, 4, 5, [i, 0])


def test_shards_are_cut_by_samples_and_by_bytes(tmp_path: Path) -> None:
    by_count = ShardWriter(tmp_path, "train", max_samples=3)
    by_bytes = ShardWriter(tmp_path, "val", max_bytes=4096)
    for shards in (by_count, by_bytes):
        with shards:
            for i in range(7):
                shards.add(checked(i))
    assert [(shard.file, shard.num_samples) for shard in by_count.shards] == [
        ("train-000000.tar", 3),
        ("train-000001.tar", 3),
        ("train-000002.tar", 1),
    ]
    assert [shard.num_samples for shard in by_bytes.shards] == [3, 2, 2]  # the first mask is empty
    assert [row["shard"] for row in by_count.rows[2:4]] == ["train-000000.tar", "train-000001.tar"]


def test_offsets_hold_for_long_and_foreign_names(tmp_path: Path) -> None:
    keys = ["x" * 150, "grün", "short"]
    with ShardWriter(tmp_path, "train") as shards:
        for i, key in enumerate(keys, start=1):
            shards.add(checked(i, key))
    data = (tmp_path / "train-000000.tar").read_bytes()
    for i, row in enumerate(shards.rows, start=1):
        for part, expected in (("image", checked(i).image), ("mask", checked(i).mask)):
            start = row[f"{part}_offset"]
            assert data[start : start + row[f"{part}_bytes"]] == expected
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        assert tar.getnames()[::2] == [f"{key}.image.jpg" for key in keys]


def test_the_manifest_returned_is_the_one_on_disk(raw: Path, tmp_path: Path, prepare_spec: MakeSpec) -> None:
    manifest = prepare(prepare_spec(raw=raw.as_uri(), out=(tmp_path / "a" / "out").as_uri()))
    assert Manifest.load(tmp_path / "a" / "out") == manifest
