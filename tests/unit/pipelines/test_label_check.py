"""The label check where people meet it: in prepare's errors and notes, and in the commands' output."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segfleet.errors import DataError
from segfleet.spec.kinds import PrepareSpec
from segfleet_pipelines.labels import label_warnings
from segfleet_pipelines.reader import SampleIndex
from segfleet_pipelines.tool import main
from segfleet_pipelines.writer import prepare


def write_folder(raw: Path, labels: list[int], mode: str = "L") -> Path:
    """Four pictures whose masks hold all the labels, each as often."""
    for folder in ("images", "masks"):
        (raw / folder).mkdir(parents=True)
    for i in range(4):
        Image.new("RGB", (len(labels), 4)).save(raw / "images" / f"s{i}.png")
        mask = Image.fromarray(np.tile(np.array(labels, np.uint8), (4, 1)))
        mask.convert(mode).save(raw / "masks" / f"s{i}.png")
    (raw / "classes.yaml").write_text("names: [sky, road, tree]\ncolors: [[0, 0, 0], [1, 1, 1], [2, 2, 2]]\n")
    return raw


@pytest.mark.parametrize(
    ("labels", "mode", "message"),
    [
        ([1, 2, 3], "L", r"\(4\)(.|\n)*label 3 out of range(.|\n)*probably: .*off by one"),
        ([0, 1, 2], "RGB", r"\(4\)(.|\n)*probably: masks are colour pictures \(RGB\) with 3 colours: .* = road"),
    ],
)
def test_a_refused_preparation_names_the_mistake(
    tmp_path: Path, prepare_spec: Callable[..., PrepareSpec], labels: list[int], mode: str, message: str
) -> None:
    raw = write_folder(tmp_path / "raw", labels, mode)
    with pytest.raises(DataError, match=message):
        prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "out")))


def test_prepare_and_inspect_end_with_the_label_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, out = write_folder(tmp_path / "raw", [1, 2, 255, 255, 255, 255]), str(tmp_path / "out")
    assert main(["prepare", "folder", "--raw", str(raw), "--out", out, "--processes", "1", "--val-share", "0"]) == 0
    line = (
        "train: 2 of 3 classes seen (labels 1-2), 1 never; 66.7 % of the pixels ignored (255); "
        "0 of 4 pictures with nothing valid"
    )
    printed = capsys.readouterr()
    assert line in printed.out.splitlines()
    assert "warning: train: all classes but 'sky' (label 0) occur" in printed.err
    assert "warning: train: 66.7 % of the pixels are ignored" in printed.err
    assert main(["inspect", out, "--sheet", str(tmp_path / "a.png")]) == 0
    again = capsys.readouterr()
    assert line in again.out.splitlines()
    warned = [text.removeprefix("warning: ") for text in again.err.splitlines()]
    assert warned == label_warnings(SampleIndex.load(out, "train"))
    assert main(["inspect", out, "--sheet", str(tmp_path / "a.png"), "--json"]) == 0
    train = json.loads(capsys.readouterr().out)["splits"]["train"]
    assert train["labels"]["never_seen"] == ["sky"]
    assert train["doubts"] == warned


def test_cityscapes_is_prepared_with_train_ids_and_a_word_on_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, labels in (("train", [7, 26]), ("val", [33, 0]), ("test", [0, 0])):
        stem = f"{split}/bonn/bonn{split}_000000_000019"
        for kind in ("leftImg8bit", "gtFine"):
            (tmp_path / "raw" / kind / split / "bonn").mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / "raw" / "leftImg8bit" / f"{stem}_leftImg8bit.png")
        mask = Image.fromarray(np.array([labels, labels], np.uint8))
        mask.save(tmp_path / "raw" / "gtFine" / f"{stem}_gtFine_labelIds.png")
    arguments = ["cityscapes", "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--processes", "1"]
    assert main(["prepare", *arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["samples"] == {"train": 1, "val": 1}
    assert document["notes"] == ["split test is left out: its labels are not public"]
    train, val = (SampleIndex.load(tmp_path / "out", split).class_pixels[0] for split in ("train", "val"))
    assert (train[0], train[13], train.sum()) == (2, 2, 4)
    assert (val[18], val.sum()) == (2, 2)


@pytest.mark.parametrize("name", ["pascal_context", "pascal_context_59"])
def test_the_manifest_says_how_many_context_classes_there_are(
    tmp_path: Path, prepare_spec: Callable[..., PrepareSpec], name: str
) -> None:
    root = tmp_path / "VOC2010"
    for folder in ("JPEGImages", "SegmentationClassContext", "ImageSets/SegmentationContext"):
        (root / folder).mkdir(parents=True)
    Image.new("RGB", (2, 1)).save(root / "JPEGImages/a.jpg")
    Image.fromarray(np.array([[0, 59]], np.uint8)).save(root / "SegmentationClassContext/a.png")
    (root / "ImageSets/SegmentationContext/train.txt").write_text("a\n")
    manifest = prepare(prepare_spec(dataset=name, raw=str(root), out=str(tmp_path / "out")))
    counts = SampleIndex.load(tmp_path / "out", "train").class_pixels[0]
    assert manifest.name == name
    assert (manifest.num_classes, counts[-1], counts[0], counts.sum()) == (
        (60, 1, 1, 2) if name == "pascal_context" else (59, 1, 0, 1)
    )
