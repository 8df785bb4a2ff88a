"""Random access to samples: samples.parquet in memory, bytes straight out of the tar shards."""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segfleet.errors import DataError
from segfleet_pipelines.location import resolve_location
from segfleet_pipelines.manifest import Manifest

_COLUMNS: dict[str, pa.DataType] = {
    "key": pa.string(),
    "split": pa.string(),
    "shard": pa.string(),
    "image_member": pa.string(),
    "image_offset": pa.int64(),
    "image_bytes": pa.int64(),
    "image_crc32": pa.uint32(),
    "mask_member": pa.string(),
    "mask_offset": pa.int64(),
    "mask_bytes": pa.int64(),
    "mask_crc32": pa.uint32(),
    "height": pa.int32(),
    "width": pa.int32(),
    "class_pixels": pa.list_(pa.int64()),
}
INDEX_SCHEMA = pa.schema(_COLUMNS)


class SampleIndex:
    """The samples of one split, by their place 0..N-1.

    Each process that reads holds its own open shards; an index may be pickled or forked at any time.

    Attributes:
        folder: Of the dataset.
        manifest: Of the dataset.
        split: Name of the split.
        keys: N keys, unique in the dataset.
        sizes: Height and width of each sample, (N, 2) int32.
        class_pixels: Pixels of each class in each sample, (N, K) int64; ignored pixels are what is missing to H * W.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str, table: Any) -> None:
        self.folder, self.manifest, self.split = folder, manifest, split
        self.keys: list[str] = table["key"].to_pylist()
        self.sizes = np.stack([table["height"].to_numpy(), table["width"].to_numpy()], axis=1)
        self.class_pixels = _class_pixels(table, manifest.num_classes)
        encoded = table["shard"].combine_chunks().dictionary_encode()
        self._shard_names: list[str] = encoded.dictionary.to_pylist()
        self._shards: npt.NDArray[np.int32] = encoded.indices.to_numpy()
        parts = ("offset", "bytes", "crc32")
        self._image = np.stack([table[f"image_{part}"].to_numpy().astype(np.int64) for part in parts], axis=1)
        self._mask = np.stack([table[f"mask_{part}"].to_numpy().astype(np.int64) for part in parts], axis=1)
        names = (table[f"{part}_member"].to_pylist() for part in ("image", "mask"))
        self._members: list[tuple[str, str]] = list(zip(*names, strict=True))
        self._files: dict[int, int] = {}

    @classmethod
    def load(cls, location: str | Path, split: str) -> SampleIndex:
        """Read the index of a split.

        Raises:
            DataError: no dataset there, no such split, or an index that does not fit the manifest.
        """
        manifest = Manifest.load(location)
        info = manifest.split(split)
        folder = resolve_location(location)
        table = read_table(folder, manifest).filter(pc.field("split") == split)
        counted = dict(zip(*np.unique(table["shard"].to_pylist(), return_counts=True), strict=True))
        if {shard.file: shard.num_samples for shard in info.shards} != counted:
            raise _index_damaged(folder, manifest, f"its shards of {split!r} are not those of the manifest")
        return cls(folder, manifest, split, table)

    def __len__(self) -> int:
        return len(self.keys)

    def read_sample(self, i: int) -> tuple[str, bytes, bytes]:
        """Key, encoded picture and encoded mask of sample `i`, checked against the index.

        Raises:
            DataError: the shard is missing or cut, or the sample's bytes have changed; names shard and key.
        """
        return self.keys[i], self._member(i, self._image[i], "picture"), self._member(i, self._mask[i], "mask")

    def shard_of(self, i: int) -> str:
        """File name of the shard that holds sample `i`."""
        return self._shard_names[int(self._shards[i])]

    def members(self, i: int) -> tuple[str, str]:
        """Names of a sample's picture and mask in the shard, without the key."""
        return self._members[i]

    def close(self) -> None:
        """Close this process's open shards; the next read opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def _member(self, i: int, place: npt.NDArray[np.int64], what: str) -> bytes:
        offset, size, crc = (int(number) for number in place)
        # pread, not mmap: a shard cut while it is read is a short answer here and a SIGBUS there.
        data = os.pread(self._file(int(self._shards[i])), size, offset)
        if len(data) != size or zlib.crc32(data) != crc:
            state = "is cut short" if len(data) != size else "has changed since the dataset was prepared"
            raise DataError(
                f"shard {self.shard_of(i)!r}, key {self.keys[i]!r}: the {what} {state}; "
                f"restore the shard ('segfleet verify {self.folder}' shows the extent)"
            )
        return data

    def _file(self, shard: int) -> int:
        if shard not in self._files:
            path = self.folder / self._shard_names[shard]
            try:
                self._files[shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise DataError(
                    f"shard {path.name!r} of {self.folder} cannot be opened: {error.strerror}; restore it"
                ) from error
        return self._files[shard]


def read_table(folder: Path, manifest: Manifest) -> Any:
    """samples.parquet of a dataset as a pyarrow table, checked against the manifest's hash.

    Raises:
        DataError: missing, or not the file that the manifest describes.
    """
    path = folder / manifest.index.file
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; restore it or prepare the dataset again") from error
    if (actual := hashlib.sha256(data).hexdigest()) != manifest.index.sha256:
        raise _index_damaged(folder, manifest, f"sha256 is {actual}, the manifest says {manifest.index.sha256}")
    try:
        table = pq.read_table(pa.BufferReader(data))
    except pa.ArrowException as error:
        raise _index_damaged(folder, manifest, str(error)) from error
    if not table.schema.equals(INDEX_SCHEMA):
        raise _index_damaged(folder, manifest, "its columns are not those of this format version")
    return table


def _class_pixels(table: Any, num_classes: int) -> npt.NDArray[np.int64]:
    flat: npt.NDArray[np.int64] = table["class_pixels"].combine_chunks().flatten().to_numpy()
    return flat.reshape(len(table), num_classes)


def _index_damaged(folder: Path, manifest: Manifest, what: str) -> DataError:
    return DataError(f"{folder / manifest.index.file} is damaged: {what}; restore it or prepare the dataset again")
