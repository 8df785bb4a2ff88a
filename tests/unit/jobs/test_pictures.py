"""Sheets of predictions: what is wrong is orange, what is ignored is striped, every class has its colour."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from segfleet_jobs.pictures import encode_png, error_map, prediction_sheet
from segfleet_pipelines.manifest import FileInfo, Manifest, SplitInfo


def manifest() -> Manifest:
    index = FileInfo("samples.parquet", "0" * 64, 1)
    palette = ((10, 200, 30), (200, 10, 240))
    return Manifest("two", ("left", "right"), palette, 255, {"val": SplitInfo(1, ())}, index)


def test_errors_are_orange_on_dim_grey_and_ignored_pixels_striped() -> None:
    image = np.full((2, 3, 3), 120, np.uint8)
    truth = np.array([[0, 1, 255], [0, 0, 1]], np.uint8)
    predicted = np.array([[0, 0, 1], [0, 0, 1]], np.uint8)
    marked = error_map(image, truth, predicted, 255)
    assert marked[0, 1].tolist() == [255, 150, 0]
    assert marked[0, 2].tolist() in ([255] * 3, [150] * 3)
    assert marked[1].tolist() == [[70, 70, 70]] * 3


def test_ignored_pixels_show_both_stripes() -> None:
    image, truth = np.zeros((40, 40, 3), np.uint8), np.full((40, 40), 255, np.uint8)
    marked = error_map(image, truth, np.zeros_like(truth), 255)
    assert set(np.unique(marked).tolist()) == {150, 255}


def test_the_legend_holds_what_is_to_be_seen() -> None:
    image, left = np.full((30, 40, 3), 90, np.uint8), np.zeros((30, 40), np.uint8)
    with Image.open(io.BytesIO(prediction_sheet([("a", image, left, left)], manifest()))) as sheet:
        colours = {colour for _, colour in sheet.getcolors(1 << 20) or ()}
    assert (10, 200, 30) in colours
    assert (200, 10, 240) not in colours


def test_a_sheet_shows_every_sample_and_every_class() -> None:
    image = np.full((30, 40, 3), 90, np.uint8)
    truth = np.zeros((30, 40), np.uint8)
    truth[:, 20:] = 1
    one = prediction_sheet([("a", image, truth, truth)], manifest())
    two = prediction_sheet([("a", image, truth, truth), ("b", image, truth, 1 - truth)], manifest())
    with Image.open(io.BytesIO(one)) as first, Image.open(io.BytesIO(two)) as second:
        assert second.width == first.width
        assert second.height > first.height
        colours = {colour for _, colour in second.getcolors(1 << 20) or ()}
    assert {(10, 200, 30), (200, 10, 240), (255, 150, 0)} <= colours


def test_png_keeps_the_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(encode_png(image))) as decoded:
        assert np.array_equal(np.asarray(decoded), image)


def test_a_picture_without_labels_stands_on_the_sheet_too() -> None:
    image, nothing = np.full((30, 40, 3), 90, np.uint8), np.full((30, 40), 255, np.uint8)
    assert prediction_sheet([("a", image, nothing, np.zeros_like(nothing))], manifest())
