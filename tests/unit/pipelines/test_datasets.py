from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segfleet.errors import DataError
from segfleet_pipelines.datasets.class_table import own_palette
from segfleet_pipelines.datasets.opening import open_dataset
from segfleet_pipelines.datasets.sources import FileSource
from segfleet_pipelines.datasets.synthetic import CLASSES, draw_landscape, generate


def folder(raw: Path, val_share: float = 0.2, seed: int = 0):
    return open_dataset("folder", raw, val_share=val_share, seed=seed)


def test_a_folder_is_read(raw: Path) -> None:
    dataset = folder(raw)
    assert dataset.class_names == ("sky", "road", "tree")
    assert dataset.palette[2] == (0, 99, 0)
    assert dataset.ignore_index == 255
    assert dataset.label_map is None
    assert {name: len(samples) for name, samples in dataset.splits.items()} == {"train": 9, "val": 2}
    for samples in dataset.splits.values():
        assert all(Path(str(sample.image)).stem == Path(str(sample.mask)).stem == sample.key for sample in samples)


def test_the_split_depends_on_its_seed_alone(raw: Path) -> None:
    chosen = {tuple(sample.key for sample in folder(raw, seed=seed).splits["val"]) for seed in (0, 0, 1, 2, 3)}
    assert 2 <= len(chosen) <= 4
    assert list(folder(raw, val_share=0.0).splits) == ["train"]
    assert len(folder(raw, val_share=0.01).splits["val"]) == 1
    assert len(folder(raw, val_share=0.99).splits["train"]) == 1
    with pytest.raises(DataError, match="val share of 1"):
        folder(raw, val_share=1.0)


def test_split_lists_are_followed(raw: Path) -> None:
    (raw / "splits").mkdir()
    (raw / "splits" / "train.txt").write_text("s03\ns01\n\n")
    (raw / "splits" / "val.txt").write_text("s00\n")
    splits = {name: [sample.key for sample in samples] for name, samples in folder(raw).splits.items()}
    assert splits == {"train": ["s03", "s01"], "val": ["s00"]}


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ("s00\ns99\n", "s01\n", "s99"),
        ("s00\n", "", "split 'val' is empty"),
        ("s00\ns01\n", "s01\n", "in train and .*s01.* in val"),
        ("s00\ns00\n", "s01\n", "in train and .* in train"),
    ],
)
def test_wrong_split_lists_are_refused(raw: Path, train: str, val: str, message: str) -> None:
    (raw / "splits").mkdir()
    (raw / "splits" / "train.txt").write_text(train)
    (raw / "splits" / "val.txt").write_text(val)
    with pytest.raises(DataError, match=message):
        folder(raw)


def test_a_split_needs_a_name_that_a_spec_can_give(raw: Path) -> None:
    (raw / "splits").mkdir()
    (raw / "splits" / "My Split.txt").write_text("s00\n")
    with pytest.raises(DataError, match="cannot name a split"):
        folder(raw)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a, b]\nignore_index: 1", "also the label of class 'b'"),
        ("names: [a, a]", "listed twice"),
        ("names: []", "names"),
        ("names: [a]\ncolors: [[1, 2, 3], [4, 5, 6]]", "2 colours for 1 classes"),
        ("names: [a]\ncolors: [[1, 2, 300]]", "colors.0.2"),
        ("names: [a]\ncolour: x", "colour"),
        ("names: [a]\nlabel_map: {x: 0}", "'x' is not a label"),
        ("names: [a]\nlabel_map: {256: 0}", "'256' is not a label"),
        ("names: [a]\nlabel_map: {7: 3}", "7 -> 3 is neither"),
        ("names: [a]\nnames: [b]", "duplicate key"),
        ("names: !!python/object/apply:os.system [x]", "not allowed"),
        ("[a, b]", "a list"),
    ],
)
def test_wrong_class_files_are_refused(raw: Path, text: str, message: str) -> None:
    (raw / "classes.yaml").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        folder(raw)
    assert "classes.yaml" in str(caught.value)


def test_lonely_files_are_all_listed(raw: Path) -> None:
    (raw / "masks" / "s01.png").unlink()
    (raw / "images" / "s02.jpg").unlink()
    with pytest.raises(DataError, match=r"\(2\)") as caught:
        folder(raw)
    assert "s01.jpg: no mask" in str(caught.value)
    assert "s02.png: no picture" in str(caught.value)


def test_twenty_are_named_and_all_are_counted(raw: Path) -> None:
    for i in range(50):
        (raw / "images" / f"x{i}.jpg").touch()
    with pytest.raises(DataError, match=r"\(50\)") as caught:
        folder(raw)
    assert str(caught.value).count("no mask") == 20
    assert "and 30 more" in str(caught.value)


