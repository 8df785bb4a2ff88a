"""The random streams of the ranks, which dropout and stochastic depth draw from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from segfleet_jobs.loop import TrainingLoop
from segfleet_jobs.ranks import Ranks


def draw(rank: int, checkpoint: Any = None, seed: int = 0) -> float:
    spec = SimpleNamespace(train=SimpleNamespace(seed=seed))
    loop: Any = SimpleNamespace(_ranks=Ranks(rank, 2, torch.device("cpu")), _spec=spec)
    with torch.random.fork_rng():
        TrainingLoop._seed(loop, checkpoint)
        return float(torch.rand(()))


def checkpoint(step: int, **state: torch.Tensor) -> Any:
    return SimpleNamespace(step=step, state={f"random/cpu/{name[1:]}": part for name, part in state.items()})


def test_every_rank_and_seed_has_its_own_stream() -> None:
    assert len({draw(rank, seed=seed) for rank in range(3) for seed in (0, 1, 2**31 - 1)}) == 9


def test_a_rank_goes_on_where_it_was_and_one_that_joins_repeats_nothing() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        state = torch.get_rng_state()
        expected = float(torch.rand(()))
    found = checkpoint(4, r0=state)
    assert draw(0, found) == expected
    joined = [draw(1), draw(1, found), draw(1, checkpoint(6)), draw(1, checkpoint(100_000_000 - 1), seed=2**31 - 1)]
    assert len(set(joined)) == 4
