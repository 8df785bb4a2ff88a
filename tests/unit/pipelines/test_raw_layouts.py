from __future__ import annotations

import errno
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import scipy.io
from PIL import Image
from pycocotools import mask as coco

from segfleet.errors import DataError
from segfleet.spec.kinds import DatasetKind
from segfleet_pipelines.datasets import sources
from segfleet_pipelines.datasets.base import RawDataset, RawSample
from segfleet_pipelines.datasets.class_table import class_table
from segfleet_pipelines.datasets.opening import FOLDER, LAYOUTS, open_dataset
from segfleet_pipelines.datasets.pascal_context import CATEGORY_IDS
from segfleet_pipelines.datasets.sources import ZipSource, zip_members
from segfleet_pipelines.picture import decode_mask

SIZE = (8, 6)


def open_raw(kind: str, raw: Path) -> RawDataset:
    return open_dataset(kind, raw, val_share=0.2, seed=0)


def keys(dataset: RawDataset) -> dict[str, list[str]]:
    return {split: [sample.key for sample in samples] for split, samples in dataset.splits.items()}


def labels(sample: RawSample) -> np.ndarray:
    return decode_mask(sample.mask.read())


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE, (9, 99, 199)).save(path)


def mask(path: Path, label: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", SIZE, label).save(path)


def zipped(folder: Path, archive: Path, *tops: str) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(path for top in tops for path in (folder / top).rglob("*") if path.is_file()):
            file.write(path, path.relative_to(folder))
    return archive


def real_slice(name: str) -> Path:
    """A real slice of a dataset; skips where there is none."""
    place = os.environ.get("SEGFLEET_TEST_DATA") or Path(__file__).parents[4] / "shared" / "data"
    if (Path(place) / name).is_dir():
        return Path(place) / name
    pytest.skip(f"no slice of {name}: set SEGFLEET_TEST_DATA to a folder that holds one")


def test_every_layout_of_a_spec_is_in_the_table() -> None:
    assert {FOLDER, *LAYOUTS} == {*get_args(DatasetKind)} - {"synthetic"}


@pytest.mark.parametrize(
    ("name", "count", "samples"),
    [
        (
            "ade20k",
            150,
            {0: ("wall", (120, 120, 120)), 149: ("flag", (92, 0, 255)), 58: ("screen door", (0, 173, 255))},
        ),
        ("pascal_context", 60, {0: ("background", (0, 0, 0)), 1: ("aeroplane", None), 59: ("wood", None)}),
        ("cityscapes", 19, {0: ("road", (128, 64, 128)), 18: ("bicycle", (119, 11, 32))}),
        ("voc", 21, {1: ("aeroplane", (128, 0, 0)), 15: ("person", (192, 128, 128)), 20: ("tvmonitor", (0, 64, 128))}),
        ("camvid", 11, {0: ("sky", (128, 128, 128)), 10: ("bicyclist", (0, 128, 192))}),
    ],
)
def test_class_tables_hold_the_known_facts(name: str, count: int, samples: dict[int, Any]) -> None:
    table = class_table(name)
    assert (len(table.names), len(table.palette), table.ignore_index) == (count, count, 255)
    for label, (class_name, color) in samples.items():
        assert table.names[label] == class_name
        assert color is None or table.palette[label] == color
    shared = count - len(set(table.palette))
    assert shared == (1 if name == "ade20k" else 0)


def test_context_classes_are_in_the_order_of_their_categories() -> None:
    names = class_table("pascal_context").names
    assert len(CATEGORY_IDS) == len(names) == 60
    assert list(CATEGORY_IDS) == sorted(CATEGORY_IDS)
    assert names[1:] == sorted(names[1:])


def test_cityscapes_table_is_the_official_one() -> None:
    official = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    table = class_table("cityscapes")
    assert table.labels == {label.id: label.trainId for label in official if label.id >= 0}
    for label in official:
        if 0 <= label.trainId < 255:
            assert (table.names[label.trainId], table.palette[label.trainId]) == (label.name, label.color)


def write_ade20k(root: Path) -> Path:
    top = root / "ADEChallengeData2016"
    for folder, stems in (("training", ("ADE_train_00000002", "ADE_train_00000001")), ("validation", ("ADE_val_1",))):
        for stem in stems:
            picture(top / "images" / folder / f"{stem}.jpg")
            mask(top / "annotations" / folder / f"{stem}.png", 150)
    return top


def test_ade20k_is_read_unpacked_and_from_its_zip(tmp_path: Path) -> None:
    top = write_ade20k(tmp_path / "unpacked")
    (tmp_path / "packed").mkdir()
    archive = zipped(tmp_path / "unpacked", tmp_path / "packed" / "ADEChallengeData2016.zip", top.name)
    for raw in (top, top.parent, archive, archive.parent):
        dataset = open_raw("ade20k", raw)
        assert keys(dataset) == {"train": ["ADE_train_00000001", "ADE_train_00000002"], "val": ["ADE_val_1"]}
        sample = dataset.splits["train"][1]
        assert sample.image.read() == (top / "images/training/ADE_train_00000002.jpg").read_bytes()
        assert (labels(sample) == 150).all()
        assert sample.mask.size() == len(sample.mask.read())
        assert dataset.label_map == {0: 255, **{raw_label: raw_label - 1 for raw_label in range(1, 151)}}


def test_ade20k_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither ADEChallengeData2016 nor ADEChallengeData2016\.zip"):
        open_raw("ade20k", tmp_path)
    top = write_ade20k(tmp_path)
    (top / "annotations/training/ADE_train_00000001.png").unlink()
    with pytest.raises(DataError, match=r"ADE_train_00000001\.jpg: no mask"):
        open_raw("ade20k", top)
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(DataError, match=r"cut\.zip: not a whole zip file"):
        open_raw("ade20k", tmp_path / "cut.zip")


def test_a_zip_member_that_unpacks_to_more_than_a_picture_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_MEMBER_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", bytes(1001))
    with pytest.raises(DataError, match=r"bomb\.zip/a\.png: 1,001 bytes"):
        ZipSource(tmp_path / "bomb.zip", "a.png").read()
    with pytest.raises(DataError, match=r"bomb\.zip/b\.png: cannot be read"):
        ZipSource(tmp_path / "bomb.zip", "b.png").read()


def test_damage_to_a_zip_is_an_error_or_nothing_at_all(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "whole.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("image\u00e9.jpg", bytes(range(256)) * 4)
    whole = (tmp_path / "whole.zip").read_bytes()
    refusals = []
    for at in range(len(whole)):
        damaged = tmp_path / f"{at}.zip"
        damaged.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            for name in zip_members(damaged):
                ZipSource(damaged, name).read()
        except DataError as error:
            refusals.append((damaged.name, str(error)))
    assert len(refusals) > len(whole) // 2
    assert all(name in text for name, text in refusals)


def test_raw_data_that_may_not_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)
    for kind in (FOLDER, "ade20k", "cityscapes"):
        with pytest.raises(DataError, match=rf"{tmp_path}\S* cannot be read: Permission denied"):
            open_raw(kind, tmp_path)


def write_cityscapes(root: Path, *, coarse: bool = False) -> Path:
    splits = [("train", "gtFine"), ("val", "gtFine"), ("test", "gtFine")] + [("train_extra", "gtCoarse")] * coarse
    for split, kind in splits:
        for city in ("aachen", "bonn"):
            town = f"{split.replace('_', '')}{city}"
            picture(root / "leftImg8bit" / split / town / f"{town}_000001_000019_leftImg8bit.png")
            mask(root / kind / split / town / f"{town}_000001_000019_{kind}_labelIds.png", 26)
            mask(root / kind / split / town / f"{town}_000001_000019_{kind}_color.png", 77)
    return root


def test_cityscapes_is_read_as_folders_zips_or_both(tmp_path: Path) -> None:
    unpacked = write_cityscapes(tmp_path / "unpacked")
    packed, mixed = tmp_path / "packed", tmp_path / "mixed"
    for folder, tops in ((packed, ("leftImg8bit", "gtFine")), (mixed, ("gtFine",))):
        folder.mkdir()
        for top in tops:
            zipped(unpacked, folder / f"{top}_trainvaltest.zip", top)
    (mixed / "leftImg8bit").symlink_to(unpacked / "leftImg8bit")
    for raw in (unpacked, packed, mixed):
        dataset = open_raw("cityscapes", raw)
        assert keys(dataset) == {
            "train": ["trainaachen_000001_000019", "trainbonn_000001_000019"],
            "val": ["valaachen_000001_000019", "valbonn_000001_000019"],
        }
        assert (labels(dataset.splits["val"][0]) == 26).all()
        assert dataset.label_map is not None
        assert (dataset.label_map[26], dataset.label_map[0]) == (13, 255)
        assert dataset.notes == ("split test is left out: its labels are not public",)


def test_cityscapes_coarse_masks_make_a_split_of_their_own(tmp_path: Path) -> None:
    raw = write_cityscapes(tmp_path, coarse=True)
    assert len(open_raw("cityscapes", raw).splits["train_extra"]) == 2
    (raw / "gtCoarse").rename(raw / "elsewhere")
    dataset = open_raw("cityscapes", raw)
    assert "train_extra" not in dataset.splits
    assert "split train_extra is left out: it has pictures, but no gtCoarse masks" in dataset.notes


def test_cityscapes_without_its_parts_is_refused(tmp_path: Path) -> None:
    raw = write_cityscapes(tmp_path)
    (raw / "gtFine/val/valbonn/valbonn_000001_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(DataError, match=r"valbonn_000001_000019_leftImg8bit\.png: no mask"):
        open_raw("cityscapes", raw)
    (raw / "leftImg8bit").rename(raw / "elsewhere")
    with pytest.raises(DataError, match="no picture"):
        open_raw("cityscapes", raw)
    (raw / "gtFine").rename(raw / "gone")
    with pytest.raises(DataError, match=r"leftImg8bit_trainvaltest\.zip"):
        open_raw("cityscapes", raw)


def write_voc(root: Path, lists: dict[str, str]) -> Path:
    top = root / "VOCdevkit" / "VOC2012"
    for i in range(6):
        picture(top / "JPEGImages" / f"2007_00000{i}.jpg")
    for name, numbers in lists.items():
        path = top / "ImageSets" / "Segmentation" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"2007_00000{i}\n" for i in numbers))
    return top


