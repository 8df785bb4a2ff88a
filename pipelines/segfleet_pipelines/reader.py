"""Random access to samples: samples.parquet in memory, bytes straight out of the tar shards."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from isal.isal_zlib import crc32

from segfleet.errors import DataError
from segfleet_pipelines.cache import OpenFile, ShardCache
from segfleet_pipelines.manifest import Manifest, ShardInfo
from segfleet_pipelines.picture import MAX_PIXELS
from segfleet_pipelines.shard_files import ShardFiles, open_shard_files
from segfleet_pipelines.storage import Storage, open_storage

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

# K numbers a sample: most of the index, and training never asks for them.
_COUNTS = "class_pixels"
_NO_KEY = r"[/\\.\x00-\x1f\x7f]|^$"
_PLACES = ("image_offset", "image_bytes", "image_crc32", "mask_offset", "mask_bytes", "mask_crc32")


class Keys(Sequence[str]):
    """Strings in one buffer: processes share it, while each use of a Python string would copy its page."""

    def __init__(self, strings: Sequence[str]) -> None:
        """Take a copy."""
        encoded = [string.encode() for string in strings]
        self._text = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[place] for place in range(*i.indices(len(self)))]
        start, end = self._ends[range(len(self))[i] :][:2].tolist()
        return str(self._text[start:end], "utf-8")


class SampleIndex:
    """The samples of one split, by their place 0..N-1.

    It may be used by threads, and pickled or forked at any time. Forked processes share its memory.

    Attributes:
        address: Of the dataset.
        manifest: Of the dataset.
        split: Name of the split.
        keys: N keys, unique in the dataset.
        sizes: Height and width of each sample, (N, 2) int32.
        shard_counts: Samples of each shard of the split, in order, (S,) int64.
    """

    def __init__(self, storage: Storage, files: ShardFiles, manifest: Manifest, split: str, table: Any) -> None:
        """Take over the rows of samples.parquet without `class_pixels`, all of one split (see `load`)."""
        self.address, self.manifest, self.split = storage.address, manifest, split
        self._storage, self._files = storage, files
        self._shards = manifest.split(split).shards
        self.keys = Keys(table["key"].to_pylist())
        self.sizes = np.stack([table["height"].to_numpy(), table["width"].to_numpy()], axis=1)
        self.shard_counts = np.array([shard.num_samples for shard in self._shards], np.int64)
        self._shard = np.repeat(np.arange(len(self._shards), dtype=np.int32), self.shard_counts)
        self._places = np.stack([table[name].to_numpy().astype(np.int64) for name in _PLACES], axis=1)
        self._members = tuple(
            table[f"{part}_member"].combine_chunks().dictionary_encode() for part in ("image", "mask")
        )

    @classmethod
    def load(cls, location: str | Path, split: str, *, cache: ShardCache | None = None) -> SampleIndex:
        """Read the index of a split.

        Args:
            location: The dataset's folder (see `parse_location`).
            split: Name of the split.
            cache: For files from elsewhere, instead of the environment's.

        Raises:
            DataError: no dataset there, no such split, or an index that does not fit the manifest.
        """
        storage, manifest = open_storage(location), Manifest.load(location)
        manifest.split(split)
        files = open_shard_files(storage, cache)
        columns = [name for name in INDEX_SCHEMA.names if name != _COUNTS]
        table = _read_index(storage, files, manifest, columns).filter(pc.field("split") == split)
        if wrong := _contradiction(table, manifest, split):
            raise _damaged(storage, manifest, wrong)
        return cls(storage, files, manifest, split, table)

    def __len__(self) -> int:
        return len(self._shard)

    @cached_property
    def class_pixels(self) -> npt.NDArray[np.int64]:
        """Pixels of each class in each sample, (N, K), read when asked for.

        Ignored pixels are what is missing to H * W.

        Raises:
            DataError: the index is damaged, or cannot be read any more.
        """
        table = _read_index(self._storage, self._files, self.manifest, ["split", _COUNTS])
        counts = table.filter(pc.field("split") == self.split)[_COUNTS].combine_chunks()
        lengths = pc.list_value_length(counts).to_numpy(zero_copy_only=False)
        flat: npt.NDArray[np.int64] = counts.flatten().to_numpy(zero_copy_only=False)
        if (lengths != self.manifest.num_classes).any() or flat.dtype != np.int64:
            raise _damaged(self._storage, self.manifest, f"not {self.manifest.num_classes} class counts in every row")
        return flat.reshape(len(self), self.manifest.num_classes)

    def read_sample(self, i: int) -> tuple[str, bytes, bytes]:
        """Key, encoded picture and encoded mask of sample `i`, checked against the index.

        Raises:
            DataError: the shard is missing or cut, or the sample's bytes have changed; names shard and key.
        """
        shard = self._shards[self._shard[i]]
        image_at, image_size, image_crc, mask_at, mask_size, mask_crc = self._places[i].tolist()
        file = self._files.open(shard)
        # pread, not mmap: a shard cut while it is read is a short answer here and a SIGBUS there. And not one for both:
        # taking its answer apart costs more than the second call.
        image = _read_at(file, image_size, image_at, shard.file)
        mask = _read_at(file, mask_size, mask_at, shard.file)
        # Held on, it would keep this process itself from replacing a damaged copy.
        del file
        if (len(image), len(mask), crc32(image), crc32(mask)) != (image_size, mask_size, image_crc, mask_crc):
            image, mask = self._read_again(i, image, mask)
        return self.keys[i], image, mask

    @property
    def is_remote(self) -> bool:
        """Whether shards come from elsewhere, through the cache."""
        return self._storage.folder is None

    def fetch(self, shard: int) -> None:
        """Have a shard on this machine, by its number in `shard_counts`, so that reading it does not wait.

        Raises:
            DataError: it cannot be had.
        """
        if self.is_remote:
            self._files.open(self._shards[shard])

    def shard_of(self, i: int) -> str:
        """File name of the shard that holds sample `i`."""
        shard: ShardInfo = self._shards[self._shard[i]]
        return shard.file

    def members(self, i: int) -> tuple[str, str]:
        """Names of a sample's picture and mask in the shard, without the key."""
        image, mask = (str(names[i]) for names in self._members)
        return image, mask

    def close(self) -> None:
        """Close this process's open shards; the next read opens them again."""
        self._files.close()

    def _read_again(self, i: int, image: bytes, mask: bytes) -> tuple[bytes, bytes]:
        """Sound bytes, if only this machine's copy of the shard has changed.

        Raises:
            DataError: the shard has.
        """
        shard = self._shards[self._shard[i]]
        image_at, image_size, image_crc, mask_at, mask_size, mask_crc = self._places[i].tolist()
        if self._files.recover(shard):
            file = self._files.open(shard)
            image = _read_at(file, image_size, image_at, shard.file)
            mask = _read_at(file, mask_size, mask_at, shard.file)
            del file
        for what, data, size, crc in (("picture", image, image_size, image_crc), ("mask", mask, mask_size, mask_crc)):
            if len(data) != size or crc32(data) != crc:
                state = "is cut short" if len(data) != size else "has changed since the dataset was prepared"
                raise DataError(
                    f"shard {shard.file!r}, key {self.keys[i]!r}: the {what} {state}; "
                    f"restore the shard ('segfleet verify {self.address}' shows the extent)"
                )
        return image, mask


