"""Find damage in a prepared dataset: all of it for a person, or the first of it for a job about to start."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segfleet.errors import DataError
from segfleet_pipelines.location import resolve_location
from segfleet_pipelines.manifest import Manifest, ShardInfo
from segfleet_pipelines.picture import check_pixels, decode_mask, read_header
from segfleet_pipelines.reader import SampleIndex


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` has looked at and found.

    Attributes:
        content_id: Of the manifest.
        num_shards: Shards read.
        num_samples: Samples read.
        bytes: Of all shards, as the manifest has it.
        problems: A line each; empty for a sound dataset.
    """

    content_id: str
    num_shards: int
    num_samples: int
    bytes: int
    problems: tuple[str, ...]


def verify(location: str | Path, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Check every hash, count, byte, picture and label of a prepared dataset.

    Args:
        location: The dataset's folder.
        progress: Called with samples done and samples in all.

    Raises:
        DataError: the manifest or the index is missing or damaged, so that nothing else can be judged.
    """
    folder, manifest = resolve_location(location), Manifest.load(location)
    total = sum(split.num_samples for split in manifest.splits.values())
    problems = _unlisted_shards(folder, manifest)
    done = 0
    for name, split in manifest.splits.items():
        index = SampleIndex.load(location, name)
        first = 0
        for shard in split.shards:
            samples = range(first, first + shard.num_samples)
            problems += _shard_problems(folder, shard, index, samples)
            for i in samples:
                problems += _sample_problems(index, i)
                done += 1
                if progress:
                    progress(done, total)
            first += shard.num_samples
        index.close()
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    return VerifyReport(manifest.content_id, len(shards), total, sum(shard.bytes for shard in shards), tuple(problems))


def check_shards(location: str | Path, splits: Iterable[str]) -> None:
    """Compare every shard of some splits with the manifest, as a job does before its first step.

    Raises:
        DataError: a shard is missing or is not the one that was prepared; names it and both sizes or hashes.
    """
    folder, manifest = resolve_location(location), Manifest.load(location)
    for split in splits:
        SampleIndex.load(location, split)
        for shard in manifest.split(split).shards:
            if wrong := _difference(folder / shard.file, shard):
                raise DataError(f"dataset {folder}: {wrong}; restore the shard or prepare the dataset again")


def _difference(path: Path, shard: ShardInfo) -> str:
    """How a shard on disk differs from the manifest; empty if it does not."""
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            return f"shard {shard.file!r} has {size} bytes, the manifest says {shard.bytes}"
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"shard {shard.file!r} cannot be read: {error.strerror}"
    return (
        "" if actual == shard.sha256 else f"shard {shard.file!r} has sha256 {actual}, the manifest says {shard.sha256}"
    )


def _shard_problems(folder: Path, shard: ShardInfo, index: SampleIndex, samples: range) -> Iterator[str]:
    if wrong := _difference(folder / shard.file, shard):
        yield wrong
        return
    try:
        with tarfile.open(folder / shard.file, "r:") as tar:
            found = tar.getnames()
    except tarfile.TarError as error:
        yield f"shard {shard.file!r} is not a readable tar file: {error}"
        return
    expected = [f"{index.keys[i]}.{member}" for i in samples for member in index.members(i)]
    if found != expected:
        yield f"shard {shard.file!r} holds {len(found)} members that are not the {len(expected)} of the index"


def _sample_problems(index: SampleIndex, i: int) -> Iterator[str]:
    place = f"shard {index.shard_of(i)!r}, key {index.keys[i]!r}"
    try:
        _, image, mask_bytes = index.read_sample(i)
    except DataError as error:
        yield str(error)
        return
    try:
        header = read_header(image)
        check_pixels(image)
        mask = decode_mask(mask_bytes)
    except DataError as error:
        yield f"{place}: {error}"
        return
    height, width = (int(side) for side in index.sizes[i])
    if (header.height, header.width) != (height, width) or mask.shape != (height, width):
        picture, labels = f"{header.width}x{header.height}", f"{mask.shape[1]}x{mask.shape[0]}"
        yield f"{place}: picture {picture}, mask {labels} and index {width}x{height} differ in size"
    counts = np.bincount(mask.ravel(), minlength=256)
    num_classes, ignore_index = index.manifest.num_classes, index.manifest.ignore_index
    foreign = [int(label) for label in np.flatnonzero(counts) if label >= num_classes and label != ignore_index]
    if foreign:
        yield f"{place}: labels {foreign[:10]} are neither classes nor the ignore index {ignore_index}"
    elif counts[:num_classes].tolist() != index.class_pixels[i].tolist():
        yield f"{place}: the mask's class counts are not those of the index"


def _unlisted_shards(folder: Path, manifest: Manifest) -> list[str]:
    listed = {shard.file for split in manifest.splits.values() for shard in split.shards}
    return [f"{path.name!r} is not in the manifest" for path in sorted(folder.glob("*.tar")) if path.name not in listed]
