from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import Queue
from types import SimpleNamespace
from typing import Any

from segfleet.errors import DataError
from segfleet_pipelines.plan import OrderPlan
from segfleet_pipelines.prefetch import ShardFetcher

# A step of the second is a window of it.
MIXED = OrderPlan(((4, 4, 4, 4), (3,)), (3.0, 1.0), 2, 4, window=1)
SIMPLE = OrderPlan(((4, 4, 4, 4, 4),), (1.0,), 4, 4, window=1)
PATIENCE_S = 10.0


def batches(num_steps: int) -> Iterator[Any]:
    for step in range(num_steps):
        yield SimpleNamespace(step=step)


def wait_for_threads() -> None:
    for thread in threading.enumerate():
        if thread.name == "shards":
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def test_the_next_windows_shards_come_while_this_one_is_read() -> None:
    fetched: Queue[tuple[int, int]] = Queue()
    seen: set[tuple[int, int]] = set()
    following = ShardFetcher(MIXED, lambda *place: fetched.put(place)).follow(batches(40))
    for batch in following:
        soon = MIXED.shards(batch.step, batch.step + 1, ahead=1)
        needed = {(dataset, shard) for dataset, shards in enumerate(soon) for shard in shards}
        while not needed <= seen:
            seen.add(fetched.get(timeout=PATIENCE_S))
    wait_for_threads()
    assert seen == {(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)}


def test_a_shard_is_asked_for_once_an_epoch() -> None:
    fetched: Queue[int] = Queue()
    following = ShardFetcher(SIMPLE, lambda _, shard: fetched.put(shard)).follow(batches(12))
    order = [SIMPLE.samples(step)[0].index // 4 for step in range(11)]
    # In this order no shard stands in two windows of three, where it would be asked for once only.
    assert all(len(set(order[step : step + 3])) == 3 for step in range(9))
    for _ in range(10):
        next(following)
    assert [fetched.get(timeout=PATIENCE_S) for _ in range(11)] == order
    assert fetched.empty()
    following.close()  # type: ignore[attr-defined]
    wait_for_threads()


def test_a_shard_that_cannot_be_had_does_not_end_the_thread() -> None:
    tried: Queue[int] = Queue()

    def fail(_: int, shard: int) -> None:
        tried.put(shard)
        raise DataError("gone")

    following = ShardFetcher(SIMPLE, fail).follow(batches(5))
    assert [next(following).step for _ in range(4)] == [0, 1, 2, 3]
    assert sorted(tried.get(timeout=PATIENCE_S) for _ in range(5)) == [0, 1, 2, 3, 4]
    following.close()  # type: ignore[attr-defined]
    wait_for_threads()


def test_what_is_still_wanted_at_the_end_is_not_fetched() -> None:
    begun, goes_on = threading.Event(), threading.Event()
    fetched = []

    def slow(_: int, shard: int) -> None:
        fetched.append(shard)
        begun.set()
        assert goes_on.wait(PATIENCE_S)

    following = ShardFetcher(SIMPLE, slow).follow(batches(5))
    next(following)
    assert begun.wait(PATIENCE_S)
    following.close()  # type: ignore[attr-defined]
    goes_on.set()
    wait_for_threads()
    assert len(fetched) == 1


def test_each_pass_over_the_batches_is_followed_anew() -> None:
    fetched: Queue[int] = Queue()
    fetcher = ShardFetcher(SIMPLE, lambda _, shard: fetched.put(shard))
    first = SIMPLE.shards(0, 1, ahead=1)[0]
    for _ in range(2):
        following = fetcher.follow(batches(1))
        next(following)
        assert [fetched.get(timeout=PATIENCE_S) for _ in first] == first
        following.close()  # type: ignore[attr-defined]
        wait_for_threads()
