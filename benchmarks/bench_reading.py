"""Bytes of a sample out of a tar shard, page cache warm, one process: ours, its steps, webdataset and tarfile.

The shards are made for the run: random bytes of the sizes that ADE20K's pictures and packed masks have.
"""

from __future__ import annotations

import argparse
import os
import tarfile
import tempfile
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from isal.isal_zlib import crc32

from segfleet_pipelines.reader import SampleIndex
from toy_shards import write_toy_dataset

NUM_SHARDS = 8


def main() -> None:
    """Print microseconds a sample, best of the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--image-bytes", type=int, default=40_000, help="of a picture")
    parser.add_argument("--mask-bytes", type=int, default=4_000, help="of a mask")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "data"
        samples_each = args.samples // NUM_SHARDS
        sizes = {"image_bytes": args.image_bytes, "mask_bytes": args.mask_bytes}
        write_toy_dataset(folder, num_shards=NUM_SHARDS, samples_each=samples_each, **sizes)
        measure(folder, args.rounds)


def measure(folder: Path, rounds: int) -> None:
    """Print the table for a dataset."""
    index = SampleIndex.load(folder, "train")
    num_samples = len(index)
    order = np.random.default_rng(0).permutation(num_samples).tolist()
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    print(f"{num_samples} samples, {np.mean([sum(map(len, index.read_sample(i)[1:])) for i in order]):.0f} bytes each")
    ours = best(each(index.read_sample, order), rounds, num_samples)
    webdataset = best(lambda: deque(wds.WebDataset(urls, shardshuffle=False), 0), rounds, num_samples)
    standard = best(each(walk, urls), rounds, num_samples)
    print(f"ours, any order, checksums compared {ours:8.2f} us/sample")
    print(f"webdataset iterator, in order       {webdataset:8.2f} us/sample  {webdataset / ours:5.1f}x")
    print(f"tarfile, in order                   {standard:8.2f} us/sample  {standard / ours:5.1f}x")
    for title, step in steps(index, order[:256]).items():
        print(f"  of ours: {title:26s} {best(each(step, order), rounds, num_samples):8.2f} us/sample")
    index.close()


def steps(index: SampleIndex, some: list[int]) -> dict[str, Callable[[int], Any]]:
    """What reading consists of, each as a function of a sample's place."""
    data = [index.read_sample(i)[1:] for i in some]
    places = index._places.tolist()
    shards = [index._files.open(index._shards[shard]).descriptor for shard in index._shard]
    return {
        "place in the index": lambda i: index._places[i].tolist(),
        "open shard": lambda i: index._files.open(index._shards[index._shard[i]]),
        "pread of the picture": lambda i: os.pread(shards[i], places[i][1], places[i][0]),
        "pread of the mask": lambda i: os.pread(shards[i], places[i][4], places[i][3]),
        "CRC-32 of both (isal)": lambda i: (crc32(data[i % 256][0]), crc32(data[i % 256][1])),
        "(CRC-32 of both by zlib)": lambda i: (zlib.crc32(data[i % 256][0]), zlib.crc32(data[i % 256][1])),
        "key": lambda i: index.keys[i],
    }


def each(work: Callable[[Any], Any], items: Iterable[Any]) -> Callable[[], Any]:
    """Do it for all; what it gives is dropped at once, as in training."""
    return lambda: deque(map(work, items), 0)


def best(work: Callable[[], Any], rounds: int, num_samples: int) -> float:
    """Microseconds a sample of the fastest round."""
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times) / num_samples * 1e6


def walk(path: str) -> int:
    """Read a shard as a stream with the standard library."""
    with tarfile.open(path, "r|") as tar:
        return sum(len(member.read()) for info in tar if (member := tar.extractfile(info)) is not None)


if __name__ == "__main__":
    main()
