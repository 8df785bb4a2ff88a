"""The charts of a report: files of the right kind with something on them, numbers that are right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segfleet_jobs.charts import (
    draw_classes,
    draw_confusion,
    draw_curves,
    draw_time,
    largest_confusions,
    normalised,
    shortened,
    smoothed,
)
from segfleet_jobs.embedding_picture import draw_embeddings, embedding_coordinates

CURVES = {
    "loss": [(step, 1 / step) for step in range(1, 40)],
    "miou": [(20, 0.3), (39, 0.2)],
    "lr": [(step, 0.001) for step in range(1, 40)],
    "samples_per_s": [],
}
HOSTILE = ["$x_{", "<b>", "a" * 80, "Über & Unter", "\\frac"]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: draw_curves(CURVES, 0.1, path, 20),
        lambda path: draw_curves(dict.fromkeys(CURVES, ()), 0.1, path),
        lambda path: draw_classes({name: 0.1 * i for i, name in enumerate(HOSTILE)}, path, {"<b>": (1, 2, 3)}),
        lambda path: draw_classes({"absent": None}, path),
        lambda path: draw_confusion(np.diag([5, 4, 3, 2, 1]), HOSTILE, path),
        lambda path: draw_time({"step": 3.0, "data": 0.0}, path),
        lambda path: draw_embeddings(np.eye(5), HOSTILE, [(9, 9, 9)] * 5, path),
    ],
)
def test_a_chart_is_a_picture_with_something_on_it(draw: Callable[[Path], object], tmp_path: Path) -> None:
    draw(tmp_path / "chart.png")
    drawn = pixels(tmp_path / "chart.png")
    assert min(drawn.shape[:2]) > 100
    assert 0.005 < (drawn < 250).any(axis=2).mean() < 0.9


def test_many_classes_get_columns_and_keep_their_height(tmp_path: Path) -> None:
    draw_classes({f"class {i}": i / 150 for i in range(26)}, tmp_path / "few.png")
    draw_classes({f"class {i}": i / 150 for i in range(52)}, tmp_path / "many.png")
    few, many = pixels(tmp_path / "few.png"), pixels(tmp_path / "many.png")
    assert many.shape[0] == few.shape[0]
    assert many.shape[1] > few.shape[1]


def test_the_confusion_picture_shows_where_pixels_went(tmp_path: Path) -> None:
    draw_confusion(np.array([[10, 0], [0, 10]]), ["a", "b"], tmp_path / "right.png")
    draw_confusion(np.array([[0, 10], [10, 0]]), ["a", "b"], tmp_path / "wrong.png")
    right, wrong = pixels(tmp_path / "right.png"), pixels(tmp_path / "wrong.png")
    assert right.shape == wrong.shape
    assert (right != wrong).any()


def test_classes_that_do_not_occur_take_no_room_in_the_confusion_picture(tmp_path: Path) -> None:
    matrix = np.zeros((9, 9), np.int64)
    matrix[:4, :4] = 1
    names = [f"n{i}" for i in range(9)]
    draw_confusion(matrix, names, tmp_path / "some.png")
    draw_confusion(matrix[:4, :4], names[:4], tmp_path / "alone.png")
    assert np.array_equal(pixels(tmp_path / "some.png"), pixels(tmp_path / "alone.png"))


def test_a_confusion_matrix_of_other_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(2, 2\) does not fit 3 classes"):
        draw_confusion(np.eye(2, dtype=np.int64), ["a", "b", "c"], tmp_path / "x.png")


def test_rows_are_normalised_and_the_largest_confusions_come_first() -> None:
    matrix = np.array([[6, 2, 0], [1, 0, 3], [0, 0, 0]])
    assert normalised(matrix).tolist() == [[0.75, 0.25, 0], [0.25, 0, 0.75], [0, 0, 0]]
    assert largest_confusions(matrix, ["a", "b", "c"], 2) == [("b", "c", 0.75, 0.5), ("a", "b", 0.25, 2 / 6)]
    assert largest_confusions(np.diag([1, 2, 3]), ["a", "b", "c"]) == []


def test_smoothing_begins_at_the_first_value_and_follows() -> None:
    assert smoothed([(1, 4.0)]) == [(1, pytest.approx(4.0))]
    assert smoothed([(1, 0.0), (2, 1.0)], 0.5)[1][1] == pytest.approx(2 / 3)


def test_a_label_is_the_first_synonym_and_not_too_long() -> None:
    assert shortened("swimming pool;swimming bath") == "swimming pool"
    assert len(shortened("x" * 90)) == 28
    assert shortened("; odd") == "; odd"


def test_the_embeddings_coordinates_are_the_first_two_of_the_centred_decomposition() -> None:
    embeddings = np.random.default_rng(1).normal(size=(7, 12)) + 5
    coordinates, shares = embedding_coordinates(embeddings)
    centred = embeddings - embeddings.mean(0)
    # By the other way: eigenvectors of the Gram matrix.
    values, vectors = np.linalg.eigh(centred @ centred.T)
    for column, i in enumerate((-1, -2)):
        expected = vectors[:, i] * np.sqrt(values[i])
        sign = np.sign(expected[np.abs(expected).argmax()])
        assert np.allclose(coordinates[:, column], sign * expected)
        assert shares[column] == pytest.approx(values[i] / values.sum())
    assert np.array_equal(embedding_coordinates(embeddings)[0], coordinates)


def test_names_of_embeddings_that_find_no_room_are_counted(tmp_path: Path) -> None:
    names, palette = [f"a long enough name {i}" for i in range(40)], [(50, 60, 70)] * 40
    spread = np.random.default_rng(0).normal(size=(6, 4))
    assert draw_embeddings(spread, names[:6], palette[:6], tmp_path / "few.png") == 0
    crowd = np.zeros((40, 4))
    crowd[:2] = np.eye(4)[:2]
    assert 0 < draw_embeddings(crowd, names, palette, tmp_path / "crowd.png") < 39