def voc_mask(path: Path, label: int) -> None:
    """A palette picture whose colours are not its labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("P", SIZE, label)
    image.putpalette(bytes(range(255, -1, -1)) * 3)
    image.save(path)


def test_voc_masks_are_read_as_indices(tmp_path: Path) -> None:
    top = write_voc(tmp_path, {"train": "01", "val": "2"})
    for i in range(3):
        voc_mask(top / "SegmentationClass" / f"2007_00000{i}.png", i)
    dataset = open_raw("voc", tmp_path)
    assert keys(dataset) == {"train": ["2007_000000", "2007_000001"], "val": ["2007_000002"]}
    assert [int(labels(sample)[0, 0]) for split in dataset.splits.values() for sample in split] == [0, 1, 2]
    assert keys(open_raw("voc", top)) == keys(dataset)


def test_official_voc_masks_go_before_sbd_and_val_never_enters_train(tmp_path: Path) -> None:
    top = write_voc(tmp_path, {"train": "01", "val": "2"})
    for i in range(3):
        voc_mask(top / "SegmentationClass" / f"2007_00000{i}.png", i)
    cls = tmp_path / "benchmark_RELEASE" / "dataset" / "cls"
    cls.mkdir(parents=True)
    for i in range(1, 5):
        content = {"GTcls": {"Segmentation": np.full(SIZE[::-1], 20, np.uint8)}}
        scipy.io.savemat(cls / f"2007_00000{i}.mat", content)
    dataset = open_raw("voc", tmp_path)
    assert keys(dataset) == {"train": [f"2007_00000{i}" for i in (0, 1, 3, 4)], "val": ["2007_000002"]}
    assert [int(labels(sample)[0, 0]) for sample in dataset.splits["train"]] == [0, 1, 20, 20]
    (cls / "2007_000003.mat").write_bytes(b"\x80\x04.")
    with pytest.raises(DataError, match=r"2007_000003\.mat: not a class mask of SBD"):
        dataset.splits["train"][2].mask.read()
    (top / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(DataError, match="would bring pictures of val into train"):
        open_raw("voc", tmp_path)


def test_sbd_masks_as_pictures_follow_their_list(tmp_path: Path) -> None:
    top = write_voc(tmp_path, {"train": "0", "trainaug": "013", "val": "2"})
    for i in range(4):
        voc_mask(top / "SegmentationClassAug" / f"2007_00000{i}.png", i)
    assert keys(open_raw("voc", tmp_path))["train"] == ["2007_000000", "2007_000001", "2007_000003"]
    write_voc(tmp_path, {"trainaug": "0123"})
    with pytest.raises(DataError, match=r"pictures of val are in a training list(.|\n)*2007_000002"):
        open_raw("voc", tmp_path)
    write_voc(tmp_path, {"trainaug": "015"})
    with pytest.raises(DataError, match="2007_000005: no mask"):
        open_raw("voc", tmp_path)


def runs(region: np.ndarray) -> dict[str, Any]:
    encoded = coco.encode(np.asfortranarray(region.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def write_context(root: Path, **changes: Any) -> tuple[Path, np.ndarray]:
    """A JSON file of two pictures, and the mask of the first: regions that overlap, in file order."""
    left, top, middle = (np.zeros(SIZE[::-1], bool) for _ in range(3))
    left[:, :5], top[:3], middle[2:4, 2:6] = True, True, True
    regions = [(458, left), (2, top), (3, middle)]  # wood, aeroplane, and a category that is none of the 60
    expected = np.zeros(SIZE[::-1], np.uint8)
    expected[left], expected[top], expected[middle] = 59, 1, 0
    document = {
        "info": {"images": ["not these"]},
        "images": [
            {"image_id": i, "file_name": f"2008_00000{i}.jpg", "phase": phase, "height": SIZE[1], "width": SIZE[0]}
            for i, phase in enumerate(("train", "val", "test"))
        ],
        "annos_segmentation": [
            {"id": i, "image_id": 0, "category_id": category, "segmentation": runs(region), "parts": []}
            for i, (category, region) in enumerate(regions)
        ],
        "annos_boundary": [{"image_id": 0, "boundary": [1, 2, 3]}],
        **changes,
    }
    folder = root / "VOCdevkit" / "VOC2010"
    for i in range(3):
        picture(folder / "JPEGImages" / f"2008_00000{i}.jpg")
    (folder / "trainval_merged.json").write_text(json.dumps(document))
    return folder, expected


def test_context_regions_are_painted_in_file_order(tmp_path: Path) -> None:
    folder, expected = write_context(tmp_path)
    for raw in (tmp_path, folder):
        dataset = open_raw("pascal_context", raw)
        assert keys(dataset) == {"train": ["2008_000000"], "val": ["2008_000001"]}
        assert (labels(dataset.splits["train"][0]) == expected).all()
        assert not labels(dataset.splits["val"][0]).any()
        assert dataset.label_map is None
    stamps = {sample.mask.stamp() for split in dataset.splits.values() for sample in split}
    assert len(stamps) == 2


def test_context_with_59_classes_ignores_the_background(tmp_path: Path) -> None:
    write_context(tmp_path)
    full, reduced = open_raw("pascal_context", tmp_path), open_raw("pascal_context_59", tmp_path)
    assert (full.name, reduced.name) == ("pascal_context", "pascal_context_59")
    assert reduced.class_names == full.class_names[1:]
    assert reduced.palette == full.palette[1:]
    assert reduced.label_map == {0: 255, 255: 255, **{label: label - 1 for label in range(1, 60)}}


def test_context_is_read_from_ready_pictures(tmp_path: Path) -> None:
    folder, _ = write_context(tmp_path)
    (folder / "trainval_merged.json").unlink()
    with pytest.raises(DataError, match=r"neither trainval_merged\.json nor ImageSets/SegmentationContext/train\.txt"):
        open_raw("pascal_context", tmp_path)
    (folder / "ImageSets/SegmentationContext").mkdir(parents=True)
    for i, split in enumerate(("train", "val")):
        (folder / f"ImageSets/SegmentationContext/{split}.txt").write_text(f"2008_00000{i}\n")
        mask(folder / f"SegmentationClassContext/2008_00000{i}.png", 59 - i)
    dataset = open_raw("pascal_context", tmp_path)
    assert keys(dataset) == {"train": ["2008_000000"], "val": ["2008_000001"]}
    assert (labels(dataset.splits["val"][0]) == 58).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": [{"image_id": 0, "file_name": "../x.jpg", "phase": "train", "height": 6, "width": 8}]},
            "file_name",
        ),
        ({"images": [{"image_id": 0, "file_name": "2008_000000.jpg", "phase": "train"}]}, "height"),
        (
            {"images": [{"image_id": 0, "file_name": "2008_000000.jpg", "phase": "train", "height": 7, "width": 8}]},
            "not of its 8x7",
        ),
        ({"annos_segmentation": [{"image_id": 0, "category_id": 460, "segmentation": {}}]}, "category_id"),
        ({"annos_segmentation": [7]}, "valid"),
    ],
)
def test_context_files_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_context(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        open_raw("pascal_context", tmp_path)


def test_context_slice_gives_every_expected_mask() -> None:
    raw = real_slice("pascal_context")
    dataset = open_raw("pascal_context", raw)
    samples = [sample for split in dataset.splits.values() for sample in split]
    expected = raw / "VOCdevkit/VOC2010/SegmentationClassContext"
    assert len(samples) == len(list(expected.glob("*.png"))) > 0
    for sample in samples:
        assert (labels(sample) == np.array(Image.open(expected / f"{sample.key}.png"))).all(), sample.key


@pytest.mark.parametrize(
    ("kind", "name"),
    [("ade20k", "ade20k"), ("voc", "voc2012"), ("camvid", "camvid"), ("pascal_context_59", "pascal_context")],
)
def test_real_slices_hold_only_known_labels(kind: str, name: str) -> None:
    dataset = open_raw(kind, real_slice(name))
    known = set(dataset.label_map or [*range(len(dataset.class_names)), dataset.ignore_index])
    for samples in dataset.splits.values():
        for sample in samples[:5]:
            assert {*np.unique(labels(sample)).tolist()} <= known, sample.key
            assert Image.open(io.BytesIO(sample.image.read())).size == labels(sample).shape[::-1]
