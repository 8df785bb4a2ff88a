from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segfleet_pipelines.datasets.base import RawDataset, RawSample
from segfleet_pipelines.datasets.class_table import class_table
from segfleet_pipelines.datasets.sources import FileSource
from segfleet_pipelines.label_mistakes import explain, explain_colors, explain_modes, explain_values, refusal

LABEL_IDS = class_table("cityscapes").labels
ADE = class_table("ade20k").labels
PALETTE = ((0, 0, 255), (90, 90, 90))


@pytest.mark.parametrize(
    ("present", "num_classes", "ignore_index", "label_map", "message"),
    [
        (
            {*range(151)},
            150,
            255,
            None,
            r"labels 0-150; .*reduced zero label, as in ADE20K.*\{0: 255, 1: 0, 2: 1, ...\}",
        ),
        ({1, 2, 3}, 3, 255, None, r"count from 1, off by one for the classes 0-2"),
        ({1, 2, 3, 255}, 3, 255, None, r"labels 1-3, 255; they count from 1"),
        ({0, 7, 8, 26, 33}, 19, 255, None, r"Cityscapes label ids \(0-33\) where 19 train ids are expected"),
        ({0, 5, 18, 255}, 19, 255, LABEL_IDS, r"Cityscapes train ids \(0-18, 255\), but label_map expects label ids"),
        ({0, 1, 255}, 2, 254, None, r"set ignore_index to 255"),
        ({0, 255}, 2, 254, None, r"label_map \{0: 0, 255: 1\}"),
        ({0, 127, 254}, 3, 255, None, r"3 grey values stand for 3 classes: .*label_map \{0: 0, 127: 1, 254: 2\}"),
        ({0, 3, 4, 5, 6}, 3, 255, None, r"3 classes have labels 0-2"),
        ({0, 1, 2}, 2, 255, {1: 0, 2: 1}, r"says nothing of 0; if 0 is the background"),
        ({1, 2, 255}, 2, 255, {1: 0, 2: 1}, r"says nothing of 255; if 255 marks ignored pixels, add 255: 255"),
        ({1, 7, 8, 9}, 2, 255, {1: 0, 2: 1}, r"says nothing of 7-9; add each"),
        ({0, 1, 2, 255}, 3, 255, None, "^$"),
        ({0, 150}, 150, 255, ADE, "^$"),
        (set(), 3, 255, None, "^$"),
    ],
)
def test_foreign_labels_are_explained(
    present: set[int], num_classes: int, ignore_index: int, label_map: dict[int, int] | None, message: str
) -> None:
    assert re.search(message, explain_values(present, num_classes, ignore_index, label_map))


def dataset(folder: Path, masks: list[Image.Image], suffix: str = "png") -> RawDataset:
    samples = []
    for i, image in enumerate(masks):
        image.save(folder / f"{i}.{suffix}")
        samples.append(RawSample(str(i), FileSource(folder / f"{i}.jpg"), FileSource(folder / f"{i}.{suffix}")))
    return RawDataset("mine", ("sky", "road"), PALETTE, 255, None, {"train": samples})


def test_colour_masks_are_named_with_their_colours(tmp_path: Path) -> None:
    pixels = np.zeros((10, 10, 3), np.uint8)
    pixels[:7], pixels[7:] = PALETTE
    (line,) = explain(dataset(tmp_path, [Image.fromarray(pixels)]))
    assert (
        "masks are colour pictures (RGB) with 2 colours: (0, 0, 255) 70.0 % = sky, (90, 90, 90) 30.0 % = road" in line
    )
    assert "these are the colours of the class table" in line
    assert "save an 8-bit palette (P) or grey (L) PNG" in line


def test_colours_that_are_of_no_class_are_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (line,) = explain(dataset(tmp_path, [Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))]))
    assert "and 392 more" in line
    assert "few of them are colours of the class table" in line


def test_blurred_and_deep_masks_are_named(tmp_path: Path) -> None:
    (line,) = explain(dataset(tmp_path, [Image.new("L", (8, 8), 1)], "jpg"))
    assert "masks are JPEG, which blurs labels" in line
    assert explain_modes(Counter({"PNG I;16": 3, "PNG 1": 1, "PNG L": 5})) == [
        "masks are PNG 1, PNG I;16; save them as PNG with one 8-bit label a pixel"
    ]


def test_the_refusal_lists_the_samples_and_the_mistake_behind_them(tmp_path: Path) -> None:
    broken = dataset(tmp_path, [Image.new("L", (8, 8), label) for label in (1, 2, 2)])
    (tmp_path / "1.png").write_bytes(b"no picture")
    text = str(refusal(broken, ["0.png: label 2 out of range"]))
    assert "samples cannot be used; mend or remove them (1):\n  - 0.png: label 2 out of range\n" in text
    assert text.endswith(
        "\nprobably: the masks hold labels 1-2; they count from 1, off by one for the classes 0-1: "
        "add label_map {1: 0, 2: 1, ...}, with 255: 255 if there are ignored pixels"
    )


def test_a_few_masks_of_many_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = dataset(tmp_path, [Image.new("L", (8, 8), 9)]).splits["train"][0]
    reads = []
    monkeypatch.setattr(FileSource, "read", lambda self: reads.append(self) or self.path.read_bytes())
    explain(RawDataset("mine", ("sky", "road"), PALETTE, 255, None, {"train": [one] * 1000}))
    assert 20 <= len(reads) <= 30


def test_classes_that_share_a_colour_are_both_named() -> None:
    (line,) = explain_colors(Counter({(9, 9, 9): 3}), ("road", "skyscraper"), ((9, 9, 9), (9, 9, 9)))
    assert "(9, 9, 9) 100.0 % = road / skyscraper" in line
