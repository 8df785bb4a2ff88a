from __future__ import annotations

import re

import numpy as np
import pytest

from segfleet_pipelines.datasets.class_table import class_table
from segfleet_pipelines.labels import LabelReport, describe, find_doubts, percent, ranges, report_labels, some

NAMES = ("sky", "road", "tree", "car")


def report(class_pixels: list[list[int]], pixels: int = 100, names: tuple[str, ...] = NAMES) -> LabelReport:
    counts = np.array(class_pixels)
    sizes = np.tile(np.array([[1, pixels]], np.int32), (len(counts), 1))
    return report_labels("train", names, [f"s{i}" for i in range(len(counts))], counts, sizes)


def with_classes(seen: set[int], count: int, ignored: float = 0.0) -> LabelReport:
    never = tuple(f"c{label}" for label in range(count) if label not in seen)
    return LabelReport("train", 9, tuple(sorted(seen)), never, ignored, ())


def test_a_report_counts_what_the_masks_hold() -> None:
    found = report([[50, 0, 0, 50], [0, 0, 0, 0], [40, 0, 10, 10]])
    assert found.num_pictures == 3
    assert found.seen == (0, 2, 3)
    assert found.never_seen == ("road",)
    assert found.empty == ("s1",)
    assert found.ignored_share == pytest.approx(140 / 300)
    assert describe(found, 255) == (
        "train: 3 of 4 classes seen (labels 0, 2-3), 1 never; 46.7 % of the pixels ignored (255); "
        "1 of 3 pictures with nothing valid"
    )
    assert "0 of 4 classes seen (labels none), 4 never; 100.0 %" in describe(report([[0, 0, 0, 0]]), 255)


def test_counts_of_many_large_pictures_do_not_overflow() -> None:
    sizes = np.full((10, 2), 40_000, np.int32)
    counts = np.full((10, 1), 40_000 * 40_000)
    assert report_labels("train", ("a",), list("abcdefghij"), counts, sizes).ignored_share == 0


def test_sound_labels_raise_no_doubt() -> None:
    assert find_doubts(report([[25, 25, 25, 25]]), NAMES) == []


def test_doubts_name_classes_pictures_and_shares() -> None:
    doubts = find_doubts(report([[10, 0, 0, 10], [0, 0, 0, 0], [10, 0, 10, 0]]), NAMES)
    assert doubts == [
        "train: 1 of 4 classes never occur: road",
        "train: 86.7 % of the pixels are ignored; look at the label map",
        "train: 1 pictures have no labelled pixel: s1",
    ]
    assert find_doubts(report([[0, 0, 0, 0]]), NAMES) == [
        "train: every pixel is ignored; look at label_map and ignore_index"
    ]


def test_a_class_named_void_is_doubted() -> None:
    names = ("road", "Void")
    (doubt,) = find_doubts(report([[60, 40]], names=names), names)
    assert "class 'Void' is trained and scored like any other" in doubt


@pytest.mark.parametrize(
    ("seen", "count", "ignored", "message"),
    [
        ({0}, 2, 0.2, r"masks hold 0 and 255.*label_map \{0: 0, 255: 1\}"),
        ({1, 2, 3}, 4, 0.0, r"all classes but 'c0' \(label 0\).*off by one.*background"),
        ({0, 1, 2}, 4, 0.0, r"all classes but the last, 'c3' \(label 3\).*reduced zero label"),
        ({0, 1}, 4, 0.0, "2 of 4 classes never occur: c2, c3"),
        ({0}, 2, 0.0, "1 of 2 classes never occur: c1"),
    ],
)
def test_a_mapping_mistake_is_named(seen: set[int], count: int, ignored: float, message: str) -> None:
    names = [f"c{label}" for label in range(count)]
    (doubt,) = find_doubts(with_classes(seen, count, ignored), names)
    assert re.search(message, doubt)


def test_train_ids_read_as_label_ids_are_recognised_after_the_fact() -> None:
    table = class_table("cityscapes")
    assert table.labels is not None
    seen = {table.labels[train_id] for train_id in range(19)} - {255}
    doubts = find_doubts(with_classes(seen, 19, 0.9), table.names)
    assert "seem to hold train ids already" in doubts[0]
    assert "90.0 % of the pixels are ignored" in doubts[1]


def test_words_for_people() -> None:
    assert ranges([0, 1, 2, 7, 255]) == "0-2, 7, 255"
    assert ranges([]) == ""
    assert percent(0.0004) == "less than 0.1 %"
    assert percent(0) == "0.0 %"
    assert some(map(str, range(12))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
