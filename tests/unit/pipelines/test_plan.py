from __future__ import annotations

import itertools
import os
import pickle
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segfleet.errors import DataError
from segfleet_pipelines.plan import OrderPlan, SampleRef
from segfleet_pipelines.shuffle import sample_rng

EXAMPLES = int(os.environ.get("SEGFLEET_TEST_EXAMPLES", "60"))
MAX_STEPS = 80

SHARDS = st.lists(st.integers(1, 9), min_size=1, max_size=12).map(tuple)
WEIGHTS = st.floats(0.01, 100.0).map(lambda weight: round(weight, 3))


class World(NamedTuple):
    """A plan and the ranks that share its batches."""

    plan: OrderPlan
    world_size: int


@st.composite
def worlds(draw: st.DrawFn, last_batch: Iterable[str] = ("wrap", "short", "drop"), datasets: int = 1) -> World:
    world_size = draw(st.integers(1, 6))
    counts = draw(st.lists(SHARDS, min_size=1, max_size=datasets))
    share = st.integers(1, 6)
    how = draw(st.sampled_from(sorted(last_batch))) if len(counts) == 1 else "wrap"
    if how == "drop":
        share = st.integers(1, max(1, sum(counts[0]) // world_size))
        world_size = min(world_size, sum(counts[0]))
    weights = tuple(draw(WEIGHTS) for _ in counts)
    window = draw(st.none() | st.integers(1, 14))
    seed, batch = draw(st.integers(0, 2**31 - 1)), world_size * draw(share)
    return World(OrderPlan(tuple(counts), weights, seed, batch, how, window), world_size)  # type: ignore[arg-type]


def one(num_samples: int, batch: int, seed: int = 0, **options: Any) -> OrderPlan:
    return OrderPlan(((num_samples,),), (1.0,), seed, batch, **options)


def drawn(plan: OrderPlan, steps: int) -> list[list[SampleRef]]:
    return [plan.samples(step) for step in range(steps)]


def steps_of(plan: OrderPlan, epochs: int) -> int:
    """Steps that hold this many epochs of a single dataset."""
    num_samples = sum(plan.shard_counts[0])
    if plan.last_batch == "drop":
        return epochs * (num_samples // plan.global_batch)
    if plan.last_batch == "short":
        return epochs * -(-num_samples // plan.global_batch)
    return -(-epochs * num_samples // plan.global_batch)


def whole_epochs(plan: OrderPlan, dataset: int, refs: Iterable[SampleRef]) -> list[list[int]]:
    """Indexes of each finished epoch of a dataset, in the order in which they were drawn."""
    by_epoch: dict[int, list[int]] = {}
    for ref in refs:
        if ref.dataset == dataset:
            by_epoch.setdefault(ref.epoch, []).append(ref.index)
    return [by_epoch[epoch] for epoch in range(max(by_epoch, default=0))]


@settings(max_examples=EXAMPLES, deadline=None)
@given(worlds(last_batch=("wrap", "short"), datasets=4))
def test_every_epoch_of_every_dataset_holds_every_sample_once(world: World) -> None:
    plan = world.plan
    refs = list(itertools.chain(*drawn(plan, MAX_STEPS)))
    for dataset, counts in enumerate(plan.shard_counts):
        for epoch in whole_epochs(plan, dataset, refs):
            assert sorted(epoch) == list(range(sum(counts)))


@settings(max_examples=EXAMPLES, deadline=None)
@given(worlds(datasets=3), st.integers(0, 10**6))
def test_every_number_of_workers_sees_the_same_global_batches(world: World, step: int) -> None:
    plan, batch = world.plan, world.plan.global_batch
    whole = plan.samples(step)
    assert [ref.slot for ref in whole] == list(range(len(whole)))
    for world_size in (size for size in range(1, batch + 1) if batch % size == 0):
        parts = [plan.samples(step, rank, world_size) for rank in range(world_size)]
        assert list(itertools.chain(*parts)) == whole
        for rank, part in enumerate(parts):
            assert all(ref.slot in plan.slots(rank, world_size) for ref in part)


@settings(max_examples=EXAMPLES, deadline=None)
@given(worlds(datasets=3), st.integers(0, 40), st.integers(1, 5))
def test_a_resumed_plan_and_any_number_of_loader_processes_equal_no_stop(
    world: World, start: int, processes: int
) -> None:
    plan, rank = world.plan, world.world_size - 1
    uninterrupted = [plan.samples(step, rank, world.world_size) for step in range(start + 20)]
    # Another object in another process, which begins in the middle, and whose steps others share.
    resumed = [pickle.loads(pickle.dumps(plan)) for _ in range(processes)]
    assert resumed[0] == plan
    steps = {
        step: copy.samples(step, rank, world.world_size)
        for number, copy in enumerate(resumed)
        for step in range(start + number, start + 20, processes)
    }
    assert [steps[step] for step in sorted(steps)] == uninterrupted[start:]


@settings(max_examples=EXAMPLES, deadline=None)
@given(worlds(datasets=3), st.integers(0, 60), st.integers(1, 6))
def test_steps_need_the_shards_of_their_windows_and_no_others(world: World, first: int, count: int) -> None:
    plan = world.plan
    needed = plan.shards(first, first + count)
    ahead = plan.shards(first, first + count, ahead=1)
    refs = [ref for step in range(first, first + count) for ref in plan.samples(step)]
    for dataset, counts in enumerate(plan.shard_counts):
        ends = np.cumsum(counts)
        read = [int(np.searchsorted(ends, ref.index, side="right")) for ref in refs if ref.dataset == dataset]
        assert set(read) <= set(needed[dataset])
        assert len(set(needed[dataset])) == len(needed[dataset])
        assert ahead[dataset][: len(needed[dataset])] == needed[dataset]
        width = plan.window or len(counts)
        windows_of_an_epoch = -(-len(counts) // width)
        # What a window promises: while its draws last, no other shard is read.
        if windows_of_an_epoch > 1 and len(plan.shard_counts) == 1 and plan.last_batch == "wrap":
            smallest = min(sum(sorted(counts)[:width]), sum(sorted(counts)[: len(counts) % width or width]))
            windows = 2 + count * plan.global_batch // smallest
            assert len(needed[dataset]) <= windows * width


@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_window_is_used_up_before_the_next_begins(window: int) -> None:
    counts = (4, 7, 5, 6, 3, 8, 2)
    plan = OrderPlan((counts,), (1.0,), 5, 1, window=window)
    shard_of = np.repeat(np.arange(len(counts)), counts)
    orders = []
    for epoch in range(3):
        shards = [int(shard_of[plan.samples(epoch * 35 + step)[0].index]) for step in range(35)]
        first_seen = list(dict.fromkeys(shards))
        order = [first_seen[start : start + window] for start in range(0, 7, window)]
        remaining = shards
        for group in order:
            size = sum(counts[shard] for shard in group)
            assert set(remaining[:size]) == set(group)
            remaining = remaining[size:]
        orders.append([frozenset(group) for group in order])
    assert orders[0] != orders[1]
    within = [ref.index for step in range(35) for ref in plan.samples(step)]
    assert within != sorted(within)


def test_a_window_of_all_shards_is_the_global_shuffle() -> None:
    plans = [OrderPlan(((4, 5, 6),), (1.0,), 1, 5, window=window) for window in (None, 3, 9)]
    assert drawn(plans[0], 9) == drawn(plans[1], 9) == drawn(plans[2], 9)


@settings(max_examples=EXAMPLES, deadline=None)
@given(worlds(datasets=6), st.integers(1, MAX_STEPS))
def test_weights_are_reached_at_every_step(world: World, steps: int) -> None:
    plan = world.plan
    if len(plan.weights) == 1:
        return
    exact = [Fraction(str(weight)) for weight in plan.weights]
    batches = drawn(plan, steps)
    assert {len(batch) for batch in batches} == {plan.global_batch}
    counts = Counter(ref.dataset for batch in batches for ref in batch)
    for dataset, weight in enumerate(exact):
        share = steps * plan.global_batch * weight / sum(exact)
        # Half a place for the dataset's own rounding and half for each of the roundings before it.
        assert abs(counts[dataset] - share) <= Fraction(dataset + 1, 2)


@pytest.mark.integration
def test_weights_are_exact_in_the_long_run_and_small_ones_are_not_forgotten() -> None:
    plan = OrderPlan(((50,), (7,), (3,)), (100.0, 1.0, 0.01), 0, 8)
    steps = 10101  # the sum of the weights, in hundredths
    counts = Counter(ref.dataset for batch in drawn(plan, steps) for ref in batch)
    assert counts == {0: 10000 * 8, 1: 100 * 8, 2: 8}


def test_a_mixed_batch_has_its_shares_and_shuffled_slots() -> None:
    plan = OrderPlan(((90,), (70,)), (3.0, 1.0), 4, 8)
    batches = [[ref.dataset for ref in batch] for batch in drawn(plan, 40)]
    assert {sum(batch) for batch in batches} == {2}
    assert len({tuple(batch) for batch in batches}) > 10
    assert all(any(batch[slot] for batch in batches) for slot in range(8))


def test_mixing_does_not_change_the_order_of_the_first_dataset() -> None:
    alone = [ref.index for batch in drawn(one(11, 4, seed=9), 20) for ref in batch]
    batches = drawn(OrderPlan(((11,), (11,)), (1.0, 1.0), 9, 4), 40)
    for step, batch in enumerate(batches):
        assert {ref.index for ref in batch if ref.dataset == 0} == set(alone[2 * step : 2 * step + 2])
    refs = list(itertools.chain(*batches))
    orders = [[r.index for r in refs if (r.dataset, r.epoch) == (dataset, 0)] for dataset in (0, 1)]
    assert orders[0] != orders[1]


@settings(max_examples=EXAMPLES, deadline=None)
@given(worlds(last_batch=("wrap",)))
def test_wrap_fills_every_batch(world: World) -> None:
    plan = world.plan
    batches = drawn(plan, steps_of(plan, 3))
    assert {len(batch) for batch in batches} == {plan.global_batch}
    assert [ref.epoch for batch in batches for ref in batch] == sorted(ref.epoch for batch in batches for ref in batch)


@settings(max_examples=EXAMPLES, deadline=None)
@given(worlds(last_batch=("short",)))
def test_short_ends_each_epoch_with_its_own_batch(world: World) -> None:
    plan = world.plan
    num_samples, batch = sum(plan.shard_counts[0]), plan.global_batch
    batches = drawn(plan, steps_of(plan, 3))
    sizes = [batch] * (num_samples // batch) + [num_samples % batch] * (num_samples % batch > 0)
    assert [len(part) for part in batches] == sizes * 3
    for number, part in enumerate(batches):
        assert {ref.epoch for ref in part} == {number // len(sizes)}
        assert [ref.slot for ref in part] == list(range(len(part)))
    for ranks in ([plan.samples(step, r, world.world_size) for r in range(world.world_size)] for step in range(3)):
        # Empty slots stand at the end: no rank has fewer samples than one after it.
        assert [len(part) for part in ranks] == sorted((len(part) for part in ranks), reverse=True)


@settings(max_examples=EXAMPLES, deadline=None)
@given(worlds(last_batch=("drop",)))
def test_drop_leaves_out_less_than_a_batch_of_each_epoch(world: World) -> None:
    plan = world.plan
    num_samples, batch = sum(plan.shard_counts[0]), plan.global_batch
    batches = drawn(plan, steps_of(plan, 3))
    assert {len(part) for part in batches} == {batch}
    for epoch in range(3):
        seen = [ref.index for part in batches for ref in part if ref.epoch == epoch]
        assert len(seen) == len(set(seen)) == num_samples // batch * batch


def test_drop_leaves_out_other_samples_each_epoch() -> None:
    plan = one(10, 4, last_batch="drop")
    left_out = {
        frozenset(range(10)) - {ref.index for step in (2 * epoch, 2 * epoch + 1) for ref in plan.samples(step)}
        for epoch in range(8)
    }
    assert len(left_out) > 4


def test_without_an_incomplete_batch_there_is_nothing_to_declare() -> None:
    plans = [one(12, 4, last_batch=how) for how in ("wrap", "short", "drop")]
    assert drawn(plans[0], 9) == drawn(plans[1], 9) == drawn(plans[2], 9)


def test_the_order_is_the_same_for_ever() -> None:
    # A resumed job counts on it: these numbers must not change with any release.
    assert [ref.index for ref in one(10, 10).samples(0)] == [9, 7, 2, 0, 4, 3, 5, 6, 1, 8]
    assert one(5, 4, seed=3).samples(1, 1, 2) == [SampleRef(1, 0, 2), SampleRef(1, 4, 3)]
    assert sample_rng(0, 1, 2).integers(0, 1000, 4).tolist() == [946, 307, 96, 674]
    windowed = OrderPlan(((2, 3, 4),), (1.0,), 0, 9, window=1)
    assert [ref.index for ref in windowed.samples(0)] == [2, 3, 4, 0, 1, 6, 8, 7, 5]
    mixed = OrderPlan(((4,), (4,)), (1.0, 1.0), 0, 8)
    assert [(ref.dataset, ref.index) for ref in mixed.samples(0)] == [
        (0, 1),
        (1, 0),
        (0, 3),
        (1, 1),
        (1, 2),
        (0, 2),
        (1, 3),
        (0, 0),
    ]
    assert sample_rng(0, 1, 2, 1).integers(0, 1000, 4).tolist() == [742, 985, 533, 211]


def test_order_differs_by_epoch_and_seed() -> None:
    orders = {tuple(ref.index for ref in one(50, 50, seed).samples(step)) for seed in range(3) for step in range(3)}
    assert len(orders) == 9


def test_randomness_differs_by_seed_epoch_sample_and_dataset_and_from_the_order() -> None:
    draws = {int(sample_rng(*place).integers(2**62)) for place in itertools.product((0, 1), repeat=4)}
    assert len(draws) == 16
    order_bits = np.random.PCG64(np.random.SeedSequence(0, spawn_key=(0, 0))).random_raw(1)
    assert sample_rng(0, 0, 0).bit_generator.random_raw(1) != order_bits


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (-1, 2), (0, 3)])
def test_ranks_that_cannot_share_a_batch_are_refused(rank: int, world_size: int) -> None:
    with pytest.raises(ValueError, match=r"no plan for rank|shared equally"):
        one(5, 4).samples(0, rank, world_size)


@pytest.mark.parametrize(
    "changes",
    [
        {"shard_counts": ()},
        {"shard_counts": ((),)},
        {"shard_counts": ((3, 0),)},
        {"weights": (0.0,)},
        {"weights": (1.0, 1.0)},
        {"global_batch": 0},
        {"window": 0},
        {"shard_counts": ((3,), (3,)), "weights": (1.0, 1.0), "last_batch": "short"},
    ],
)
def test_impossible_plans_are_refused(changes: dict[str, Any]) -> None:
    values = {"shard_counts": ((5,),), "weights": (1.0,), "seed": 0, "global_batch": 4}
    with pytest.raises(ValueError, match=r"no plan|no meaning in a mix"):
        OrderPlan(**{**values, **changes})
    with pytest.raises(ValueError, match="no plan for step -1"):
        one(5, 4).samples(-1)


def test_drop_that_would_leave_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="3 samples do not fill one batch of 4"):
        one(3, 4, last_batch="drop")
