"""Find damage in a prepared dataset: all of it for a person, or what a job must know before its first step."""

from __future__ import annotations

import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow.compute as pc

from segfleet.errors import DataError
from segfleet_pipelines.datasets.base import listed
from segfleet_pipelines.manifest import Manifest, ShardInfo
from segfleet_pipelines.pool import Progress, silent
from segfleet_pipelines.reader import SampleIndex, read_table
from segfleet_pipelines.shard_check import Row, difference, member_problems, sample_problems
from segfleet_pipelines.storage import Storage, open_storage

_SHOWN_KEYS = 10
# A share such as 0.29 of 100 samples is 28.999999999999996 of them.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` has looked at and found.

    Attributes:
        content_id: Of the manifest.
        num_shards: Shards that the manifest lists.
        num_samples: Samples that the manifest lists.
        bytes: Of all shards, as the manifest has it.
        problems: A line each; empty for a sound dataset.
    """

    content_id: str
    num_shards: int
    num_samples: int
    bytes: int
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Damage:
    """What is wrong with one shard.

    Attributes:
        number: Of the shard in its split.
        what: The difference to the manifest.
        num_samples: Samples of the shard.
        samples: Places of the damaged ones in the split; None: they cannot be told from the others.
    """

    number: int
    what: str
    num_samples: int
    samples: tuple[int, ...] | None


def verify(location: str | Path, progress: Progress | None = None) -> VerifyReport:
    """Check every hash, count, name, byte, picture and label of a prepared dataset.

    Shards elsewhere are fetched one after the other and removed again: a copy in the cache proves nothing about them.

    Args:
        location: The dataset's folder or address.
        progress: Called with samples done and samples in all.

    Raises:
        DataError: the manifest or the index is missing or damaged, so that nothing else can be judged.
    """
    storage, manifest = open_storage(location), Manifest.load(location)
    total = sum(split.num_samples for split in manifest.splits.values())
    problems, done = [*_unlisted_shards(storage, manifest), *_repeated_keys(location, manifest)], 0
    report = progress or silent
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for split in manifest.splits:
            for shard, rows in _shards(location, manifest, split):
                for number, found in enumerate(_shard_problems(storage, manifest, shard, rows, pool)):
                    problems += found
                    report(done + min(number, shard.num_samples), total)
                done += shard.num_samples
                report(done, total)
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    return VerifyReport(manifest.content_id, len(shards), total, sum(shard.bytes for shard in shards), tuple(problems))


def check_shards(location: str | Path, split: str, budget: float = 0.0) -> frozenset[int]:
    """What a job does before its first step: compare every shard of a split with the manifest.

    Of a shard elsewhere only existence and size are compared; its hash is when it is fetched.

    Args:
        location: The dataset's folder or address.
        split: Name of the split.
        budget: Largest share of its samples, 0..1, that may be damaged and left out.

    Returns:
        Places of the damaged samples in the split, to be left out; none without a budget.

    Raises:
        DataError: a shard is missing, or the damage is beyond the budget; names shards, keys and both numbers.
    """
    storage, index = open_storage(location), SampleIndex.load(location, split)
    damage = [found for found in _compared(storage, index.manifest.split(split).shards) if found is not None]
    damage = [found if found.samples is None else _told_apart(index, found) for found in damage]
    damaged = frozenset(place for found in damage for place in found.samples or ())
    allowed = math.floor(budget * len(index) + _ROUNDING)
    if damage and (budget == 0 or len(damaged) > allowed or any(found.samples is None for found in damage)):
        raise _beyond_budget(storage.address, index, damage, budget, allowed)
    return damaged


def _unlisted_shards(storage: Storage, manifest: Manifest) -> list[str]:
    try:
        names = storage.names()
    except DataError:
        # A web server lists nothing, and what the manifest does not name is never read.
        return []
    listed = {shard.file for split in manifest.splits.values() for shard in split.shards}
    return [
        f"{name!r} is not in the manifest" for name in sorted(names) if name.endswith(".tar") and name not in listed
    ]


def _repeated_keys(location: str | Path, manifest: Manifest) -> list[str]:
    counts = Counter(read_table(location, manifest)["key"].to_pylist())
    return [f"key {key!r} is in the index {count} times" for key, count in counts.items() if count > 1]


def _shards(location: str | Path, manifest: Manifest, split: str) -> Iterator[tuple[ShardInfo, list[Row]]]:
    """Every shard of a split with its rows of the index."""
    SampleIndex.load(location, split)  # an index that contradicts the manifest is refused here
    table = read_table(location, manifest).filter(pc.field("split") == split)
    first = 0
    for shard in manifest.split(split).shards:
        yield shard, table.slice(first, shard.num_samples).to_pylist()
        first += shard.num_samples


def _shard_problems(
    storage: Storage, manifest: Manifest, shard: ShardInfo, rows: Sequence[Row], pool: Executor
) -> Iterator[list[str]]:
    try:
        with _on_this_machine(storage, shard.file) as path:
            if wrong := difference(path, shard):
                yield [wrong]
            yield list(member_problems(path, rows))
            with path.open("rb") as file:
                yield from pool.map(partial(sample_problems, file.fileno(), manifest=manifest), rows)
    except DataError as error:
        yield [f"{error} ({shard.num_samples} samples)"]
    except OSError as error:
        yield [f"shard {shard.file!r} cannot be read: {error.strerror} ({shard.num_samples} samples)"]


@contextmanager
def _on_this_machine(storage: Storage, file: str) -> Iterator[Path]:
    if storage.folder is not None:
        yield storage.folder / file
        return
    with tempfile.TemporaryDirectory(prefix="segfleet-verify-") as folder:
        storage.download(file, Path(folder) / file)
        yield Path(folder) / file


def _compared(storage: Storage, shards: Sequence[ShardInfo]) -> list[_Damage | None]:
    """What differs from the manifest, by shard; which samples of a differing shard are damaged is still open."""
    compare = _difference_elsewhere if storage.folder is None else _difference_here
    # Hashing releases the interpreter's lock: two threads are twice as fast as one.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(partial(compare, storage), range(len(shards)), shards))


def _difference_here(storage: Storage, number: int, shard: ShardInfo) -> _Damage | None:
    assert storage.folder is not None
    try:
        what = difference(storage.folder / shard.file, shard)
    except DataError as error:
        return _Damage(number, str(error), shard.num_samples, None)
    return _Damage(number, what, shard.num_samples, ()) if what else None


def _difference_elsewhere(storage: Storage, number: int, shard: ShardInfo) -> _Damage | None:
    try:
        size = storage.size(shard.file)
    except DataError as error:
        return _Damage(number, str(error), shard.num_samples, None)
    what = f"shard {shard.file!r} has {size} bytes, the manifest says {shard.bytes}"
    return _Damage(number, what, shard.num_samples, None) if size != shard.bytes else None


def _told_apart(index: SampleIndex, damage: _Damage) -> _Damage:
    """The damage with the samples that are not what they were, by their checksums."""
    first = int(index.shard_counts[: damage.number].sum())
    places = range(first, first + damage.num_samples)
    return replace(damage, samples=tuple(place for place in places if not _is_intact(index, place)))


def _is_intact(index: SampleIndex, place: int) -> bool:
    try:
        index.read_sample(place)
    except DataError:
        return False
    return True


def _beyond_budget(
    address: str, index: SampleIndex, damage: Sequence[_Damage], budget: float, allowed: int
) -> DataError:
    count = sum(found.num_samples if found.samples is None else len(found.samples) for found in damage)
    return listed(
        f"dataset {address}, split {index.split!r}: {count} of {len(index)} samples damaged or missing, the skip "
        f"budget of {100 * budget:g} % allows {allowed}; restore the shards or prepare the dataset again",
        [f"{found.what}: {_extent(index, found)}" for found in damage],
    )


def _extent(index: SampleIndex, damage: _Damage) -> str:
    if damage.samples is None:
        return f"none of its {damage.num_samples} samples can be told to be sound"
    if not damage.samples:
        return f"its {damage.num_samples} samples are sound, what differs lies between them"
    keys = ", ".join(repr(index.keys[place]) for place in damage.samples[:_SHOWN_KEYS])
    more = ", ..." if len(damage.samples) > _SHOWN_KEYS else ""
    return f"{len(damage.samples)} of its {damage.num_samples} samples are damaged: {keys}{more}"
