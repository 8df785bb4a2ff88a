"""Statistics of a prepared dataset, out of its index alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from segfleet_pipelines.labels import LabelReport, find_doubts, label_report
from segfleet_pipelines.manifest import Manifest
from segfleet_pipelines.reader import SampleIndex


@dataclass(frozen=True, slots=True)
class Spread:
    """Smallest, middle and largest of some lengths, pixels."""

    min: int
    median: float
    max: int


@dataclass(frozen=True, slots=True)
class SplitSummary:
    """One split in numbers.

    Attributes:
        num_samples: Pictures.
        num_shards: Tar files.
        bytes: Of all its shards.
        height: Of the pictures.
        width: Of the pictures.
        pixel_shares: Share of each class in all pixels, K numbers; with `ignored_share` their sum is 1.
        ignored_share: Share of ignored pixels.
        pictures_with: How many pictures show each class, K numbers.
        labels: What the masks hold.
        doubts: What a person should look at before training, a sentence each.
    """

    num_samples: int
    num_shards: int
    bytes: int
    height: Spread
    width: Spread
    pixel_shares: tuple[float, ...]
    ignored_share: float
    pictures_with: tuple[int, ...]
    labels: LabelReport
    doubts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """A dataset in numbers."""

    name: str
    content_id: str
    class_names: tuple[str, ...]
    ignore_index: int
    splits: dict[str, SplitSummary]


def summarize(location: str | Path) -> DatasetSummary:
    """Count a dataset's pictures, sizes and pixels of each class.

    Raises:
        DataError: no dataset there, or its manifest or index is damaged.
    """
    manifest = Manifest.load(location)
    splits = {name: _summarize_split(SampleIndex.load(location, name)) for name in manifest.splits}
    return DatasetSummary(manifest.name, manifest.content_id, manifest.class_names, manifest.ignore_index, splits)


def _summarize_split(index: SampleIndex) -> SplitSummary:
    shards = index.manifest.split(index.split).shards
    num_pixels = int(index.sizes.astype(np.int64).prod(axis=1).sum())
    shares = index.class_pixels.sum(axis=0) / num_pixels
    labels = label_report(index)
    return SplitSummary(
        num_samples=len(index),
        num_shards=len(shards),
        bytes=sum(shard.bytes for shard in shards),
        height=_spread(index.sizes[:, 0]),
        width=_spread(index.sizes[:, 1]),
        pixel_shares=tuple(shares.tolist()),
        ignored_share=labels.ignored_share,
        pictures_with=tuple(np.count_nonzero(index.class_pixels, axis=0).tolist()),
        labels=labels,
        doubts=tuple(find_doubts(labels, index.manifest.class_names)),
    )


def _spread(lengths: npt.NDArray[np.int32]) -> Spread:
    return Spread(int(lengths.min()), float(np.median(lengths)), int(lengths.max()))
