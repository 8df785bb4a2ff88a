from __future__ import annotations

import itertools

import numpy as np
import pytest

from segfleet_pipelines.plan import SampleRef, batch_plan, sample_rng


@pytest.mark.parametrize(("num_samples", "global_batch"), [*itertools.product((1, 2, 7, 24), (1, 2, 4, 12))])
def test_every_epoch_holds_every_sample_once(num_samples: int, global_batch: int) -> None:
    steps = 3 * num_samples
    refs = [ref for step in range(steps) for ref in batch_plan(5, num_samples, step, global_batch, 0, 1)]
    for epoch in range(3 * global_batch):
        seen = sorted(ref.index for ref in refs if ref.epoch == epoch)
        assert seen == list(range(num_samples))


@pytest.mark.parametrize(("world_size", "step"), [*itertools.product((1, 2, 3, 4, 6, 12), (0, 1, 5, 1000))])
def test_ranks_share_the_same_global_batch(world_size: int, step: int) -> None:
    whole = batch_plan(1, 17, step, 12, 0, 1)
    parts = [batch_plan(1, 17, step, 12, rank, world_size) for rank in range(world_size)]
    assert list(itertools.chain(*parts)) == whole
    assert [ref.slot for ref in whole] == list(range(12))
    assert {len(part) for part in parts} == {12 // world_size}


def test_the_order_is_the_same_for_ever() -> None:
    # A resumed job counts on it: these numbers must not change with any release.
    assert [ref.index for ref in batch_plan(0, 10, 0, 10, 0, 1)] == [9, 7, 2, 0, 4, 3, 5, 6, 1, 8]
    assert batch_plan(3, 5, 1, 4, 1, 2) == [SampleRef(1, 0, 2), SampleRef(1, 4, 3)]
    assert sample_rng(0, 1, 2).integers(0, 1000, 4).tolist() == [946, 307, 96, 674]


def test_order_differs_by_epoch_and_seed() -> None:
    orders = {
        tuple(ref.index for ref in batch_plan(seed, 50, epoch, 50, 0, 1)) for seed in range(3) for epoch in range(3)
    }
    assert len(orders) == 9


def test_randomness_differs_by_seed_epoch_and_sample_and_from_the_order() -> None:
    draws = {int(sample_rng(*place).integers(2**62)) for place in itertools.product((0, 1), repeat=3)}
    assert len(draws) == 8
    order_bits = np.random.PCG64(np.random.SeedSequence(0, spawn_key=(0, 0))).random_raw(1)
    assert sample_rng(0, 0, 0).bit_generator.random_raw(1) != order_bits


@pytest.mark.parametrize(
    ("num_samples", "step", "batch", "rank", "world"),
    [(0, 0, 4, 0, 1), (5, -1, 4, 0, 1), (5, 0, 0, 0, 1), (5, 0, 4, 2, 2), (5, 0, 4, -1, 2), (5, 0, 5, 0, 2)],
)
def test_impossible_plans_are_refused(num_samples: int, step: int, batch: int, rank: int, world: int) -> None:
    with pytest.raises(ValueError, match=r"plan for|shared equally"):
        batch_plan(0, num_samples, step, batch, rank, world)
