"""Prepared datasets of random bytes, written without preparing anything: for benchmarks and tests of reading."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segfleet_pipelines.manifest import FileInfo, Manifest, ShardInfo, SplitInfo
from segfleet_pipelines.reader import INDEX_SCHEMA


def write_toy_dataset(
    folder: Path,
    *,
    num_shards: int = 3,
    samples_each: int = 4,
    image_bytes: int = 2000,
    mask_bytes: int = 300,
    num_classes: int = 3,
) -> Manifest:
    """Shards train-000000.tar ... of random bytes, with index and manifest."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    shards = []
    for number in range(num_shards):
        name = f"train-{number:06d}.tar"
        with tarfile.open(folder / name, "w", format=tarfile.GNU_FORMAT) as tar:
            for _ in range(samples_each):
                row: dict[str, Any] = {"key": f"s{len(rows):04d}", "split": "train", "shard": name}
                for part, member, size in (("image", "image.jpg", image_bytes), ("mask", "mask.npy.zst", mask_bytes)):
                    data = rng.bytes(size)
                    info = tarfile.TarInfo(f"{row['key']}.{member}")
                    info.size = size
                    row |= {f"{part}_member": member, f"{part}_offset": tar.offset + 512, f"{part}_bytes": size}
                    row[f"{part}_crc32"] = zlib.crc32(data)
                    tar.addfile(info, io.BytesIO(data))
                counts = [len(rows) + label for label in range(num_classes)]
                rows.append(row | {"height": 20, "width": 30, "class_pixels": counts})
        data = (folder / name).read_bytes()
        shards.append(ShardInfo(name, hashlib.sha256(data).hexdigest(), len(data), samples_each))
    return seal(folder, pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), tuple(shards), num_classes)


def seal(folder: Path, table: pa.Table, shards: tuple[ShardInfo, ...], num_classes: int) -> Manifest:
    """Write samples.parquet and manifest.json for what lies in the folder."""
    path = folder / "samples.parquet"
    pq.write_table(table, path)
    data = path.read_bytes()
    manifest = Manifest(
        name="toy",
        class_names=tuple(f"c{label}" for label in range(num_classes)),
        palette=tuple((label, 0, 0) for label in range(num_classes)),
        ignore_index=255,
        splits={"train": SplitInfo(sum(shard.num_samples for shard in shards), shards)},
        index=FileInfo(path.name, hashlib.sha256(data).hexdigest(), len(data)),
    )
    (folder / "manifest.json").unlink(missing_ok=True)
    manifest.save(folder)
    return manifest
