"""Which sample goes into which shard: a pure function of keys and sizes, known before the first byte is written."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise

from segfleet_pipelines.datasets.base import RawSample

MAX_SHARD_SAMPLES = 1000
MAX_SHARD_BYTES = 256 * 1024 * 1024
# A shard is written by one process, so small datasets come in several too, however many processes there are.
SHARDS_AT_LEAST, MIN_SHARD_SAMPLES = 8, 200


def deal(keys: Sequence[str]) -> list[int]:
    """Places of the keys in the order of their hashes.

    Raw data come sorted by place and time. Dealt by hash each shard is a mixture of all of them, so that shuffling
    within some shards is nearly as good as shuffling everything. A key more or less leaves the others in their order.
    """
    return sorted(range(len(keys)), key=lambda i: (hashlib.sha256(keys[i].encode()).digest(), keys[i]))


def balanced_ranges(num_samples: int, num_bytes: int, max_samples: int, max_bytes: int) -> list[range]:
    """Cut 0..num_samples-1 into as few ranges as the limits allow, equal but for one sample.

    Args:
        num_samples: Of the split.
        num_bytes: Of all its pictures and masks.
        max_samples: No range is longer.
        max_bytes: About as many bytes in a range; more where samples differ much.
    """
    num_shards = min(num_samples, max(-(-num_samples // max_samples), -(-num_bytes // max_bytes)))
    edges = [place * num_samples // num_shards for place in range(num_shards + 1)] if num_shards else [0]
    return [range(first, last) for first, last in pairwise(edges)]


def plan_shards(
    samples: Sequence[RawSample], sizes: Sequence[int], max_samples: int, max_bytes: int
) -> list[tuple[RawSample, ...]]:
    """The samples of each shard of a split, in order.

    Args:
        samples: N of them, of different keys.
        sizes: Bytes of each sample, about.
        max_samples: In a shard; less where that gives a small split more shards.
        max_bytes: Of a shard, about.
    """
    order = deal([sample.key for sample in samples])
    max_samples = min(max_samples, max(MIN_SHARD_SAMPLES, -(-len(samples) // SHARDS_AT_LEAST)))
    ranges = balanced_ranges(len(samples), sum(sizes), max_samples, max_bytes)
    return [tuple(samples[order[place]] for place in places) for places in ranges]
