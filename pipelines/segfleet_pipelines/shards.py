"""Write ordinary WebDataset tar shards whose bytes depend on their content alone."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from segfleet_pipelines.check import CheckedSample
from segfleet_pipelines.manifest import ShardInfo

MAX_SHARD_SAMPLES = 1000
MAX_SHARD_BYTES = 256 * 1024 * 1024


class ShardWriter:
    """The shards of one split: SPLIT-000000.tar, SPLIT-000001.tar, ...

    Attributes:
        shards: Finished ones; complete when the `with` block has ended.
        rows: One row of samples.parquet a sample.
    """

    def __init__(
        self, folder: Path, split: str, max_samples: int = MAX_SHARD_SAMPLES, max_bytes: int = MAX_SHARD_BYTES
    ) -> None:
        self.shards: list[ShardInfo] = []
        self.rows: list[dict[str, Any]] = []
        self._folder, self._split = folder, split
        self._max_samples, self._max_bytes = max_samples, max_bytes
        self._tar: tarfile.TarFile | None = None
        self._num_samples = 0

    def add(self, sample: CheckedSample) -> None:
        """Append a sample; begins a new shard when the current one is full."""
        if self._tar is None:
            # GNU, not PAX: long and non-ASCII names need no time stamps and no extra records.
            self._tar = tarfile.open(self._path, "x", format=tarfile.GNU_FORMAT)  # noqa: SIM115 - closed by _finish and __exit__
        members = {f"image.{sample.image_suffix}": sample.image, "mask.png": sample.mask}
        row: dict[str, Any] = {"key": sample.key, "split": self._split, "shard": self._path.name}
        for part, (name, data) in zip(("image", "mask"), members.items(), strict=True):
            row[f"{part}_member"] = name
            row[f"{part}_offset"] = self._append(self._tar, f"{sample.key}.{name}", data)
            row[f"{part}_bytes"], row[f"{part}_crc32"] = len(data), zlib.crc32(data)
        row |= {"height": sample.height, "width": sample.width, "class_pixels": sample.class_pixels}
        self.rows.append(row)
        self._num_samples += 1
        if self._num_samples >= self._max_samples or self._tar.offset >= self._max_bytes:
            self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish()
        elif self._tar is not None:
            # The shard is lost anyway, and the disk may be full: what counts is the first error.
            with suppress(OSError):
                self._tar.close()

    def _finish(self) -> None:
        """Complete the current shard, durably."""
        if self._tar is None:
            return
        path = self._path
        self._tar.close()
        with path.open("rb") as file:
            os.fsync(file.fileno())
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self.shards.append(ShardInfo(path.name, sha256, path.stat().st_size, self._num_samples))
        self._tar, self._num_samples = None, 0

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._split}-{len(self.shards):06d}.tar"

    @staticmethod
    def _append(tar: tarfile.TarFile, name: str, data: bytes) -> int:
        """Offset of the data in the shard. A fresh TarInfo has time, user and group 0 and mode 0644."""
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
        return tar.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