def read_table(location: str | Path, manifest: Manifest) -> Any:
    """samples.parquet of a dataset as a pyarrow table of INDEX_SCHEMA, checked against the manifest's hash.

    Raises:
        DataError: missing, or not the file that the manifest describes.
    """
    storage = open_storage(location)
    return _read_index(storage, open_shard_files(storage), manifest, INDEX_SCHEMA.names)


def _read_index(storage: Storage, files: ShardFiles, manifest: Manifest, columns: list[str]) -> Any:
    data = _index_bytes(files, manifest)
    if hashlib.sha256(data).hexdigest() != manifest.index.sha256 and files.recover(manifest.index):
        data = _index_bytes(files, manifest)
    if (actual := hashlib.sha256(data).hexdigest()) != manifest.index.sha256:
        raise _damaged(storage, manifest, f"sha256 is {actual}, the manifest says {manifest.index.sha256}")
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        table = file.read(columns) if file.schema_arrow.equals(INDEX_SCHEMA) else None
        if table is not None:
            table.validate(full=True)
    except Exception as error:  # a hash that fits proves no good will, and pyarrow raises whatever it stumbles over
        raise _damaged(storage, manifest, str(error)) from error
    if table is None:
        raise _damaged(storage, manifest, "its columns are not those of this format version")
    return table


def _index_bytes(files: ShardFiles, manifest: Manifest) -> bytes:
    file = files.open(manifest.index)
    # A byte more than there should be, so that a longer file is seen; memory follows the file, not the manifest.
    size = min(os.fstat(file.descriptor).st_size, manifest.index.bytes + 1)
    return _read_at(file, size, 0, manifest.index.file)


def _read_at(file: OpenFile, size: int, offset: int, name: str) -> bytes:
    try:
        return os.pread(file.descriptor, size, offset)
    except OSError as error:
        raise DataError(f"{name!r} cannot be read: {error.strerror}; check the disk and restore the file") from error


def _contradiction(table: Any, manifest: Manifest, split: str) -> str:
    """What is wrong with the rows of a split; empty if all is well."""
    shards = manifest.split(split).shards
    names, counts = [shard.file for shard in shards], [shard.num_samples for shard in shards]
    if any(column.null_count for column in table.columns):
        return "values are missing"
    # Keys name files that jobs write, and end at the first dot for any WebDataset reader.
    if pc.any(pc.match_substring_regex(table["key"], _NO_KEY)).as_py():
        return "a key is empty, or holds a slash, a dot or a control character"
    height, width = (table[side].to_numpy().astype(np.int64) for side in ("height", "width"))
    if ((height < 1) | (width < 1) | (height * width > MAX_PIXELS)).any():
        return f"a picture is empty, or has more than {MAX_PIXELS:,} pixels"
    if len(table) != sum(counts) or not table["shard"].combine_chunks().equals(pa.array(np.repeat(names, counts))):
        return f"its shards of {split!r} are not those of the manifest"
    ends = np.repeat([shard.bytes for shard in shards], counts)
    for part in ("image", "mask"):
        offset, size = table[f"{part}_offset"].to_numpy(), table[f"{part}_bytes"].to_numpy()
        if (offset < 0).any() or (size < 0).any() or (offset > ends).any() or (size > ends - offset).any():
            return f"{part}s lie outside their shards"
    return ""


def _damaged(storage: Storage, manifest: Manifest, what: str) -> DataError:
    return DataError(
        f"{manifest.index.file!r} of {storage.address} is damaged: {what}; restore it or prepare the dataset again"
    )
