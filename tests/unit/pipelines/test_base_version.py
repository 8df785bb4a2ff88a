from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segfleet.errors import DataError
from segfleet_pipelines import writer
from segfleet_pipelines.manifest import Manifest
from segfleet_pipelines.reader import SampleIndex
from segfleet_pipelines.shards import ShardTask
from segfleet_pipelines.verify import verify
from segfleet_pipelines.writer import prepare

MakeSpec = Callable[..., Any]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_SHARD_SAMPLES", 3)


@pytest.fixture
def base(raw: Path, tmp_path: Path, prepare_spec: MakeSpec) -> Path:
    """Version 1: ten samples, six of train in two shards and four of val in two."""
    (raw / "splits").mkdir()
    (raw / "splits" / "train.txt").write_text("".join(f"s{i:02d}\n" for i in range(6)))
    (raw / "splits" / "val.txt").write_text("".join(f"s{i:02d}\n" for i in range(6, 10)))
    prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "v1")))
    return tmp_path / "v1"


def list_more(raw: Path, count: int = 4) -> None:
    """Add samples to train: s10 and copies of it."""
    image = next((raw / "images").glob("s10.*"))
    for i in range(11, 10 + count):
        shutil.copy(image, image.with_name(f"s{i:02d}{image.suffix}"))
        shutil.copy(raw / "masks" / "s10.png", raw / "masks" / f"s{i:02d}.png")
    with (raw / "splits" / "train.txt").open("a") as file:
        file.writelines(f"s{i:02d}\n" for i in range(10, 10 + count))


def test_old_shards_are_shared_and_new_samples_come_after_them(
    base: Path, raw: Path, tmp_path: Path, prepare_spec: MakeSpec
) -> None:
    list_more(raw)
    old = Manifest.load(base)
    new = prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "v2"), base=str(base)))
    for split in ("train", "val"):
        shards = old.splits[split].shards
        assert new.splits[split].shards[: len(shards)] == shards
        for shard in shards:
            assert (tmp_path / "v2" / shard.file).samefile(base / shard.file)
    assert [shard.file for shard in new.splits["train"].shards[2:]] == ["train-000002.tar", "train-000003.tar"]
    assert new.splits["train"].num_samples == 10
    assert new.content_id != old.content_id
    old_keys, keys = (list(SampleIndex.load(place, "train").keys) for place in (base, tmp_path / "v2"))
    assert keys[:6] == old_keys
    assert sorted(keys[6:]) == ["s10", "s11", "s12", "s13"]
    assert not verify(tmp_path / "v2").problems
    assert not verify(base).problems


def test_without_new_samples_the_content_is_the_same(
    base: Path, raw: Path, tmp_path: Path, prepare_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ShardTask, "_write", lambda *_: pytest.fail("written again"))
    again = prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "v2"), base=base.as_uri()))
    assert again.content_id == Manifest.load(base).content_id


def test_a_linked_shard_of_the_base_is_taken_for_what_it_leads_to(
    base: Path, raw: Path, tmp_path: Path, prepare_spec: MakeSpec
) -> None:
    shard = base / "train-000000.tar"
    shard.rename(base / "moved")
    shard.symlink_to("moved")
    prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "v2"), base=str(base)))
    assert not (tmp_path / "v2" / shard.name).is_symlink()
    assert (tmp_path / "v2" / shard.name).samefile(base / "moved")
    assert not verify(tmp_path / "v2").problems


def test_on_another_file_system_shards_are_copied(
    base: Path, raw: Path, tmp_path: Path, prepare_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "v2"), base=str(base)))
    shard = "train-000000.tar"
    assert not (tmp_path / "v2" / shard).samefile(base / shard)
    assert (tmp_path / "v2" / shard).read_bytes() == (base / shard).read_bytes()


