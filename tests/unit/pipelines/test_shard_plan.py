from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from segfleet_pipelines.datasets.base import RawSample
from segfleet_pipelines.datasets.sources import FileSource
from segfleet_pipelines.shard_plan import balanced_ranges, deal, plan_shards


def sample(key: str) -> RawSample:
    return RawSample(key, FileSource(Path(f"{key}.jpg")), FileSource(Path(f"{key}.png")))


@given(st.integers(0, 5000), st.integers(0, 10**7), st.integers(1, 1000), st.integers(1, 10**6))
def test_ranges_cover_everything_once_and_differ_by_one(
    num_samples: int, num_bytes: int, max_samples: int, max_bytes: int
) -> None:
    ranges = balanced_ranges(num_samples, num_bytes, max_samples, max_bytes)
    assert [place for places in ranges for place in places] == list(range(num_samples))
    if num_samples:
        lengths = [len(places) for places in ranges]
        assert 1 <= min(lengths) <= max(lengths) <= min(min(lengths) + 1, max_samples)
        assert len(ranges) * max_bytes >= min(num_bytes, num_samples * max_bytes)
    if len(ranges) > 1:
        fewer = len(ranges) - 1
        assert fewer * max_samples < num_samples or fewer * max_bytes < num_bytes


def test_real_sizes_give_the_shards_one_expects() -> None:
    assert {len(places) for places in balanced_ranges(20_210, 20_210 * 45_000, 1000, 2**28)} == {962, 963}
    assert {len(places) for places in balanced_ranges(2975, 2975 * 2_300_000, 1000, 2**28)} == {114, 115}


def test_each_shard_is_a_mixture() -> None:
    cities = ["aachen", "bochum", "bremen", "cologne", "ulm"]
    keys = [f"{city}_{i:06d}" for city in cities for i in range(200)]
    for shard in plan_shards([sample(key) for key in keys], [1] * 1000, 100, 10**9):
        counts = [sum(s.key.startswith(city) for s in shard) for city in cities]
        assert sum(counts) == 100
        assert min(counts) >= 8  # 20 expected; below 8 by chance about once in a thousand shards


@given(st.lists(st.text("abcxyz_-0123456789ü", min_size=1), unique=True, min_size=2), st.randoms())
def test_the_order_follows_from_the_keys_alone(keys: list[str], random: object) -> None:
    shuffled = list(keys)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    dealt = [keys[i] for i in deal(keys)]
    assert [shuffled[i] for i in deal(shuffled)] == dealt
    rest = keys[1:]
    assert [rest[i] for i in deal(rest)] == [key for key in dealt if key != keys[0]]


def test_a_small_split_comes_in_several_shards_too() -> None:
    def num_shards(num_samples: int) -> int:
        keys = [f"k{i}" for i in range(num_samples)]
        return len(plan_shards([sample(key) for key in keys], [1] * num_samples, 1000, 10**9))

    assert [num_shards(n) for n in (1, 200, 201, 800, 1600, 7999, 9000)] == [1, 1, 2, 4, 8, 8, 9]
