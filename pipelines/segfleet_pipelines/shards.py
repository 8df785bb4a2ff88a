"""One shard as one unit of work: from raw samples to a durable tar file and its rows of the index."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segfleet.errors import DataError
from segfleet_pipelines.check import CheckedSample, LabelRules, check_sample
from segfleet_pipelines.datasets.base import RawSample
from segfleet_pipelines.manifest import Images, ShardInfo
from segfleet_pipelines.mask_codec import MASK_MEMBER
from segfleet_pipelines.pool import Advance, TaskResult
from segfleet_pipelines.shard_rows import ShardRows, fingerprint, unfinished
from segfleet_pipelines.tar_write import TarFileWriter


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Make one shard, unless it is there.

    Attributes:
        path: Of the tar file.
        rows_path: Of its record.
        split: Name of the split.
        samples: What goes into it, in order.
        rules: What the raw labels become.
        images: What becomes of PNG pictures.
    """

    path: Path
    rows_path: Path
    split: str
    samples: tuple[RawSample, ...]
    rules: LabelRules
    images: Images

    @property
    def num_samples(self) -> int:
        """Steps of progress."""
        return len(self.samples)

    def run(self, advance: Advance) -> TaskResult:
        """Write the shard, or find that it is what would be written; bad samples leave none.

        Raises:
            OSError: the disk is full or gone.
        """
        made_from = fingerprint(self.samples, self.rules, self.split, self.path.name, self.images)
        record = ShardRows.load(self.rows_path)
        if record is not None and record.vouches_for(self.path, made_from):
            advance(self.num_samples)
            return TaskResult(reused=True)
        # The record vouches for the shard: it goes first and comes last.
        self.rows_path.unlink(missing_ok=True)
        return self._write(made_from, advance)

    def _write(self, made_from: str, advance: Advance) -> TaskResult:
        rows: list[dict[str, Any]] = []
        bad: list[str] = []
        with unfinished(self.path) as part, TarFileWriter(part) as tar:
            for sample in self.samples:
                try:
                    checked = check_sample(sample, self.rules, self.images)
                except DataError as error:
                    bad.append(str(error))
                else:
                    if not bad:
                        rows.append(self._append(tar, checked))
                advance(1)
            if bad:
                return TaskResult(bad=tuple(bad))
            sha256, size = tar.finish()
            part.replace(self.path)
        ShardRows.of(rows, ShardInfo(self.path.name, sha256, size, len(rows)), made_from).save(self.rows_path)
        return TaskResult()

    def _append(self, tar: TarFileWriter, sample: CheckedSample) -> dict[str, Any]:
        """Add a sample's two members; gives its row of the index."""
        members = {f"image.{sample.image_suffix}": sample.image, MASK_MEMBER: sample.mask}
        row: dict[str, Any] = {"key": sample.key, "split": self.split, "shard": self.path.name}
        for part, (name, data) in zip(("image", "mask"), members.items(), strict=True):
            row[f"{part}_member"] = name
            row[f"{part}_offset"] = tar.add(f"{sample.key}.{name}", data)
            row[f"{part}_bytes"], row[f"{part}_crc32"] = len(data), zlib.crc32(data)
        return row | {"height": sample.height, "width": sample.width, "class_pixels": sample.class_pixels}
