"""The random states of all ranks: a checkpoint holds them, and validation leaves them alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from segfleet_jobs.ranks import Ranks


def gather_random_states(ranks: Ranks) -> dict[str, Tensor]:
    """Every rank's random state; `gather` works on the group's device, so the bytes travel through it."""
    states = {"cpu": torch.get_rng_state()}
    if ranks.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(ranks.device)
    return {
        f"random/{kind}/{rank}": part.cpu()
        for kind, state in states.items()
        for rank, part in enumerate(ranks.gather(state.to(ranks.device)))
    }


@contextmanager
def untouched_random_state(device: torch.device) -> Iterator[None]:
    """Validation must not move the random stream that training draws from."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
