from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from segfleet.errors import DataError
from segfleet_pipelines import sealing, writer
from segfleet_pipelines.check import LabelRules, final_labels
from segfleet_pipelines.datasets.base import RawDataset
from segfleet_pipelines.datasets.sources import FileSource
from segfleet_pipelines.manifest import Manifest
from segfleet_pipelines.mask_codec import MASK_MEMBER, unpack_mask
from segfleet_pipelines.reader import SampleIndex
from segfleet_pipelines.verify import verify
from segfleet_pipelines.writer import prepare

MakeSpec = Callable[..., Any]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def leftovers(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir() if out.name in path.name)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most three samples in a shard."""
    monkeypatch.setattr(writer, "MAX_SHARD_SAMPLES", 3)


def stored_mask(index: SampleIndex, i: int) -> np.ndarray:
    height, width = (int(side) for side in index.sizes[i])
    return unpack_mask(index.read_sample(i)[2], index.members(i)[1], height, width)


@pytest.mark.integration
@pytest.mark.usefixtures("small_shards")
def test_the_result_does_not_depend_on_the_number_of_processes(
    raw: Path, tmp_path: Path, prepare_spec: MakeSpec
) -> None:
    for processes in (1, 2):
        prepare(prepare_spec(raw=str(raw), out=str(tmp_path / f"p{processes}"), processes=processes))
    assert contents(tmp_path / "p1") == contents(tmp_path / "p2")
    shards = ["train-000000.tar", "train-000001.tar", "train-000002.tar", "val-000000.tar"]
    assert sorted(contents(tmp_path / "p1")) == ["manifest.json", "samples.parquet", *shards]
    manifest = Manifest.load(tmp_path / "p1")
    assert [shard.num_samples for shard in manifest.splits["train"].shards] == [3, 3, 3]
    keys = list(SampleIndex.load(tmp_path / "p1", "train").keys)
    assert keys != sorted(keys)


def test_pictures_are_stored_byte_for_byte_and_masks_pixel_for_pixel(raw: Path, shared_dataset: Path) -> None:
    for split in ("train", "val"):
        index = SampleIndex.load(shared_dataset, split)
        for i in range(len(index)):
            key, image, _ = index.read_sample(i)
            source = next((raw / "images").glob(f"{key}.*"))
            assert image == source.read_bytes()
            with Image.open(raw / "masks" / f"{key}.png") as expected:
                labels = np.asarray(expected)
            assert np.array_equal(stored_mask(index, i), labels)
            assert index.sizes[i].tolist() == list(labels.shape)
            assert index.class_pixels[i].tolist() == [int((labels == c).sum()) for c in range(3)]
            assert index.members(i) == (f"image{source.suffix}", MASK_MEMBER)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_any_webdataset_reader_can_open_the_shards(shared_dataset: Path) -> None:
    index = SampleIndex.load(shared_dataset, "train")
    samples = list(wds.WebDataset(str(shared_dataset / "train-000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == list(index.keys)
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
    with Image.open(raw / "masks" / f"{index.keys[0]}.png") as image:
        labels = np.asarray(image)
    expected = np.array([1, 0, 255], np.uint8)[np.where(labels == 255, 2, labels)]
    assert np.array_equal(stored_mask(index, 0), expected)
    assert index.class_pixels[0].tolist() == [int((expected == c).sum()) for c in range(2)]


def test_with_a_label_map_every_raw_label_must_be_in_it(raw: Path, tmp_path: Path, prepare_spec: MakeSpec) -> None:
    (raw / "classes.yaml").write_text("names: [a, b]\nlabel_map: {0: 1, 1: 0, 255: 255}\n")
    with pytest.raises(DataError, match="label 2 out of range; allowed: 0-1, 255"):
        prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "out")))


def test_counts_of_a_very_large_mask_are_exact() -> None:
    mask = np.zeros((4097, 4097), np.uint8)  # more pixels than float32 can count
    mask[0, :3] = 255
    rules = LabelRules.of(RawDataset("large", ("a",), ((0, 0, 0),), 255, None, {}))
    labels, counts = final_labels(FileSource(Path("mask.png")), mask, rules)
    assert counts == [4097 * 4097 - 3]
    assert np.array_equal(labels, mask)


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


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.integration)])
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


def test_a_run_interrupted_before_its_first_shard_leaves_nothing(
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


def test_of_two_runs_to_one_place_the_second_is_refused(raw: Path, tmp_path: Path, prepare_spec: MakeSpec) -> None:
    spec = prepare_spec(raw=str(raw), out=str(tmp_path / "out"))

    def overtake(done: int, _total: int) -> None:
        if done == 5:
            prepare(spec)

    with pytest.raises(DataError, match="another run is making"):
        prepare(spec, overtake)
    prepare(spec)
    assert leftovers(tmp_path / "out") == ["out"]
    assert not verify(tmp_path / "out").problems


def test_what_appears_in_the_meantime_is_not_written_over(raw: Path, tmp_path: Path, prepare_spec: MakeSpec) -> None:
    out = tmp_path / "out"

    def take(done: int, _total: int) -> None:
        if done == 5:
            out.mkdir()
            (out / "thesis.tex").touch()

    with pytest.raises(DataError, match="not an empty folder"):
        prepare(prepare_spec(raw=str(raw), out=str(out)), take)
    assert contents(out) == {"thesis.tex": b""}


def test_a_full_disk_is_told_and_leaves_nothing_under_the_final_name(
    raw: Path, tmp_path: Path, prepare_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sealing, "save_table", full)
    with pytest.raises(DataError, match="No space left"):
        prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "out")))
    assert leftovers(tmp_path / "out") == [".out.partial"]


def test_a_disk_that_fails_at_any_time_is_told_by_file(
    raw: Path, tmp_path: Path, prepare_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise OSError(5, "Input/output error", str(path))

    for module, name in (("staging", "_wait_for_workers"), ("staging", "sync_folder"), ("writer", "open_dataset")):
        with monkeypatch.context() as broken:
            broken.setattr(f"segfleet_pipelines.{module}.{name}", lambda *args, **_options: fail(tmp_path / "sick"))
            with pytest.raises(DataError, match=r"sick cannot be used: Input/output error"):
                prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "out")))


def test_progress_counts_every_sample(tmp_path: Path, raw: Path, prepare_spec: MakeSpec) -> None:
    seen: list[tuple[int, int]] = []
    prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "a")), lambda done, total: seen.append((done, total)))
    assert seen == [(i, 11) for i in range(1, 12)]
    seen.clear()
    spec = prepare_spec(dataset="synthetic", samples=3, out=str(tmp_path / "b"))
    prepare(spec, lambda done, total: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(1, 7)]
    assert sorted(contents(tmp_path / "b")) == sorted(contents(tmp_path / "a"))


def test_the_manifest_returned_is_the_one_on_disk(raw: Path, tmp_path: Path, prepare_spec: MakeSpec) -> None:
    manifest = prepare(prepare_spec(raw=raw.as_uri(), out=(tmp_path / "a" / "out").as_uri()))
    assert Manifest.load(tmp_path / "a" / "out") == manifest


def test_a_folder_whose_name_is_no_text_can_be_prepared(
    raw: Path, tmp_path: Path, prepare_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(raw.rename(tmp_path / "ra\udcffw"))
    manifest = prepare(prepare_spec(raw=".", out=str(tmp_path / "out")))
    assert manifest.name == "ra?w"
    assert Manifest.load(tmp_path / "out") == manifest


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_the_documented_lines_decode_a_shard_with_webdataset_alone(shared_dataset: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "data-format.md").read_text()
    block = next(text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "WebDataset(" in text)
    found: list[tuple[str, bytes, np.ndarray]] = []
    names: dict[str, Any] = {}
    names["print"] = lambda *_shown: found.append((names["key"], names["image"].tobytes(), names["mask"]))
    exec(block.replace("OUT/train-000000.tar", str(shared_dataset / "train-000000.tar")), names)
    index = SampleIndex.load(shared_dataset, "train")
    assert [key for key, _, _ in found] == list(index.keys)
    for i, (_, image, mask) in enumerate(found):
        assert np.array_equal(mask, stored_mask(index, i))
        assert image == Image.open(io.BytesIO(index.read_sample(i)[1])).tobytes()
