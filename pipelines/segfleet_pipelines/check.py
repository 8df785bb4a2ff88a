"""Judge one raw sample and turn it into what a shard stores. Pure but for reading the two files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from segfleet.errors import DataError
from segfleet_pipelines.datasets.base import RawDataset, RawSample
from segfleet_pipelines.datasets.sources import Source
from segfleet_pipelines.image_codec import pack_image
from segfleet_pipelines.labels import ranges
from segfleet_pipelines.manifest import Images
from segfleet_pipelines.mask_codec import pack_mask
from segfleet_pipelines.picture import IMAGE_MODES, Header, Pixels, check_pixels, decode_mask, read_header

_T = TypeVar("_T")

_NO_CLASS = -1


@dataclass(frozen=True, slots=True)
class LabelRules:
    """What a raw label becomes.

    Attributes:
        table: Final label of each raw label, (256,) int16; -1: not allowed.
        num_classes: K.
    """

    table: npt.NDArray[np.int16]
    num_classes: int

    @classmethod
    def of(cls, dataset: RawDataset) -> LabelRules:
        """The rules of a dataset: its label map, else classes and ignore index as they are."""
        labels = [*range(len(dataset.class_names)), dataset.ignore_index]
        mapping = dataset.label_map if dataset.label_map is not None else dict(zip(labels, labels, strict=True))
        table = np.full(256, _NO_CLASS, np.int16)
        for raw, label in mapping.items():
            table[raw] = label
        return cls(table, len(dataset.class_names))


@dataclass(frozen=True, slots=True)
class CheckedSample:
    """A sample that is fit for a shard.

    Attributes:
        key: Unique in the dataset.
        image: Encoded.
        image_suffix: jpg or png.
        mask: Final labels, packed.
        height: Pixels.
        width: Pixels.
        class_pixels: K counts.
    """

    key: str
    image: bytes
    image_suffix: str
    mask: bytes
    height: int
    width: int
    class_pixels: list[int]


def check_sample(sample: RawSample, rules: LabelRules, images: Images) -> CheckedSample:
    """Check a picture and its mask, both completely.

    Raises:
        DataError: unreadable, damaged, of another size or layout, or labels that are no class; names the file.
    """
    data = sample.image.read()
    header = read_image_header(sample, data)
    image, suffix = _of_file(sample.image, lambda raw: pack_image(raw, header, images), data)
    mask, class_pixels = read_labels(sample, header, rules)
    return CheckedSample(
        key=sample.key,
        image=image,
        image_suffix=suffix,
        mask=pack_mask(mask),
        height=header.height,
        width=header.width,
        class_pixels=class_pixels,
    )


def read_image_header(sample: RawSample, data: bytes) -> Header:
    """What the picture says about itself.

    Raises:
        DataError: it is none, or of a layout that is not taken; names the file.
    """
    header = _of_file(sample.image, read_header, data)
    if header.mode not in IMAGE_MODES:
        raise DataError(f"{sample.image}: pixel layout {header.mode}; convert it to RGB")
    if header.orientation != 1:
        raise DataError(
            f"{sample.image}: EXIF orientation {header.orientation}, so it is shown turned against its mask; "
            "turn the pixels and remove the tag"
        )
    return header


def read_labels(sample: RawSample, header: Header, rules: LabelRules) -> tuple[Pixels, list[int]]:
    """Final labels (H, W) of a sample's mask, and the pixels of each of the K classes.

    Raises:
        DataError: unreadable, damaged, not of the picture's size, or with labels that are no class; names the file.
    """
    raw_mask = _of_file(sample.mask, _decode_to_the_end, sample.mask.read())
    if raw_mask.shape != (header.height, header.width):
        height, width = raw_mask.shape
        raise DataError(
            f"{sample.mask}: {width}x{height} pixels, but its picture has {header.width}x{header.height}; "
            "make them equal"
        )
    return final_labels(sample.mask, raw_mask, rules)


def final_labels(source: Source, raw_mask: Pixels, rules: LabelRules) -> tuple[Pixels, list[int]]:
    """Final labels (H, W) of raw ones, and the pixels of each of the K classes.

    Raises:
        DataError: labels that are no class; names the file and the labels.
    """
    raw_counts = _count(raw_mask)
    _refuse_foreign_labels(source, raw_counts, rules)
    allowed = rules.table != _NO_CLASS
    counts = np.bincount(rules.table[allowed], weights=raw_counts[allowed], minlength=256)
    table: Pixels = np.where(allowed, rules.table, 0).astype(np.uint8)
    return cv2.LUT(raw_mask, table).astype(np.uint8, copy=False), counts[: rules.num_classes].astype(int).tolist()


def _decode_to_the_end(data: bytes) -> Pixels:
    """A mask's labels. A decoder alone passes over checksums, and gives other labels for some flipped bits."""
    mask = decode_mask(data)
    check_pixels(data)
    return mask


def _count(mask: Pixels) -> npt.NDArray[np.int64]:
    """Pixels of each of 256 labels; twice as fast as numpy.bincount, which makes 64-bit numbers of them first."""
    flat = mask.reshape(1, -1)
    # The counts come as float32, which is exact up to 2 ** 24.
    parts = [flat[:, start : start + (1 << 24)] for start in range(0, flat.size, 1 << 24)]
    counts = np.stack([cv2.calcHist([part], [0], None, [256], [0, 256]).ravel() for part in parts])
    total: npt.NDArray[np.int64] = counts.astype(np.int64).sum(axis=0)
    return total


def _refuse_foreign_labels(source: Source, raw_counts: npt.NDArray[np.int64], rules: LabelRules) -> None:
    wrong = np.flatnonzero((raw_counts > 0) & (rules.table == _NO_CLASS)).tolist()
    if wrong:
        shown = ", ".join(str(label) for label in wrong[:10]) + (", ..." if len(wrong) > 10 else "")
        allowed = ranges(np.flatnonzero(rules.table != _NO_CLASS).tolist())
        raise DataError(f"{source}: label {shown} out of range; allowed: {allowed}")


def _of_file(source: Source, decode: Callable[[bytes], _T], data: bytes) -> _T:
    try:
        return decode(data)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
