from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from segfleet.errors import DataError
from segfleet_pipelines import sheet
from segfleet_pipelines.manifest import Manifest
from segfleet_pipelines.reader import SampleIndex
from segfleet_pipelines.sheet import compose_sheet, write_sheet
from segfleet_pipelines.summary import summarize


@pytest.mark.parametrize(("split", "count"), [("train", 1), ("train", 4), ("train", 99), ("val", 2)])
def test_a_sheet_shows_pictures_and_a_legend(shared_dataset: Path, tmp_path: Path, split: str, count: int) -> None:
    write_sheet(shared_dataset, tmp_path / "sheet.png", split, count)
    with Image.open(tmp_path / "sheet.png") as image:
        colors = {color: count for count, color in image.getcolors(image.width * image.height)}
        assert colors[(255, 255, 255)] < 0.8 * image.width * image.height
    assert {*Manifest.load(shared_dataset).palette} <= colors.keys()


def test_ignored_pixels_are_striped_and_classes_of_one_colour_share_an_entry(
    shared_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    legends = []

    def compose(title: str, rows: list, entries: list, **options: int) -> Image.Image:
        legends.append(entries)
        return compose_sheet(title, rows, entries, **options)

    monkeypatch.setattr(sheet, "compose_sheet", compose)
    index = SampleIndex.load(shared_dataset, "train")
    twins = replace(index.manifest, palette=((9, 9, 9), (9, 9, 9), (0, 99, 0)))
    monkeypatch.setattr(index, "manifest", twins)
    monkeypatch.setattr(sheet.SampleIndex, "load", lambda *_: index)
    write_sheet(shared_dataset, tmp_path / "sheet.png", "train", 2)
    assert legends == [[("sky / road", (9, 9, 9)), ("tree", (0, 99, 0))]]
    with Image.open(tmp_path / "sheet.png") as image:
        assert (150, 150, 150) in {color for _, color in image.getcolors(image.width * image.height)}


def test_a_sheet_that_cannot_be_written_is_an_error(shared_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        write_sheet(shared_dataset, tmp_path / "nowhere" / "sheet.png", "train", 1)


def test_the_summary_counts_pixels(shared_dataset: Path) -> None:
    summary = summarize(shared_dataset)
    index = SampleIndex.load(shared_dataset, "train")
    train = summary.splits["train"]
    total = int((index.sizes[:, 0] * index.sizes[:, 1]).sum())
    assert train.pixel_shares == pytest.approx((index.class_pixels.sum(axis=0) / total).tolist())
    assert train.ignored_share == pytest.approx(index.sizes[:, 0].sum() / total)  # one column of each picture
    assert summary.content_id == Manifest.load(shared_dataset).content_id
