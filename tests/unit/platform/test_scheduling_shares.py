from __future__ import annotations

import random

import pytest

from segfleet.queue.scheduling.shares import Usage, decayed_use, dominant_share, weighted
from segfleet.queue.scheduling.values import Gang, Node

HALF_LIFE = 1000.0


@pytest.mark.parametrize(
    ("gang", "workers", "share"),
    [
        (Gang(1, 4, 1), 2, 0.25),  # 8 of 32 CPUs, 2 of 8 GPUs
        (Gang(1, 8, 1), 2, 0.5),  # 16 of 32 CPUs
        (Gang(1, 1, 1), 4, 0.5),  # 4 of 8 GPUs
        (Gang(1, 4, 0), 4, 0.5),
    ],
)
def test_the_larger_share_of_cpus_and_gpus_counts(gang: Gang, workers: int, share: float) -> None:
    assert dominant_share(gang, workers, (Node(16, 8), Node(16, 0))) == share


def test_an_empty_cluster_has_no_shares() -> None:
    assert dominant_share(Gang(1, 1, 1), 1, ()) == 0.0


@pytest.mark.parametrize(
    ("usage", "seconds"),
    [
        # A long stretch until now is worth one half-life over ln 2.
        (Usage("a", 1.0, -1e9, None), HALF_LIFE / 0.6931471805599453),
        # One half-life ago it counts half.
        (Usage("a", 1.0, -1e9, 0.0), HALF_LIFE / 0.6931471805599453 / 2),
        # A short stretch hardly fades.
        (Usage("a", 0.5, 999.0, 1000.0), 0.49983),
        (Usage("a", 0.5, 0.0, 1.0), 0.25009),
        # Clocks that were set back: nothing yet.
        (Usage("a", 1.0, 2000.0, None), 0.0),
        (Usage("a", 1.0, 900.0, 800.0), 0.0),
        (Usage("a", 1.0, 1000.0, 5000.0), 0.0),
    ],
)
def test_use_halves_with_each_half_life(usage: Usage, seconds: float) -> None:
    assert decayed_use([usage], 1000.0, HALF_LIFE) == {"a": pytest.approx(seconds, rel=1e-4)}


def test_use_does_not_depend_on_the_order_of_what_is_added() -> None:
    rng = random.Random(1)
    usages = [Usage("a", rng.random(), start := rng.uniform(0, 1000), start + rng.uniform(0, 50)) for _ in range(200)]
    before = decayed_use(usages, 1000.0, HALF_LIFE)
    for _ in range(20):
        rng.shuffle(usages)
        assert decayed_use(usages, 1000.0, HALF_LIFE) == before


def test_stretches_add_up_to_the_whole() -> None:
    whole = decayed_use([Usage("a", 0.3, 100.0, 900.0)], 1000.0, HALF_LIFE)
    parts = decayed_use([Usage("a", 0.3, 100.0, 400.0), Usage("a", 0.3, 400.0, 900.0)], 1000.0, HALF_LIFE)
    assert parts["a"] == pytest.approx(whole["a"])


def test_use_counts_against_the_weight() -> None:
    assert weighted({"a": 300.0}, {"a": 3.0}, "a") == 100.0
    assert weighted({"a": 300.0}, {}, "a") == 300.0
    assert weighted({}, {"a": 3.0}, "a") == 0.0
