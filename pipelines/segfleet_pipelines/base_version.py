"""A new version of a prepared dataset: the old shards stay what they are, new samples go into new ones."""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow.compute as pc

from segfleet.errors import DataError
from segfleet_pipelines.check import LabelRules, read_image_header, read_labels
from segfleet_pipelines.datasets.base import RawDataset, RawSample, listed
from segfleet_pipelines.image_codec import pack_image
from segfleet_pipelines.local_files import link_or_copy
from segfleet_pipelines.manifest import Images, Manifest, ShardInfo
from segfleet_pipelines.mask_codec import unpack_mask
from segfleet_pipelines.pool import Advance, TaskResult
from segfleet_pipelines.reader import read_table
from segfleet_pipelines.shard_rows import ShardRows, fingerprint, unfinished
from segfleet_pipelines.staging import Staging
from segfleet_pipelines.storage import open_storage


@dataclass(frozen=True, slots=True)
class BaseVersion:
    """The dataset that a new version begins with.

    Attributes:
        location: Its place.
        manifest: Of it.
        table: Its samples.parquet.
    """

    location: str
    manifest: Manifest
    table: Any

    @classmethod
    def load(cls, location: str) -> BaseVersion:
        """Read manifest and index.

        Raises:
            DataError: no dataset there, or a damaged one.
        """
        manifest = Manifest.load(location)
        return cls(location, manifest, read_table(location, manifest))

    def check_fit(self, dataset: RawDataset, images: Images) -> None:
        """Make sure that everything in the base can be a part of a new version of `dataset`.

        Raises:
            DataError: other classes or another treatment of pictures, or samples have vanished or moved to another
                split; names them.
        """
        for name in ("class_names", "palette", "ignore_index"):
            if (old := getattr(self.manifest, name)) != (new := getattr(dataset, name)):
                raise DataError(f"{name} of the base {self.location} are {old}, of the raw data {new}; prepare anew")
        if self.manifest.images != images:
            raise DataError(f"the base {self.location} was prepared with images: {self.manifest.images}; use the same")
        places = {sample.key: split for split, samples in dataset.splits.items() for sample in samples}
        wrong = []
        for key, old in zip(self.table["key"].to_pylist(), self.table["split"].to_pylist(), strict=True):
            if key not in places:
                wrong.append(f"{key}: is not in the raw data any more")
            elif places[key] != old:
                wrong.append(f"{key}: was in {old}, is in {places[key]} now (lists in splits/ keep it where it was)")
        if wrong:
            raise listed(f"the base {self.location} has other samples; mend the raw data or prepare anew", wrong)

    def tasks(
        self, split: str, samples: Sequence[RawSample], rules: LabelRules, staging: Staging
    ) -> list[BaseShardTask]:
        """What to do for the base's shards of a split; nothing if it has no such split.

        Args:
            split: Name of the split.
            samples: All raw samples of it; `check_fit` has found every sample of the base among them.
            rules: What the raw labels become.
            staging: Where the new version is made.
        """
        by_key = {sample.key: sample for sample in samples}
        tasks = []
        for info in self._shards(split):
            table = self.table.filter(pc.field("shard") == info.file)
            tasks.append(
                BaseShardTask(
                    base=self.location,
                    info=info,
                    table=table,
                    path=staging.shard(info.file),
                    rows_path=staging.record(info.file),
                    samples=tuple(by_key[key] for key in table["key"].to_pylist()),
                    rules=rules,
                    images=self.manifest.images,
                )
            )
        return tasks

    def next_number(self, split: str) -> int:
        """The first number that no shard of the split has."""
        pattern = re.compile(re.escape(split) + r"-(\d{6})\.tar")
        found = [pattern.fullmatch(shard.file) for shard in self._shards(split)]
        return max((int(match[1]) for match in found if match), default=-1) + 1

    def _shards(self, split: str) -> tuple[ShardInfo, ...]:
        return self.manifest.splits[split].shards if split in self.manifest.splits else ()


@dataclass(frozen=True, slots=True)
class BaseShardTask:
    """Take over one shard of the base, and compare it with the raw data.

    Attributes:
        base: Place of the base.
        info: The shard.
        table: Its rows of the base's index.
        path: Where to have it.
        rows_path: Of its record.
        samples: The raw samples of its rows, in their order.
        rules: What the raw labels become.
        images: What becomes of PNG pictures.
    """

    base: str
    info: ShardInfo
    table: Any
    path: Path
    rows_path: Path
    samples: tuple[RawSample, ...]
    rules: LabelRules
    images: Images

    @property
    def num_samples(self) -> int:
        """Steps of progress."""
        return len(self.samples)

    def run(self, advance: Advance) -> TaskResult:
        """Link, copy or download the shard, and compare every sample.

        Raises:
            DataError: the base's shard is missing or damaged.
            OSError: the disk is full or gone.
        """
        made_from = fingerprint(self.samples, self.rules, self.images, self.info.sha256)
        record = ShardRows.load(self.rows_path)
        if record is not None and record.vouches_for(self.path, made_from):
            advance(self.num_samples)
            return TaskResult(reused=True)
        self.rows_path.unlink(missing_ok=True)
        take_shard(self.base, self.info, self.path)
        bad, changed = [], []
        with self.path.open("rb") as file:
            for sample, row in zip(self.samples, self.table.to_pylist(), strict=True):
                try:
                    if what := self._difference(sample, row, file):
                        changed.append(what)
                except DataError as error:
                    bad.append(str(error))
                advance(1)
        if not bad and not changed:
            ShardRows(self.info, made_from, self.table).save(self.rows_path)
        return TaskResult(bad=tuple(bad), changed=tuple(changed))

    def _difference(self, sample: RawSample, row: dict[str, Any], file: BinaryIO) -> str:
        """What of a sample is not as it was; empty if nothing is."""
        image = sample.image.read()
        header = read_image_header(sample, image)
        if self.images == "jpeg95":
            image, _ = pack_image(image, header, self.images)
        if (len(image), zlib.crc32(image)) != (row["image_bytes"], row["image_crc32"]):
            return f"{sample.key}: {sample.image} has changed"
        labels, _ = read_labels(sample, header, self.rules)
        stored = os.pread(file.fileno(), row["mask_bytes"], row["mask_offset"])
        # Pixels, not bytes: another version of zstd packs the same mask differently.
        if not np.array_equal(labels, unpack_mask(stored, row["mask_member"], row["height"], row["width"])):
            return f"{sample.key}: {sample.mask} has changed, or its labels have another meaning"
        return ""


def take_shard(base: str, info: ShardInfo, path: Path) -> None:
    """Have a shard of another dataset at `path`, as a hard link where that is possible.

    Raises:
        DataError: it is missing, or not the one of the manifest.
    """
    with unfinished(path) as part:
        _fetch(base, info.file, part)
        with part.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != info.sha256:
            raise DataError(
                f"shard {info.file!r} of the base {base} has sha256 {actual}, "
                f"its manifest says {info.sha256}; restore it"
            )
        part.replace(path)


def _fetch(base: str, name: str, path: Path) -> None:
    storage = open_storage(base)
    if storage.folder is not None:
        link_or_copy(storage.folder / name, path)
    else:
        storage.download(name, path)
