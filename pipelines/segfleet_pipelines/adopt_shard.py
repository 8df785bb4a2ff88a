"""Check and index the samples of one shard made elsewhere."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from segfleet.errors import DataError
from segfleet_pipelines.check import LabelRules, final_labels, read_image_header, read_labels
from segfleet_pipelines.datasets.base import RawSample
from segfleet_pipelines.datasets.sources import Source, check_size, file_stamp
from segfleet_pipelines.manifest import ShardInfo
from segfleet_pipelines.mask_codec import PACKED, unpack_mask
from segfleet_pipelines.pairing import TarSample
from segfleet_pipelines.picture import Header, check_pixels
from segfleet_pipelines.pool import Advance, TaskResult
from segfleet_pipelines.shard_check import Row
from segfleet_pipelines.shard_rows import ShardRows, fingerprint
from segfleet_pipelines.tar_walk import TarMember


@dataclass(frozen=True, slots=True)
class TarSource:
    """A member of a shard, which is read where it is."""

    path: Path
    member: TarMember

    def read(self) -> bytes:
        """See `Source`."""
        check_size(self, self.member.size)
        try:
            with self.path.open("rb") as file:
                data = os.pread(file.fileno(), self.member.size, self.member.offset)
        except OSError as error:
            raise DataError(f"{self}: cannot be read: {error.strerror}") from error
        if len(data) != self.member.size:
            raise DataError(f"{self}: cut short")
        return data

    def stamp(self) -> str:
        """See `Source`."""
        return file_stamp(self.path)

    def size(self) -> int:
        """See `Source`."""
        return self.member.size

    def __str__(self) -> str:
        return f"shard {self.path.name!r}, {self.member.name!r}"


@dataclass(frozen=True, slots=True)
class AdoptTask:
    """Index one shard, unless that is done.

    Attributes:
        path: Of the tar file, which is only read.
        rows_path: Of its rows of the index, a parquet file to write.
        split: Name of the split.
        samples: Those of the shard, in order.
        rules: Which labels the masks may hold.
    """

    path: Path
    rows_path: Path
    split: str
    samples: tuple[TarSample, ...]
    rules: LabelRules

    @property
    def num_samples(self) -> int:
        """Steps of progress."""
        return len(self.samples)

    def run(self, advance: Advance) -> TaskResult:
        """Write the rows, or say what is wrong with the samples."""
        try:
            stamp = file_stamp(self.path)
            made_from = fingerprint((), self.rules, str(self.path), stamp, self.split)
            finished = ShardRows.load(self.rows_path)
            if finished is not None and finished.vouches_for(self.path, made_from):
                advance(self.num_samples)
                return TaskResult(reused=True)
            self.rows_path.unlink(missing_ok=True)
            return self._index(made_from, stamp, advance)
        except DataError as error:
            return TaskResult(bad=(str(error),))

    def _index(self, made_from: str, stamp: str, advance: Advance) -> TaskResult:
        rows: list[Row] = []
        bad: list[str] = []
        for sample in self.samples:
            try:
                rows.append(self._row(sample))
            except DataError as error:
                bad.append(str(error))
            advance(1)
        with self.path.open("rb") as file:
            sha256, size = hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size
        if file_stamp(self.path) != stamp:
            bad.append(f"shard {self.path.name!r} has changed while it was read; wait until it is complete")
        if bad:
            return TaskResult(bad=tuple(bad))
        ShardRows.of(rows, ShardInfo(self.path.name, sha256, size, len(rows)), made_from).save(self.rows_path)
        return TaskResult()

    def _row(self, sample: TarSample) -> Row:
        """A sample's row of the index.

        Raises:
            DataError: picture or mask cannot be used; names shard and member.
        """
        raw = raw_sample(self.path, sample)
        image, mask = raw.image.read(), raw.mask.read()
        header = read_image_header(raw, image)
        with _naming(raw.image):
            check_pixels(image)
        row: Row = {"key": sample.key, "split": self.split, "shard": self.path.name}
        for part, member, data in (("image", sample.image, image), ("mask", sample.mask, mask)):
            row[f"{part}_member"] = sample.rest(member)
            row[f"{part}_offset"], row[f"{part}_bytes"] = member.offset, member.size
            row[f"{part}_crc32"] = zlib.crc32(data)
        class_pixels = self._class_pixels(raw, sample, header, mask)
        return row | {"height": header.height, "width": header.width, "class_pixels": class_pixels}

    def _class_pixels(self, raw: RawSample, sample: TarSample, header: Header, mask: bytes) -> list[int]:
        """Pixels of each class, of a mask that is fit to be trained on as it is."""
        member = sample.rest(sample.mask)
        if not member.lower().endswith(PACKED):
            return read_labels(raw, header, self.rules)[1]
        with _naming(raw.mask):
            labels = unpack_mask(mask, member, header.height, header.width)
        return final_labels(raw.mask, labels, self.rules)[1]


def raw_sample(path: Path, sample: TarSample) -> RawSample:
    """A sample of a shard, to be read like one of raw files."""
    return RawSample(sample.key, TarSource(path, sample.image), TarSource(path, sample.mask))


@contextmanager
def _naming(source: Source) -> Iterator[None]:
    """Errors say where they come from."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
