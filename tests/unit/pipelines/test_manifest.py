from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from segfleet.errors import DataError
from segfleet_pipelines.location import resolve_location
from segfleet_pipelines.manifest import Manifest


def rewritten(dataset: Path, tmp_path: Path, change: Any) -> Path:
    document = json.loads((dataset / "manifest.json").read_text())
    change(document)
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    return tmp_path


def test_load_gives_what_was_saved(shared_dataset: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(shared_dataset)
    assert manifest.class_names == ("sky", "road", "tree")
    assert manifest.palette[0] == (0, 0, 255)
    assert (manifest.ignore_index, manifest.num_classes) == (255, 3)
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 9, "val": 2}
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest


def test_the_content_id_follows_the_content_and_not_the_name(shared_dataset: Path) -> None:
    manifest = Manifest.load(shared_dataset)
    renamed = replace(manifest, name="other")
    others = [
        replace(manifest, class_names=("a", "b", "c")),
        replace(manifest, palette=((1, 2, 3),) * 3),
        replace(manifest, ignore_index=200),
        replace(manifest, splits={"train": manifest.splits["train"]}),
    ]
    assert renamed.content_id == manifest.content_id
    assert len({manifest.content_id, *(other.content_id for other in others)}) == 5


def _set(*path: Any, value: Any) -> Any:
    def change(document: Any) -> None:
        for part in path[:-1]:
            document = document[part]
        document[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("format_version", value=1), "format version 1, this program reads 2"),
        (_set("content_id", value="0" * 64), "content id is"),
        (_set("class_names", 0, value="cloud"), "content id is"),
        (_set("class_names", value=[]), "class_names"),
        (_set("palette", value=[[0, 0, 0]]), "1 colours for 3 classes"),
        (_set("palette", 0, 0, value=256), "palette.0.0"),
        (_set("ignore_index", value=1), "also a class"),
        (_set("splits", value={}), "splits"),
        (_set("splits", "train", "num_samples", value=8), "'train' has 8 samples, its shards 9"),
        (_set("splits", "train", "shards", 0, "sha256", value="xyz"), "sha256"),
        (_set("splits", "train", "shards", 0, "sha256", value="0" * 64), "content id is"),
        (_set("splits", "train", "shards", 0, "file", value="../../etc/passwd"), "not a shard's name"),
        (_set("splits", "train", "shards", 0, "file", value="pipe:touch X"), "not a shard's name"),
        (_set("splits", "train", "shards", 0, "file", value="val-000000.tar"), "listed twice"),
        (_set("index", "file", value="../samples.parquet"), "index.file"),
        (_set("extra", value=1), "extra"),
        (_set("name", value="other"), "digest is"),
        (_set("index", "bytes", value=1), "digest is"),
        (_set("images", value="jpeg95"), "digest is"),
        (_set("digest", value="0" * 64), "digest is"),
        (lambda _document: None, "its bytes are not those"),  # the same values, laid out in another way
    ],
)
def test_damaged_manifests_are_refused(shared_dataset: Path, tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Manifest.load(rewritten(shared_dataset, tmp_path, change))
    assert "manifest.json" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format_version": 2}', "\x00", "[" * 100_000])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match="damaged"):
        Manifest.load(tmp_path)


def test_no_flipped_bit_passes(shared_dataset: Path) -> None:
    data = (shared_dataset / "manifest.json").read_bytes()
    for place in range(len(data)):
        for bit in range(8):
            flipped = data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
            with pytest.raises(DataError, match=r"here is|here has format version"):
                Manifest.parse(flipped, "here")
    for cut in range(len(data)):
        with pytest.raises(DataError):
            Manifest.parse(data[:cut], "here")


@pytest.mark.parametrize("name", ["train-000000.tar", "Shard_7.of.9.tar", "a.tar", "x" * 121 + ".tar"])
def test_any_plain_shard_name_is_taken(shared_dataset: Path, name: str) -> None:
    manifest = Manifest.load(shared_dataset)
    train = manifest.splits["train"]
    renamed = replace(manifest, splits={"train": replace(train, shards=(replace(train.shards[0], file=name),))})
    assert Manifest.parse(renamed.encode(), "here") == renamed


@pytest.mark.parametrize(
    "name", ["../a.tar", ".a.tar", "a/b.tar", "a.tar.gz", "pipe:x.tar", "x" * 122 + ".tar", "ü.tar"]
)
def test_shard_names_that_could_lead_elsewhere_are_refused(shared_dataset: Path, name: str) -> None:
    manifest = Manifest.load(shared_dataset)
    train = manifest.splits["train"]
    renamed = replace(manifest, splits={"train": replace(train, shards=(replace(train.shards[0], file=name),))})
    with pytest.raises(DataError, match="not a shard's name"):
        Manifest.parse(renamed.encode(), "here")


def test_missing_datasets_and_splits(shared_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the folder does not exist"):
        Manifest.load(tmp_path / "nothing")
    with pytest.raises(DataError, match="run 'segfleet prepare'"):
        Manifest.load(tmp_path)
    with pytest.raises(DataError, match="no split 'test'; it has train, val"):
        Manifest.load(shared_dataset).split("test")


def test_a_file_address_is_a_path(shared_dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "with space"
    shutil.copytree(shared_dataset, copy)
    assert Manifest.load(copy.as_uri()) == Manifest.load(copy)
    assert resolve_location("file://localhost/data/x") == Path("/data/x")


@pytest.mark.parametrize(
    "location",
    ["pipe:touch canary", "pipe:cat x|sh", "http://host/x", "s3://bucket/x", "file://host/x", "", " ", "a\0b"],
)
def test_locations_that_are_no_folder_are_refused(location: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="location"):
        resolve_location(location)
    assert not list(tmp_path.iterdir())
