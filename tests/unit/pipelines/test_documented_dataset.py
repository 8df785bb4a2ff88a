from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segfleet.spec.kinds import PrepareSpec
from segfleet_pipelines.datasets import class_table, opening
from segfleet_pipelines.reader import SampleIndex
from segfleet_pipelines.writer import prepare

DOCUMENT = Path(__file__).parents[3] / "docs" / "data-format.md"


def example() -> dict[str, str]:
    """The documented files by their names."""
    section = DOCUMENT.read_text(encoding="utf-8").partition("### A new dataset")[2].partition("\n## ")[0]
    blocks = re.findall(r"```\w+\n# (\S+)\n(.*?)```", section, re.DOTALL)
    return dict(blocks)


def test_the_documented_new_dataset_can_be_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare_spec: Callable[..., PrepareSpec]
) -> None:
    files = example()
    assert [*files] == ["datasets/classes/leaves.yaml", "datasets/leaves.py"]
    assert sum(text.count("\n") for text in files.values()) <= 20
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    raw = tmp_path / "raw"
    for folder in ("photos", "labels"):
        (raw / folder).mkdir(parents=True)
    for i, split in enumerate(("train", "val")):
        Image.new("RGB", (8, 6)).save(raw / "photos" / f"leaf{i}.jpg")
        Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) % 3).save(raw / "labels" / f"leaf{i}.png")
        (raw / f"{split}.txt").write_text(f"leaf{i}\n")

    # The class table lies beside the others, and the new file's function is in the table of layouts.
    monkeypatch.setattr(class_table, "_FOLDER", tmp_path / "datasets" / "classes")
    opened = runpy.run_path(str(tmp_path / "datasets" / "leaves.py"))["open_leaves"]
    monkeypatch.setitem(opening.LAYOUTS, "voc", opened)
    manifest = prepare(prepare_spec(dataset="voc", raw=str(raw), out=str(tmp_path / "out")))

    assert (manifest.name, manifest.class_names) == ("leaves", ("leaf", "stem"))
    index = SampleIndex.load(tmp_path / "out", "train")
    assert index.keys[0] == "leaf0"
    assert index.class_pixels.tolist() == [[16, 16]]
