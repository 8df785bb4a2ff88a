"""Compare one shard on this machine with the manifest and with its rows of the index."""

from __future__ import annotations

import hashlib
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segfleet.errors import DataError
from segfleet_pipelines.manifest import Manifest, ShardInfo
from segfleet_pipelines.mask_codec import unpack_mask
from segfleet_pipelines.pairing import is_note
from segfleet_pipelines.picture import IMAGE_MODES, Pixels, check_pixels, read_header
from segfleet_pipelines.tar_walk import walk_tar

# A row of samples.parquet.
Row = dict[str, Any]
_PARTS = ("image", "mask")


def difference(path: Path, shard: ShardInfo) -> str:
    """How a shard differs from the manifest, by size and SHA-256; empty if it does not.

    Raises:
        DataError: it is missing, or cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"shard {shard.file!r} is not a file")
        if status.st_size != shard.bytes:
            return f"shard {shard.file!r} has {status.st_size} bytes, the manifest says {shard.bytes}"
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"shard {shard.file!r} cannot be read: {error.strerror}") from error
    if actual != shard.sha256:
        return f"shard {shard.file!r} has sha256 {actual}, the manifest says {shard.sha256}"
    return ""


def member_problems(path: Path, rows: Sequence[Row]) -> Iterator[str]:
    """What a shard's table of contents and the index do not agree on."""
    try:
        found = walk_tar(path)
    except DataError as error:
        yield str(error)
        return
    expected = [
        (f"{row['key']}.{row[f'{part}_member']}", row[f"{part}_offset"], row[f"{part}_bytes"])
        for row in rows
        for part in sorted(_PARTS, key=lambda part: int(row[f"{part}_offset"]))
    ]
    listed = {name for name, _, _ in expected}
    # Adopted shards may hold notes of other programs, which nothing reads.
    actual = [(member.name, member.offset, member.size) for member in found]
    actual = [member for member in actual if member[0] in listed or not is_note(member[0])]
    if actual != expected:
        first = next((pair for pair in zip(actual, expected, strict=False) if pair[0] != pair[1]), None)
        detail = f"; first: {first[0][0]!r} where {first[1][0]!r} should be" if first else ""
        yield f"shard {path.name!r} holds {len(actual)} members that are not the {len(expected)} of the index{detail}"


def sample_problems(handle: int, row: Row, manifest: Manifest) -> list[str]:
    """What is wrong with one sample: bytes, checksums, picture, mask, sizes, labels, counts.

    Args:
        handle: The open shard; it is read without moving its position.
        row: Of the index.
        manifest: Of the dataset.
    """
    place = f"shard {row['shard']!r}, key {row['key']!r}"
    try:
        image, mask = (_read(handle, row, part) for part in _PARTS)
        header = read_header(image)
        check_pixels(image)
        labels = unpack_mask(mask, row["mask_member"], row["height"], row["width"])
    except DataError as error:
        return [f"{place}: {error}"]
    problems = []
    if header.mode not in IMAGE_MODES or header.orientation != 1:
        problems.append(f"a picture of pixel layout {header.mode} and EXIF orientation {header.orientation}")
    if (header.height, header.width) != labels.shape:
        picture, size = f"{header.width}x{header.height}", f"{labels.shape[1]}x{labels.shape[0]}"
        problems.append(f"picture {picture} and mask {size} differ in size")
    problems += _label_problems(labels, row["class_pixels"], manifest)
    return [f"{place}: {problem}" for problem in problems]


def _label_problems(labels: Pixels, class_pixels: list[int], manifest: Manifest) -> list[str]:
    counts = np.bincount(labels.ravel(), minlength=256)
    num_classes, ignore_index = manifest.num_classes, manifest.ignore_index
    foreign = [int(label) for label in np.flatnonzero(counts) if label >= num_classes and label != ignore_index]
    if foreign:
        return [f"labels {foreign[:10]} are neither classes nor the ignore index {ignore_index}"]
    if counts[:num_classes].tolist() != class_pixels:
        return ["the mask's class counts are not those of the index"]
    return []


def _read(handle: int, row: Row, part: str) -> bytes:
    try:
        data = os.pread(handle, row[f"{part}_bytes"], row[f"{part}_offset"])
    except OSError as error:
        raise DataError(f"the {part} cannot be read: {error.strerror}") from error
    if len(data) != row[f"{part}_bytes"]:
        raise DataError(f"the {part} is cut short")
    if zlib.crc32(data) != row[f"{part}_crc32"]:
        raise DataError(f"the {part} has changed since the dataset was prepared")
    return data