def test_doubtful_files_are_refused(raw: Path) -> None:
    (raw / "images" / "notes.txt").touch()
    (raw / "images" / "s01.png").write_bytes((raw / "images" / "s00.png").read_bytes())
    (raw / "images" / ".DS_Store").touch()
    with pytest.raises(DataError, match=r"\(2\)") as caught:
        folder(raw)
    assert "notes.txt" in str(caught.value)
    assert "same stem" in str(caught.value)


def test_dots_leave_the_key_and_may_not_join_two_samples(raw: Path) -> None:
    for stem in ("a.b", "a_b"):
        (raw / "images" / f"{stem}.png").write_bytes((raw / "images" / "s00.png").read_bytes())
        (raw / "masks" / f"{stem}.png").write_bytes((raw / "masks" / "s00.png").read_bytes())
    with pytest.raises(DataError, match=r"a_b: .*a\.b\.png"):
        folder(raw)


@pytest.mark.parametrize("missing", ["images", "masks", "classes.yaml"])
def test_missing_parts_are_named(raw: Path, missing: str) -> None:
    (raw / missing).rename(raw / "elsewhere")
    with pytest.raises(DataError, match=missing):
        folder(raw)


def test_unknown_layouts_are_refused(raw: Path) -> None:
    with pytest.raises(DataError, match="unknown dataset layout 'coco'; use folder, ade20k, camvid"):
        open_dataset("coco", raw, val_share=0.2, seed=0)


def test_own_colours_differ() -> None:
    assert len(set(own_palette(150))) == 150


def write_camvid(root: Path) -> Path:
    for split, count in (("train", 3), ("val", 1)):
        lines = []
        for folder_name in (split, f"{split}annot"):
            (root / folder_name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 6)).save(root / split / f"{split}_{i}.png")
            Image.new("L", (8, 6), 11).save(root / f"{split}annot" / f"{split}_{i}.png")
            lines.append(f"/SegNet/CamVid/{split}/{split}_{i}.png /SegNet/CamVid/{split}annot/{split}_{i}.png")
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("around", [False, True])
def test_camvid_is_read(tmp_path: Path, around: bool) -> None:
    root = write_camvid(tmp_path / "CamVid")
    dataset = open_dataset("camvid", tmp_path if around else root, val_share=0.2, seed=0)
    assert len(dataset.class_names) == len(dataset.palette) == 11
    assert dataset.label_map is not None
    assert (dataset.label_map[11], dataset.label_map[10], dataset.ignore_index) == (255, 10, 255)
    assert [sample.key for sample in dataset.splits["train"]] == ["train_0", "train_1", "train_2"]
    assert dataset.splits["val"][0].mask == FileSource(root / "valannot" / "val_0.png")


def test_camvid_files_that_are_missing_are_listed(tmp_path: Path) -> None:
    root = write_camvid(tmp_path)
    (root / "trainannot" / "train_1.png").unlink()
    with pytest.raises(DataError, match=r"trainannot/train_1.png"):
        open_dataset("camvid", root, val_share=0.2, seed=0)
    (root / "train.txt").write_text("/a/../x.png /a/../y.png\n")
    with pytest.raises(DataError, match="leads out of the folder"):
        open_dataset("camvid", root, val_share=0.2, seed=0)
    (root / "train.txt").write_text("just-one\n")
    with pytest.raises(DataError, match="line 1"):
        open_dataset("camvid", root, val_share=0.2, seed=0)
    with pytest.raises(DataError, match=r"train\.txt"):
        open_dataset("camvid", root / "train", val_share=0.2, seed=0)


def test_synthetic_pictures_follow_the_seed(tmp_path: Path) -> None:
    for name, seed, count in (("a", 0, 4), ("b", 0, 5), ("c", 1, 4)):
        generate(tmp_path / name, samples=count, seed=seed)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 9
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    assert any((tmp_path / "a" / f).read_bytes() != (tmp_path / "c" / f).read_bytes() for f in files)
    dataset = folder(tmp_path / "b")
    assert dataset.class_names == tuple(CLASSES)
    assert len(dataset.class_names) >= 8
    with pytest.raises(DataError, match="not an empty folder"):
        generate(tmp_path / "a", samples=1, seed=0)


def test_synthetic_pictures_vary() -> None:
    scenes = [draw_landscape(np.random.default_rng(i)) for i in range(24)]
    assert len({mask.shape for _, mask in scenes}) > 20
    assert all(96 <= side <= 176 for _, mask in scenes for side in mask.shape)
    counts = sum(np.bincount(mask.ravel(), minlength=256) for _, mask in scenes)
    shares = counts / counts.sum()
    assert set(np.flatnonzero(counts)) == {*range(len(CLASSES)), 255}
    assert shares[: len(CLASSES)].max() < 0.4
    assert shares[: len(CLASSES)].min() > 0.01
    assert 0.02 < shares[255] < 0.12
