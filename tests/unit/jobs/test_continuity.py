from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from segfleet.errors import CheckpointError
from segfleet.spec.sections import DataSpec, MixSpec
from segfleet_jobs.checked_data import CheckedData
from segfleet_jobs.continuity import check_same_data, check_same_spec, same_skips

SOURCES = DataSpec(shards="/data/one", mix=(MixSpec(shards="/data/two"),)).sources


def manifests(*content_ids: str) -> list[Any]:
    return [SimpleNamespace(content_id=content_id) for content_id in content_ids]


def test_sources_are_the_dataset_and_those_mixed_in() -> None:
    spec = DataSpec(shards="/data/one", train="part", weight=2.0, mix=(MixSpec(shards="/data/two", split="all"),))
    assert spec.sources == (
        MixSpec(shards="/data/one", split="part", weight=2.0),
        MixSpec(shards="/data/two", split="all", weight=1.0),
    )


def test_every_mixed_dataset_must_be_the_same() -> None:
    check_same_data(["a" * 64, "b" * 64], manifests("a" * 64, "b" * 64), SOURCES)
    with pytest.raises(CheckpointError, match=r"content id bbbbbbbbbbbb, '/data/two' now holds cccccccccccc"):
        check_same_data(["a" * 64, "b" * 64], manifests("a" * 64, "c" * 64), SOURCES)


def test_the_spec_may_differ_only_where_the_weights_do_not_see_it() -> None:
    before = {"data": {"shards": "/x"}, "train": {"steps": 5, "log_every": 1}, "queue": {"priority": 1}}
    check_same_spec(before, {**before, "train": {"steps": 5, "log_every": 9}, "queue": {"priority": 2}})
    with pytest.raises(CheckpointError, match=r"other values in data\.shards, train\.steps; submit"):
        check_same_spec(before, {**before, "data": {"shards": "/y"}, "train": {"steps": 6, "log_every": 1}})


@pytest.mark.parametrize("now", [({3, 5}, set()), ({3}, set()), (set(), set())])
def test_a_resumed_job_leaves_out_what_it_left_out_before(now: tuple[set[int], ...]) -> None:
    # Also what has been mended since: else the resumed run would see samples that the whole one did not.
    skips = same_skips([[3, 5], []], tuple(map(frozenset, now)), SOURCES)
    assert skips == (frozenset({3, 5}), frozenset())


def test_new_damage_is_not_left_out_in_mid_run() -> None:
    with pytest.raises(CheckpointError, match=r"1 samples of '/data/two', split 'train', .* first is number 9"):
        same_skips([[3], [1]], (frozenset({3}), frozenset({1, 9})), SOURCES)


def test_the_run_is_told_of_left_out_samples_and_of_all_mixed_data() -> None:
    one = CheckedData(("a" * 64,), (frozenset(),), (), ())
    assert one.tags == {"segfleet.skipped_samples": "0"}
    two = CheckedData(("a" * 64, "b" * 64), (frozenset({1}), frozenset()), ("/data/one, shard 's.tar', key 'k'",), ())
    assert two.tags == {"segfleet.skipped_samples": "1", "segfleet.mixed_content_ids": "b" * 64}
