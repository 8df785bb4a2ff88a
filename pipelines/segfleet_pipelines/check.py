"""Judge one raw sample and turn it into what a shard stores. Pure but for reading the two files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from segfleet.errors import DataError
from segfleet_pipelines.datasets.base import RawDataset, RawSample
from segfleet_pipelines.picture import (
    IMAGE_MODES,
    SUFFIX,
    Palette,
    Pixels,
    check_pixels,
    decode_mask,
    encode_mask,
    read_header,
)

_T = TypeVar("_T")

_NO_CLASS = -1


@dataclass(frozen=True, slots=True)
class LabelRules:
    """What a raw label becomes.

    Attributes:
        table: Final label of each raw label, (256,) int16; -1: not allowed.
        num_classes: K.
        palette: K colours.
    """

    table: npt.NDArray[np.int16]
    num_classes: int
    palette: Palette

    @classmethod
    def of(cls, dataset: RawDataset) -> LabelRules:
        """The rules of a dataset: its label map, else classes and ignore index as they are."""
        labels = [*range(len(dataset.class_names)), dataset.ignore_index]
        mapping = dataset.label_map if dataset.label_map is not None else dict(zip(labels, labels, strict=True))
        table = np.full(256, _NO_CLASS, np.int16)
        for raw, label in mapping.items():
            table[raw] = label
        return cls(table, len(dataset.class_names), dataset.palette)


@dataclass(frozen=True, slots=True)
class CheckedSample:
    """A sample that is fit for a shard.

    Attributes:
        key: Unique in the dataset.
        image: Bytes of the raw file, untouched.
        image_suffix: jpg or png.
        mask: Final labels as an 8-bit palette PNG.
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


def check_chunk(samples: list[RawSample], rules: LabelRules) -> list[CheckedSample | str]:
    """Check several samples; a bad one gives a line that names its file instead."""
    results: list[CheckedSample | str] = []
    for sample in samples:
        try:
            results.append(check_sample(sample, rules))
        except DataError as error:
            results.append(str(error))
    return results


def check_sample(sample: RawSample, rules: LabelRules) -> CheckedSample:
    """Check a picture and its mask.

    Raises:
        DataError: unreadable, damaged, of another size or layout, or labels that are no class; names the file.
    """
    image = _read(sample.image)
    header = _of_file(sample.image, read_header, image)
    if header.mode not in IMAGE_MODES:
        raise DataError(f"{sample.image}: pixel layout {header.mode}; convert it to RGB")
    if header.orientation != 1:
        raise DataError(
            f"{sample.image}: EXIF orientation {header.orientation}, so it is shown turned against its mask; "
            "turn the pixels and remove the tag"
        )
    _of_file(sample.image, check_pixels, image)
    raw_mask = _of_file(sample.mask, decode_mask, _read(sample.mask))
    if raw_mask.shape != (header.height, header.width):
        height, width = raw_mask.shape
        raise DataError(
            f"{sample.mask}: {width}x{height} pixels, but its picture has {header.width}x{header.height}; "
            "make them equal"
        )
    mask = _final_labels(sample.mask, raw_mask, rules)
    counts = np.bincount(mask.ravel(), minlength=256)[: rules.num_classes]
    return CheckedSample(
        key=sample.key,
        image=image,
        image_suffix=SUFFIX[header.format],
        mask=encode_mask(mask, rules.palette),
        height=header.height,
        width=header.width,
        class_pixels=counts.tolist(),
    )


def _final_labels(path: Path, raw_mask: Pixels, rules: LabelRules) -> Pixels:
    present = np.flatnonzero(np.bincount(raw_mask.ravel(), minlength=256))
    wrong = [int(label) for label in present if rules.table[label] == _NO_CLASS]
    if wrong:
        shown = ", ".join(str(label) for label in wrong[:10]) + (", ..." if len(wrong) > 10 else "")
        allowed = ", ".join(_ranges(np.flatnonzero(rules.table != _NO_CLASS).tolist()))
        raise DataError(f"{path}: label {shown} out of range; allowed: {allowed}")
    table: Pixels = np.where(rules.table == _NO_CLASS, 0, rules.table).astype(np.uint8)
    mask: Pixels = table[raw_mask]
    return mask


def _ranges(labels: list[int]) -> list[str]:
    """[0, 1, 2, 255] -> ['0-2', '255']."""
    spans: list[list[int]] = []
    for label in labels:
        if spans and label == spans[-1][1] + 1:
            spans[-1][1] = label
        else:
            spans.append([label, label])
    return [str(first) if first == last else f"{first}-{last}" for first, last in spans]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _of_file(path: Path, decode: Callable[[bytes], _T], data: bytes) -> _T:
    try:
        return decode(data)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
