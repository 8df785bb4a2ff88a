"""Pascal Context on the pictures of VOC2010, with 60 classes (background is class 0) or 59 (background ignored).

The labels are either trainval_merged.json, whose run lengths are painted here, or ready pictures in
SegmentationClassContext with lists in ImageSets/SegmentationContext. Scores of 59 and 60 classes cannot be compared,
so the dataset's name says which it is.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from segfleet.errors import DataError
from segfleet_pipelines.datasets.base import RawDataset, RawSample, listed_samples, read_stems
from segfleet_pipelines.datasets.class_table import ClassFile, class_table
from segfleet_pipelines.datasets.json_stream import stream_items
from segfleet_pipelines.datasets.places import Place, by_stem, find_root
from segfleet_pipelines.datasets.rle import decode_runs
from segfleet_pipelines.datasets.sources import Source
from segfleet_pipelines.picture import MAX_PIXELS, encode_mask

JSON_NAME = "trainval_merged.json"
SPLITS = ("train", "val")
# The places of the 60 classes among the 459 categories of the full annotation. Label: the rank in this list.
CATEGORY_IDS = (
    *(0, 2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85),
    *(98, 104, 105, 113, 115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296),
    *(308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458),
)
_LABELS = {category: label for label, category in enumerate(CATEGORY_IDS)}
_MAX_CATEGORY = 459
_BACKGROUND = 0

_Side = Annotated[int, Field(ge=1, le=65_535)]
_Row = TypeVar("_Row", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class PaintedSource:
    """A mask that is painted when it is read: regions in file order, the later one over the earlier.

    Attributes:
        name: For people.
        height: Pixels.
        width: Pixels.
        regions: Label and compressed run lengths of each region.
    """

    name: str
    height: int
    width: int
    regions: tuple[tuple[int, bytes], ...]

    def read(self) -> bytes:
        """An 8-bit PNG of labels 0..59.

        Raises:
            DataError: damaged run lengths.
        """
        mask = np.full((self.height, self.width), _BACKGROUND, np.uint8)
        for label, counts in self.regions:
            try:
                mask[decode_runs(counts, self.height, self.width)] = label
            except DataError as error:
                raise DataError(f"{self}: {error}") from error
        return encode_mask(mask, ())

    def stamp(self) -> str:
        """Hash of what is painted."""
        return hashlib.sha256(repr((self.height, self.width, self.regions)).encode()).hexdigest()

    def size(self) -> int:
        """Bytes of the run lengths, which is about what the PNG has."""
        return sum(len(counts) for _, counts in self.regions)

    def __str__(self) -> str:
        return self.name


class _Image(BaseModel):
    image_id: int
    file_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+\.jpg$")]
    phase: Literal["train", "val", "test"]
    height: _Side
    width: _Side


class _Runs(BaseModel):
    size: tuple[int, int]
    counts: str


class _Region(BaseModel):
    image_id: int
    category_id: Annotated[int, Field(ge=0, le=_MAX_CATEGORY)]
    segmentation: _Runs


def open_pascal_context(raw: Path) -> RawDataset:
    """List the samples with 60 classes; background is class 0 and scored.

    Args:
        raw: VOC2010, or a folder with VOCdevkit/VOC2010. With both kinds of labels the JSON file counts.

    Raises:
        DataError: no pictures or labels, or labels that do not fit.
    """
    return class_table("pascal_context").dataset("pascal_context", _splits(raw))


def open_pascal_context_59(raw: Path) -> RawDataset:
    """List the samples with 59 classes; background is ignored. Otherwise as `open_pascal_context`."""
    return classes_59().dataset("pascal_context_59", _splits(raw))


def classes_59() -> ClassFile:
    """The class table without background."""
    full = class_table("pascal_context")
    ignored = full.ignore_index
    shifted = {str(label): label - 1 for label in range(1, len(full.names))}
    return ClassFile(
        names=full.names[1:],
        colors=full.colors and full.colors[1:],
        ignore_index=ignored,
        label_map={str(_BACKGROUND): ignored, str(ignored): ignored, **shifted},
    )


def _splits(raw: Path) -> dict[str, list[RawSample]]:
    root = find_root(raw, ("VOCdevkit/VOC2010", "VOC2010"), "JPEGImages")
    images = by_stem(Place(root).find("JPEGImages/*.jpg"), ".jpg")
    for folder in (root, raw):
        if (folder / JSON_NAME).is_file():
            return _from_json(folder / JSON_NAME, images)
    return _from_pictures(root, images)


def _from_pictures(root: Path, images: Mapping[str, Source]) -> dict[str, list[RawSample]]:
    lists = root / "ImageSets" / "SegmentationContext"
    if not (lists / "train.txt").is_file():
        raise DataError(f"{root} holds neither {JSON_NAME} nor {lists.relative_to(root)}/train.txt; fetch the labels")
    masks = by_stem(Place(root).find("SegmentationClassContext/*.png"), ".png")
    present = [split for split in SPLITS if (lists / f"{split}.txt").is_file()]
    return {split: listed_samples(read_stems(lists / f"{split}.txt"), images, masks) for split in present}


def _from_json(path: Path, pictures: Mapping[str, Source]) -> dict[str, list[RawSample]]:
    """Samples of the file's train and val phase. The file has 590 MB, so it is read item by item, and once."""
    images: list[_Image] = []
    regions: defaultdict[int, list[tuple[int, bytes]]] = defaultdict(list)
    sizes: dict[int, set[tuple[int, int]]] = defaultdict(set)
    for number, (name, item) in enumerate(stream_items(path)):
        if name == "images":
            images.append(_parsed(_Image, item, path, number))
        elif name == "annos_segmentation":
            region = _parsed(_Region, item, path, number)
            # Of the 459 categories those beyond the 60 are background, and hide what they are painted over.
            label = _LABELS.get(region.category_id, _BACKGROUND)
            regions[region.image_id].append((label, region.segmentation.counts.encode()))
            sizes[region.image_id].add(region.segmentation.size)
    for image in images:
        if sizes[image.image_id] - {(image.height, image.width)} or image.height * image.width > MAX_PIXELS:
            raise DataError(f"{path}: the regions of {image.file_name} are not of its {image.width}x{image.height}")
    splits = {}
    for split in SPLITS:
        masks = {
            Path(image.file_name).stem: PaintedSource(
                f"{path}, {image.file_name}", image.height, image.width, tuple(regions[image.image_id])
            )
            for image in images
            if image.phase == split
        }
        if masks:
            splits[split] = listed_samples(masks, pictures, masks)
    return splits


def _parsed(kind: type[_Row], item: Any, path: Path, number: int) -> _Row:
    try:
        return kind.model_validate(item)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}, item {number}: {place}: {first['msg']}; is it Pascal Context's file?") from error