def test_jpeg_versions_of_png_pictures_are_known_again(
    base: Path, raw: Path, tmp_path: Path, prepare_spec: MakeSpec
) -> None:
    first = prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "j1"), images="jpeg95"))
    spec = prepare_spec(raw=str(raw), out=str(tmp_path / "j2"), images="jpeg95", base=str(tmp_path / "j1"))
    assert prepare(spec).content_id == first.content_id
    with pytest.raises(DataError, match="images: jpeg95; use the same"):
        prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "j3"), base=str(tmp_path / "j1")))
    assert base.exists()


def test_changed_samples_are_named(base: Path, raw: Path, tmp_path: Path, prepare_spec: MakeSpec) -> None:
    Image.open(raw / "images" / "s01.jpg").save(raw / "images" / "s01.jpg", quality=50)
    with Image.open(raw / "masks" / "s07.png") as mask:
        labels = np.array(mask)
    labels[3, 3] = 1 - min(labels[3, 3], 1)
    Image.fromarray(labels).save(raw / "masks" / "s07.png")
    out = tmp_path / "v2"
    with pytest.raises(DataError, match=r"of the base have changed(.|\n)*\(2\)") as caught:
        prepare(prepare_spec(raw=str(raw), out=str(out), base=str(base)))
    assert "s01.jpg has changed" in str(caught.value)
    assert "s07.png has changed" in str(caught.value)
    assert not out.exists()


def test_vanished_and_moved_samples_are_named(base: Path, raw: Path, tmp_path: Path, prepare_spec: MakeSpec) -> None:
    (raw / "splits" / "train.txt").write_text("s00\ns01\ns02\ns03\ns09\n")
    (raw / "splits" / "val.txt").write_text("s06\ns07\ns08\ns05\n")
    with pytest.raises(DataError) as caught:
        prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "v2"), base=str(base)))
    message = str(caught.value)
    assert "s04: is not in the raw data any more" in message
    assert "s05: was in train, is in val now" in message
    assert "s09: was in val, is in train now" in message
    assert "s00" not in message


def test_a_mask_of_the_same_pixels_in_another_file_has_not_changed(
    base: Path, raw: Path, tmp_path: Path, prepare_spec: MakeSpec
) -> None:
    for path in (raw / "masks").glob("*.png"):
        Image.open(path).save(path, compress_level=0)
    again = prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "v2"), base=str(base)))
    assert again.content_id == Manifest.load(base).content_id


def test_other_classes_are_refused(base: Path, raw: Path, tmp_path: Path, prepare_spec: MakeSpec) -> None:
    (raw / "classes.yaml").write_text("names: [sky, road, bush]\ncolors: [[0, 0, 255], [9, 9, 9], [0, 99, 0]]\n")
    with pytest.raises(DataError, match="class_names of the base"):
        prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "v2"), base=str(base)))


def test_labels_of_another_meaning_are_found(base: Path, raw: Path, tmp_path: Path, prepare_spec: MakeSpec) -> None:
    with (raw / "classes.yaml").open("a") as file:
        file.write("label_map: {0: 1, 1: 0, 2: 2, 255: 255}\n")
    with pytest.raises(DataError, match="its labels have another meaning"):
        prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "v2"), base=str(base)))


def test_a_damaged_base_is_refused(base: Path, raw: Path, tmp_path: Path, prepare_spec: MakeSpec) -> None:
    shard = base / "train-000001.tar"
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"'train-000001\.tar' of the base"):
        prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "v2"), base=str(base)))
    shard.unlink()
    with pytest.raises(DataError, match=r"train-000001\.tar"):
        prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "v2"), base=str(base)))


def test_an_interrupted_version_goes_on(base: Path, raw: Path, tmp_path: Path, prepare_spec: MakeSpec) -> None:
    list_more(raw)
    spec = prepare_spec(raw=str(raw), out=str(tmp_path / "v2"), base=str(base))

    def stop(done: int, _total: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(spec, stop)
    assert len(list((tmp_path / ".v2.partial" / "rows").iterdir())) == 3
    prepare(spec)
    assert not verify(tmp_path / "v2").problems
